"""Memory: what cgroups leave of a machine's, what the stock builder takes, and the refusal of what does not fit."""

import os
from pathlib import Path

import psutil
import pytest

from slmpack.build.build import build_package
from slmpack.build.genai.memory import predicted_stock_peak
from slmpack.checkpoint.headers import Tensor, read_weights
from slmpack.errors import RecipeError
from slmpack.machine.memory import CGROUPS, available_bytes, require_memory
from slmpack.records import Recipe, Snapshot, Target

MIB = 1 << 20
NO_LIMIT_V1 = 9223372036854771712


def write_v2(folder: Path, limit: str, usage: int, cache: int = 0) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "memory.max").write_text(f"{limit}\n")
    (folder / "memory.current").write_text(f"{usage}\n")
    (folder / "memory.stat").write_text(f"anon {usage - cache}\ninactive_file {cache - MIB}\nactive_file {MIB}\n")


def write_v1(folder: Path, limit: int, usage: int, cache: int) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "memory.limit_in_bytes").write_text(f"{limit}\n")
    (folder / "memory.usage_in_bytes").write_text(f"{usage}\n")
    own = "cache 7\ninactive_file 1\nactive_file 2\n"
    (folder / "memory.stat").write_text(f"{own}total_inactive_file {cache - MIB}\ntotal_active_file {MIB}\n")


def members(tmp_path: Path, *lines: str) -> Path:
    (tmp_path / "cgroup").write_text("".join(f"{line}\n" for line in lines))
    return tmp_path / "cgroup"


def about_all() -> int:
    """What the machine has, less what a neighbour may take between two looks."""
    return int(psutil.virtual_memory().available) // 2


def test_a_cgroup_leaves_its_limit_less_its_usage_but_its_page_cache(tmp_path: Path) -> None:
    root = tmp_path / "fs"
    write_v2(root / "a.slice" / "b.scope", str(100 * MIB), usage=90 * MIB, cache=30 * MIB)
    assert available_bytes(members(tmp_path, "0::/a.slice/b.scope"), root) == 40 * MIB


@pytest.mark.parametrize(("own", "parent"), [(str(100 * MIB), str(60 * MIB)), ("max", str(60 * MIB))])
def test_the_tightest_of_the_enclosing_cgroups_counts(tmp_path: Path, own: str, parent: str) -> None:
    root = tmp_path / "fs"
    write_v2(root / "a" / "b", own, usage=10 * MIB, cache=MIB)
    write_v2(root / "a", parent, usage=20 * MIB, cache=MIB)
    assert available_bytes(members(tmp_path, "0::/a/b"), root) == 41 * MIB


def test_a_container_sees_its_own_cgroup_as_the_root(tmp_path: Path) -> None:
    write_v2(tmp_path / "v2", str(50 * MIB), usage=20 * MIB, cache=10 * MIB)
    assert available_bytes(members(tmp_path, "0::/"), tmp_path / "v2") == 40 * MIB
    write_v1(tmp_path / "v1" / "memory", 50 * MIB, usage=20 * MIB, cache=10 * MIB)
    inside = members(tmp_path, "5:cpu,cpuacct:/docker/0a1b", "4:memory:/docker/0a1b", "0::/../up")
    assert available_bytes(inside, tmp_path / "v1") == 40 * MIB


def test_version_1_without_a_limit_leaves_what_the_machine_has(tmp_path: Path) -> None:
    root = tmp_path / "fs"
    write_v1(root / "memory", NO_LIMIT_V1, usage=MIB, cache=MIB)
    write_v1(root / "memory" / "a", NO_LIMIT_V1, usage=MIB, cache=MIB)
    assert available_bytes(members(tmp_path, "9:name=systemd:/a", "4:memory:/a"), root) > about_all()


def test_version_1_counts_the_cache_of_the_cgroups_inside(tmp_path: Path) -> None:
    root = tmp_path / "fs"
    write_v1(root / "memory" / "a", 100 * MIB, usage=90 * MIB, cache=50 * MIB)
    assert available_bytes(members(tmp_path, "4:memory:/a"), root) == 60 * MIB


def test_a_cgroup_over_its_limit_leaves_nothing(tmp_path: Path) -> None:
    write_v2(tmp_path / "fs" / "a", str(50 * MIB), usage=60 * MIB, cache=MIB)
    assert available_bytes(members(tmp_path, "0::/a"), tmp_path / "fs") == 0


def test_without_cgroups_the_machine_is_all_there_is(tmp_path: Path) -> None:
    assert available_bytes(tmp_path / "nothing", tmp_path) > about_all()
    assert available_bytes(members(tmp_path, "", "nonsense", "0::/gone"), tmp_path) > about_all()


def test_reads_what_the_kernel_says_of_a_real_cgroup(tmp_path: Path) -> None:
    version_1 = (CGROUPS / "memory").is_dir()
    group = (CGROUPS / "memory" if version_1 else CGROUPS) / f"slmpack-test-{os.getpid()}"
    try:
        group.mkdir()
    except OSError as error:
        pytest.skip(f"no cgroup can be made here: {error}")
    try:
        (group / ("memory.limit_in_bytes" if version_1 else "memory.max")).write_text(str(64 * MIB))
        line = f"4:memory:/{group.name}" if version_1 else f"0::/{group.name}"
        assert 63 * MIB <= available_bytes(members(tmp_path, line)) <= 64 * MIB  # the kernel takes a little itself
    except OSError as error:
        pytest.skip(f"no cgroup can be limited here: {error}")
    finally:
        group.rmdir()


def test_refuses_what_does_not_fit_with_both_figures() -> None:
    require_memory(100, 100, "the build")
    with pytest.raises(RecipeError) as refused:
        require_memory(19_130_000_000, 12_190_000_000, "the stock builder for recipe balanced")
    assert str(refused.value) == (
        "the stock builder for recipe balanced needs about 19.2 GB of memory; 12.1 GB are free here; "
        "use --recipe small, which streams, or a machine with more memory"
    )


def test_what_barely_does_not_fit_does_not_look_as_if_it_did() -> None:
    with pytest.raises(RecipeError, match=r"about 12\.1 GB of memory; 12\.0 GB are free"):
        require_memory(12_050_000_001, 12_050_000_000, "the build")


def phi3_shape(layers: int) -> dict[str, Tensor]:
    """The tensors of Phi-3-mini with that many layers and a vocabulary of 49,152."""

    def matrix(*shape: int) -> Tensor:
        return Tensor(dtype="BF16", shape=shape)

    layer = (matrix(9216, 3072), matrix(3072, 3072), matrix(16384, 3072), matrix(3072, 8192))
    ends = {"model.embed_tokens.weight": matrix(49152, 3072), "lm_head.weight": matrix(49152, 3072)}
    return ends | {f"model.layers.{at}.{part}": one for at in range(layers) for part, one in enumerate(layer)}


@pytest.mark.parametrize(
    ("layers", "bits", "block_size", "algo_config", "measured"),
    [
        (2, 4, 32, "default", 3.80),
        (2, 4, 32, "k_quant_mixed", 8.90),
        (2, 4, 16, "k_quant_mixed", 9.31),
        (4, 4, 32, "k_quant_mixed", 10.12),
        (4, 8, 128, "default", 5.26),
        (8, 4, 32, "default", 7.13),
        (8, 8, 32, "default", 7.99),
        (8, 8, 128, "default", 7.88),
    ],
)
def test_the_prediction_is_near_what_was_measured_and_never_below(
    layers: int, bits: int, block_size: int, algo_config: str, measured: float
) -> None:
    predicted = predicted_stock_peak(phi3_shape(layers), bits, block_size, algo_config)
    assert measured * 1e9 <= predicted <= 1.25 * measured * 1e9


@pytest.mark.slow
def test_a_stock_build_stays_below_its_prediction(tiny_snapshot: Snapshot, workspace: Path) -> None:
    package = build_package(tiny_snapshot, Target.CPU_INT4, Recipe.STOCK_MIXED, workspace)
    predicted = predicted_stock_peak(read_weights(tiny_snapshot.path), 4, 32, "k_quant_mixed")
    assert 0.5 * predicted < package.build_peak_bytes <= predicted + tiny_snapshot.size_bytes
