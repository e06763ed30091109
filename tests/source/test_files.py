"""Source files: a snapshot takes regular files of the folder, and follows no link out of it."""

import os
from pathlib import Path

import pytest

from slmpack.errors import SourceError
from slmpack.source.files import adapter_files, checkpoint_files, require_small_sizes


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    path = tmp_path / "model"
    path.mkdir()
    (path / "config.json").write_text("{}")
    (path / "model.safetensors").write_bytes(b"weights")
    return path


def as_in_the_hub_cache(folder: Path) -> Path:
    """Move the files to blobs, as the Hub's client keeps them; return the folder of links to them."""
    snapshot = folder.parent / "models--org--name" / "snapshots" / ("0" * 40)
    (snapshot / "LICENSES").mkdir(parents=True)
    (snapshot.parents[1] / "blobs").mkdir()
    for path in folder.iterdir():
        path.rename(snapshot.parents[1] / "blobs" / path.name)
        (snapshot / path.name).symlink_to(f"../../blobs/{path.name}")
    (snapshot.parents[1] / "blobs" / "mit").write_text("MIT License")
    (snapshot / "LICENSES" / "MIT.txt").symlink_to("../../../blobs/mit")
    return snapshot


def test_takes_the_links_of_the_hub_clients_cache(folder: Path) -> None:
    snapshot = as_in_the_hub_cache(folder)
    assert list(checkpoint_files(snapshot)) == ["LICENSES/MIT.txt", "config.json", "model.safetensors"]


def test_takes_a_link_to_a_file_of_the_same_folder(folder: Path) -> None:
    (folder / "licence").mkdir()
    (folder / "licence" / "text").write_text("MIT License")
    (folder / "LICENSE").symlink_to("licence/text")
    assert "LICENSE" in checkpoint_files(folder)


def test_a_folder_that_is_a_link_itself_is_what_it_points_to(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(folder)
    assert list(checkpoint_files(tmp_path / "link")) == ["config.json", "model.safetensors"]


def test_a_link_out_of_a_snapshot_of_the_hub_client_is_refused(folder: Path, tmp_path: Path) -> None:
    snapshot = as_in_the_hub_cache(folder)
    (tmp_path / "key").write_text("PRIVATE KEY")
    (snapshot / "LICENSE").symlink_to(tmp_path / "key")
    with pytest.raises(SourceError, match=f"LICENSE leads to {tmp_path / 'key'}"):
        checkpoint_files(snapshot)


@pytest.mark.parametrize("name", ["LICENSE", "adapter_config.json", "adapter_model.safetensors"])
def test_no_link_leaves_the_folder_of_an_adapter(folder: Path, name: str) -> None:
    (folder.parent / "key").write_text("PRIVATE KEY")
    (folder / name).symlink_to("../key")
    with pytest.raises(SourceError, match=f"{name} leads to"):
        adapter_files(folder)


def test_files_that_no_snapshot_takes_may_be_anything(folder: Path) -> None:
    os.mkfifo(folder / "pipe")
    (folder / "notes.txt").symlink_to("/etc/passwd")
    (folder / "consolidated.safetensors").symlink_to("/etc/passwd")
    (folder / "LICENSE").symlink_to("nowhere")
    assert list(checkpoint_files(folder)) == ["config.json", "model.safetensors"]


def test_a_file_may_lie_elsewhere_in_the_model_that_it_is_part_of(folder: Path) -> None:
    (folder.parent / "tokenizer.json").write_text("{}")
    (folder / "tokenizer.json").symlink_to("../tokenizer.json")
    assert "tokenizer.json" in checkpoint_files(folder, inside=folder.parent)


def test_sizes_are_known_before_a_download() -> None:
    require_small_sizes({"config.json": 1000, "model.safetensors": 10**12, "tokenizer.json": 10**8}, "org/name")
    with pytest.raises(SourceError, match=r"README\.md of org/name is not read, since it has 20,000,000,000 bytes"):
        require_small_sizes({"README.md": 20 * 10**9}, "org/name")
