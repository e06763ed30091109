"""Mapped: tensors' rows are read from the checkpoint's own file where that is what they are."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from slmpack.checkpoint.mapped_rows import Maps, tensor_at


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    generator = torch.Generator().manual_seed(0)
    tensors = {
        name: torch.randn(300, 64, generator=generator).to(torch.bfloat16) for name in ("first", "second", "third")
    }
    save_file(tensors, tmp_path / "model.safetensors")
    return tmp_path / "model.safetensors"


def test_reads_the_rows_of_a_mapped_tensor_from_its_file(checkpoint: Path) -> None:
    tensor = load_file(checkpoint)["second"]
    with Maps() as maps:
        rows = maps.rows_of(tensor, "weight")
        rows.read_ahead()
        assert rows.place is not None and Path(rows.place.path) == checkpoint.resolve()
        assert rows.name == "second"
        assert torch.equal(rows.read(7, 250), tensor[7:250])


def test_finds_the_file_behind_a_link_and_a_slice(checkpoint: Path, tmp_path: Path) -> None:
    link = tmp_path / "linked.safetensors"
    link.symlink_to(checkpoint.rename(tmp_path / "blob"))
    part = load_file(link)["third"][100:200]
    with Maps() as maps:
        rows = maps.rows_of(part, "weight")
        assert rows.place is not None and rows.name == "third"
        assert torch.equal(rows.read(0, 100), part)


def test_what_was_written_to_is_read_from_memory(checkpoint: Path) -> None:
    tensors = load_file(checkpoint)
    tensors["second"][3] = 5.0
    with Maps() as maps:
        rows = maps.rows_of(tensors["second"], "weight")
        assert torch.equal(rows.read(0, 10), tensors["second"][:10])
        assert rows.read(3, 4).eq(5.0).all()


def test_a_tensor_of_no_file_and_a_transposed_one_are_read_from_memory(checkpoint: Path) -> None:
    transposed = load_file(checkpoint)["first"].T
    made = torch.arange(12.0).view(4, 3)
    with Maps() as maps:
        for tensor in (made, transposed):
            rows = maps.rows_of(tensor, "weight")
            assert rows.place is None and rows.name == "weight"
            assert torch.equal(rows.read(1, 3), tensor[1:3])


def test_a_file_that_was_cut_off_meanwhile_is_an_error(checkpoint: Path) -> None:
    tensor = load_file(checkpoint)["third"]
    with Maps() as maps:
        rows = maps.rows_of(tensor, "weight")
        assert rows.place is not None
        with checkpoint.open("r+b") as file:
            file.truncate(rows.place.offset + 100)
        with pytest.raises(OSError, match="ends before the tensor does"):
            rows.read(0, 300)


def test_without_the_kernels_maps_everything_is_read_from_memory(checkpoint: Path, tmp_path: Path) -> None:
    tensor = load_file(checkpoint)["second"]
    with Maps(smaps=tmp_path / "not there") as maps:
        assert maps.rows_of(tensor, "weight").place is None


def test_names_only_what_a_safetensors_file_has_at_a_place(checkpoint: Path, tmp_path: Path) -> None:
    tensor = load_file(checkpoint)["first"]
    with Maps() as maps:
        place = maps.rows_of(tensor, "weight").place
    assert place is not None
    assert tensor_at(place._replace(offset=10**9)) is None
    (tmp_path / "other").write_bytes(b"\x05\0\0\0\0\0\0\0hello" + bytes(100))
    assert tensor_at(place._replace(path=str(tmp_path / "other"))) is None
