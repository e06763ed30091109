"""Measure: figures against plain arithmetic, real packages against their real source, and what is refused."""

import hashlib
import math
from pathlib import Path

import numpy as np
import pytest
from checkpoints import SMALL_VOCABULARY
from made_proofs import files_of
from made_reports import a_quality, a_report
from numpy.typing import NDArray

from slmpack.build.build import build_package
from slmpack.build.open_package import open_package
from slmpack.checkpoint.windows import LOG_PROBABILITIES_FILE, REFERENCE_FILE, cut_windows
from slmpack.errors import DataError, QualityError, UsageError
from slmpack.log.log import log_model
from slmpack.machine.json_file import read_json, write_json
from slmpack.machine.store import Manifest, digest_files
from slmpack.prove.measure import CheckedTexts, judge, measure_quality
from slmpack.prove.quality.chat_reference import chat_reference
from slmpack.prove.quality.compare import Compared, compare, require_vocabulary, summarise, window_logits
from slmpack.prove.quality.reference import Reference, source_reference
from slmpack.prove.quality.repetition import Answer, count_new_loops, source_answers
from slmpack.prove.quality.text import CORPUS, checked_waiver, read_text
from slmpack.publish.options import PackageOptions
from slmpack.publish.request import check_request, checked_chats
from slmpack.records import Interface, LoggedModel, Package, Snapshot, Target, digest_of
from slmpack.reports import Quality, QualityPolicy

PINNED = "10e3f9696ac8d88e6ba6557b7db63e5ce3c11efb5ce7e1b1c9439dd2554a07ae"
LOOSE = QualityPolicy(max_perplexity_ratio=1000.0, allow_new_loops=True)
GIB = 1 << 30


def log_softmax(row: list[float]) -> list[float]:
    total = math.log(math.fsum(math.exp(value) for value in row))
    return [value - total for value in row]


def as_stored(logits: NDArray[np.float64]) -> NDArray[np.float16]:
    return np.array([log_softmax(row) for row in logits.tolist()]).astype(np.float16)


def test_figures_are_those_of_plain_arithmetic() -> None:
    random = np.random.default_rng(0)
    source, package = random.normal(0, 3, (5, 7)), random.normal(0, 3, (5, 7)).astype(np.float32)
    following = np.array([0, 3, 6, 1, 1])
    found = compare(as_stored(source), package, following)
    for at in range(5):
        p, q = log_softmax(source[at].tolist()), log_softmax(package[at].tolist())
        assert found.kl[at] == pytest.approx(math.fsum(math.exp(a) * (a - b) for a, b in zip(p, q, strict=True)), 5e-3)
        assert found.loss[at] == pytest.approx(-q[following[at]], 1e-6)
        assert found.source_loss[at] == pytest.approx(-p[following[at]], 2e-3)
        assert found.agreed[at] == float(p.index(max(p)) == q.index(max(q)))


def test_rounding_the_reference_costs_no_quality() -> None:
    logits = np.random.default_rng(1).normal(0, 4, (64, 1000)).astype(np.float32)
    found = compare(as_stored(logits.astype(np.float64)), logits, np.zeros(64, dtype=np.int64))
    assert found.kl.max() < 1e-5
    assert found.agreed.all()


@pytest.mark.slow
def test_a_window_may_fill_the_whole_context(tiny_package: Package, tmp_path: Path) -> None:
    for file in tiny_package.files:
        (tmp_path / file.name).symlink_to(tiny_package.path / file.name)
    config = read_json(tmp_path / "genai_config.json")
    config["model"]["context_length"] = config["search"]["max_length"] = 16
    (tmp_path / "genai_config.json").unlink()
    write_json(tmp_path / "genai_config.json", config)
    logits = window_logits(open_package(tmp_path, "cpu"), tuple(range(100, 116)))
    assert logits.shape == (16, config["model"]["vocab_size"])


def test_a_padded_package_pays_for_what_it_gives_to_padding() -> None:
    source = as_stored(np.zeros((1, 4)))
    harmless = compare(source, np.array([[0, 0, 0, 0, -40]], dtype=np.float32), np.array([2]))
    costly = compare(source, np.array([[0, 0, 0, 0, 2]], dtype=np.float32), np.array([2]))
    assert harmless.kl[0] == pytest.approx(0, abs=1e-9)
    assert costly.kl[0] == pytest.approx(math.log(4 + math.exp(2)) - math.log(4), 1e-3)
    assert (harmless.agreed[0], costly.agreed[0]) == (1.0, 0.0)


def test_padding_of_the_source_that_the_package_lacks_is_no_loss() -> None:
    found = compare(as_stored(np.array([[1.0, 0.0, 2.0]])), np.array([[1, 0]], dtype=np.float32), np.array([0]))
    assert found.kl[0] == pytest.approx(0, abs=1e-5)


def test_a_package_that_lacks_tokens_is_refused() -> None:
    require_vocabulary(tokenizer=100, source=128, package=100)
    with pytest.raises(QualityError, match="logits of 99 tokens; the 100 that the source can say"):
        require_vocabulary(tokenizer=100, source=128, package=99)


def figures_of(refusal: QualityError) -> Quality:
    assert refusal.quality is not None
    return refusal.quality


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_logits_that_are_not_finite_are_refused(value: float) -> None:
    logits = np.zeros((2, 3), dtype=np.float32)
    logits[1, 1] = value
    with pytest.raises(QualityError, match="not finite"):
        compare(as_stored(np.zeros((2, 3))), logits, np.array([0, 0]))


def test_a_perplexity_beyond_all_numbers_is_refused() -> None:
    zeros = np.zeros(2)
    with pytest.raises(QualityError, match="a loss of 800 nats a token"):
        summarise(Compared(zeros, zeros, zeros, np.array([800.0, 800.0])), (), 1.0)


def test_windows_hold_every_token_once_and_all_begin_alike() -> None:
    windows = list(cut_windows(list(range(10, 31)), 6, [1]))
    assert [token for window in windows for token in window[1:]] == list(range(10, 31))
    assert {window[0] for window in windows} == {1}
    assert max(map(len, windows)) == 6
    assert list(cut_windows([5, 6, 7], 2, [])) == [(5, 6)]


def test_what_is_above_the_limit_is_refused_with_its_figures() -> None:
    quality = a_quality(1.36)
    with pytest.raises(
        QualityError, match=r"^perplexity ratio 1\.360; at most 1\.10; use --recipe balanced$"
    ) as caught:
        judge(a_report(quality), "use --recipe balanced")
    assert caught.value.quality == quality


def test_a_ratio_just_above_the_limit_is_not_told_as_the_limit() -> None:
    assert judge(a_report(a_quality(1.10)), "").quality == a_quality(1.10)
    with pytest.raises(QualityError, match=r"perplexity ratio 1\.100400; at most 1\.10"):
        judge(a_report(a_quality(1.1004)), "")


def test_a_new_loop_is_refused_unless_the_policy_allows_it() -> None:
    with pytest.raises(QualityError, match=r"1 of 4 greedy answers loops.*; none"):
        judge(a_report(a_quality(1.01, new_loops=1)), "")
    assert judge(a_report(a_quality(1.01, new_loops=1), allow_new_loops=True), "").waiver is None


def test_a_waiver_is_recorded_only_where_it_was_needed() -> None:
    assert judge(a_report(a_quality(1.36), "a demonstration only"), "").waiver == "a demonstration only"
    assert judge(a_report(a_quality(1.01), "a demonstration only"), "").waiver is None


def test_a_waiver_needs_a_reason() -> None:
    assert checked_waiver(" a  trial\nof speed ") == "a trial of speed"
    for bad in ("", "   ", "yes", "........ ........"):
        with pytest.raises(UsageError, match="a reason of at least 8 letters"):
            checked_waiver(bad)


def test_the_corpus_is_pinned() -> None:
    assert hashlib.sha256(CORPUS.read_bytes()).hexdigest() == PINNED
    assert b"\r" not in CORPUS.read_bytes()
    assert read_text(None) == CORPUS.read_text(encoding="utf-8")


BAD_TEXTS = {
    "short": (b"too short", "9 bytes of text in bad.txt; at least 200 tokens"),
    "blank": (b" \n" * 1000, "0 bytes of text"),
    "latin-1": ("déjà vu ".encode("latin-1") * 100, "byte 1 of bad.txt is not UTF-8"),
    "cut inside a letter": (b"word " * 200 + "é".encode()[:1], "byte 1000 of bad.txt is not UTF-8"),
    "data": (b"word " * 200 + b"\0", "a NUL byte"),
}


@pytest.mark.parametrize("name", BAD_TEXTS)
def test_refuses_a_text_that_is(name: str, tmp_path: Path) -> None:
    content, message = BAD_TEXTS[name]
    (tmp_path / "bad.txt").write_bytes(content)
    with pytest.raises(UsageError, match=message):
        read_text(tmp_path / "bad.txt")


def test_refuses_a_text_that_is_not_there(tmp_path: Path) -> None:
    for path in (tmp_path / "missing.txt", tmp_path):
        with pytest.raises(UsageError, match="a file; name another file with --quality-text"):
            read_text(path)


def test_of_a_long_text_only_the_beginning_is_read(tmp_path: Path) -> None:
    (tmp_path / "long.txt").write_text("x" + "é" * (1 << 20), encoding="utf-8")
    assert read_text(tmp_path / "long.txt") == "x" + "é" * ((1 << 17) - 1)  # not half a letter at the cut


def test_a_text_that_is_another_than_the_one_that_was_checked_is_refused(tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text("The first text. " * 100)
    request = check_request(Target.CPU_INT4, PackageOptions(quality_text=text), None, tmp_path)
    assert request.checked == CheckedTexts(text=digest_of(read_text(text)))
    text.write_text("Another text. " * 100)
    nowhere = LoggedModel.model_construct()  # type: ignore[call-arg]  # the text is read before it
    with pytest.raises(UsageError, match="the text to measure on changed after it was checked"):
        measure_quality(nowhere, QualityPolicy(), tmp_path, text=text, checked=request.checked)


@pytest.mark.slow
def test_chats_that_are_others_than_those_that_were_checked_are_refused(
    tiny_snapshot: Snapshot, tmp_path: Path
) -> None:
    chats = tmp_path / "chats.jsonl"
    chats.write_text('{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}\n')
    checked = checked_chats(str(chats)).digest
    chats.write_text(chats.read_text().replace('"b"', '"c"'))
    with pytest.raises(DataError, match=r"the chats in chats\.jsonl changed after they were checked"):
        chat_reference(tiny_snapshot, chats, tmp_path, checked)


@pytest.mark.slow
def test_refuses_a_text_of_few_tokens(tiny_snapshot: Snapshot, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"a quality text of \d+ tokens; at least 200"):
        source_reference(tiny_snapshot, "a" + " " * 600 + "b", tmp_path)
    assert not (tmp_path / "references").exists()


@pytest.mark.slow
def test_the_reference_is_what_the_source_says_and_is_computed_once(small_snapshot: Snapshot, tmp_path: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    text = read_text(None) * 3
    folder = source_reference(small_snapshot, text, tmp_path)
    reference = Reference.model_validate_json((folder / REFERENCE_FILE).read_text())
    assert sum(map(len, reference.windows)) == 2048
    stored = np.load(folder / LOG_PROBABILITIES_FILE, mmap_mode="r")
    assert stored.shape == (reference.positions, SMALL_VOCABULARY)
    model = AutoModelForCausalLM.from_pretrained(small_snapshot.path, dtype=torch.float32)
    for window, rows in ((reference.windows[0], stored[:511]), (reference.windows[-1], stored[-511:])):
        with torch.inference_mode():
            logits = model(input_ids=torch.tensor([window])).logits[0, :-1]
        steps = np.abs(np.spacing(rows)).astype(np.float32)
        exact = torch.log_softmax(logits, dim=-1).numpy()
        assert (np.abs(exact - rows.astype(np.float32)) / steps).max() < 1.01  # of float16, in which they are kept
    (log,) = (tmp_path / "logs").glob("reference-*")
    before = log.stat().st_mtime_ns
    assert source_reference(small_snapshot, text, tmp_path) == folder
    assert log.stat().st_mtime_ns == before
    assert source_reference(small_snapshot, read_text(None), tmp_path) != folder


def measured(package: Package, workspace: Path, policy: QualityPolicy = LOOSE) -> Quality:
    model = log_model(package, Interface.CHAT, "smollm2", workspace, {})
    quality = measure_quality(model, policy, workspace).quality
    assert quality is not None
    return quality


@pytest.mark.slow
def test_the_source_runs_without_a_copy_of_its_weights(smollm2: Snapshot, workspace: Path) -> None:
    facts = Manifest.read(source_reference(smollm2, read_text(None), workspace)).facts
    assert GIB // 4 < int(facts["peak_private_bytes"] or 0) < smollm2.size_bytes + GIB // 2  # torch alone is 0.4


def altered(package: Package, folder: Path, change: str) -> Package:
    """Copy a package, change its weights with one of the functions below, and describe the copy."""
    import onnx

    for file in package.files:
        (folder / file.name).parent.mkdir(parents=True, exist_ok=True)
        (folder / file.name).write_bytes((package.path / file.name).read_bytes())
    graph = onnx.load(folder / "model.onnx", load_external_data=False).graph
    tensors = {tensor.name: tensor for tensor in graph.initializer}
    data = np.memmap(folder / "model.onnx.data", mode="r+")
    for node in graph.node:
        if node.op_type == "MatMulNBits":
            codes, scales = (stored(data, tensors[name]) for name in node.input[1:3])
            if change == "coarser":
                make_coarser(codes.reshape(-1, codes.shape[-1]), scales.view(np.float32).reshape(codes.shape[:2]))
            elif "layers.7/mlp/down_proj" in node.name:
                np.random.default_rng(0).shuffle(codes)
    data.flush()
    return package.model_copy(update={"path": folder, "files": digest_files(folder, "test"), "digest": change})


def stored(data: NDArray[np.uint8], tensor: object) -> NDArray[np.uint8]:
    """Return a view of a tensor's bytes in its external data file, in its own shape if they are bytes."""
    place = {entry.key: entry.value for entry in tensor.external_data}  # type: ignore[attr-defined]
    offset, length = int(place["offset"]), int(place["length"])
    view = data[offset : offset + length]
    shape = tuple(tensor.dims)  # type: ignore[attr-defined]
    return view.reshape(shape) if math.prod(shape) == length else view


def make_coarser(codes: NDArray[np.uint8], scales: NDArray[np.float32]) -> None:
    """Quantise 4-bit weights anew with one scale a 128 of a row instead of one a 32, in place.

    `codes` `[rows * blocks, 16]`, low half first, zero point 8; `scales` `[rows, blocks]`.
    """
    rows, blocks = scales.shape
    values = (np.stack([codes & 15, codes >> 4], axis=-1).reshape(rows, blocks, 32).astype(np.float32) - 8) * scales[
        ..., None
    ]
    for first in range(0, blocks, 4):
        part = slice(first, first + 4)
        flat = values[:, part].reshape(rows, -1)
        largest = flat[np.arange(rows), np.abs(flat).argmax(axis=1)]
        scales[:, part] = (largest / -8)[:, None]
    divisor = np.where(scales == 0, 1, scales)[..., None]
    whole = np.clip(np.rint(values / divisor) + 8, 0, 15).astype(np.uint8).reshape(rows * blocks, 16, 2)
    codes[:] = whole[..., 0] | (whole[..., 1] << 4)


@pytest.mark.slow
def test_one_layer_of_shuffled_weights_is_refused_by_its_perplexity(
    smollm2_package: Package, workspace: Path, store: Path, tmp_path: Path
) -> None:
    package = altered(smollm2_package, tmp_path / "altered", "shuffled")
    policy = QualityPolicy(max_perplexity_ratio=1.5, allow_new_loops=True)  # the package that it was made of passes
    with pytest.raises(QualityError, match=r"perplexity ratio .*; at most 1\.50; use a dearer --recipe") as caught:
        measured(package, workspace, policy)
    assert figures_of(caught.value).perplexity_ratio > 1.5


@pytest.mark.slow
def test_four_bits_in_blocks_of_128_are_refused(
    smollm2_package: Package, workspace: Path, store: Path, tmp_path: Path
) -> None:
    with pytest.raises(QualityError, match="perplexity ratio") as caught:
        measured(altered(smollm2_package, tmp_path / "altered", "coarser"), workspace, QualityPolicy())
    assert figures_of(caught.value).perplexity_ratio > 1.5


@pytest.mark.slow
def test_only_a_loop_that_the_source_does_not_have_is_new(smollm2: Snapshot, workspace: Path) -> None:
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(smollm2.path / "tokenizer.json"))
    chat = "<|im_start|>user\nWhat is the capital of France?<|im_end|>\n<|im_start|>assistant\n"
    prompts = [tuple(tokenizer.encode(text).ids) for text in (chat, " one two three" * 60)]
    looping, honest = Answer(ids=(5,) * 96, ended=False), Answer(ids=(5, 6), ended=True)
    assert count_new_loops([looping, looping], prompts, smollm2, "float32", workspace) == 1
    assert count_new_loops([honest, honest], prompts, smollm2, "float32", workspace) == 0
    answer, loop = source_answers(tuple(prompts), smollm2, "float32", workspace)  # of one batch, one prompt far shorter
    assert (answer.ended, loop.ended) == (True, False)
    assert "Paris" in tokenizer.decode(answer.ids)


@pytest.mark.slow
def test_the_transformers_target_must_be_the_snapshots_own_bytes(
    small_snapshot: Snapshot, workspace: Path, store: Path
) -> None:
    package = build_package(small_snapshot, Target.TRANSFORMERS, None, workspace)
    model = log_model(package, Interface.CHAT, "small-phi3", workspace, {})
    report = measure_quality(model, QualityPolicy(), workspace)
    assert report.quality is None
    assert [check.name for check in report.checks] == ["weights"]
    (weights,) = files_of(model.model_id).rglob("*.safetensors")
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.unlink()  # the name here, not the snapshot's file
    weights.write_bytes(content)
    with pytest.raises(QualityError, match=r"model\.safetensors in models:/m-.* has other bytes; the snapshot's own"):
        measure_quality(model, QualityPolicy(), workspace, waiver="a waiver is no excuse for this")


@pytest.mark.slow
def test_what_is_measured_is_what_was_built(small_package: Package, workspace: Path, store: Path) -> None:
    model = log_model(small_package, Interface.CHAT, "small-phi3", workspace, {})
    (data,) = files_of(model.model_id).rglob("model.onnx.data")
    content = bytearray(data.read_bytes())
    content[len(content) // 2] ^= 255
    data.unlink()
    data.write_bytes(content)
    with pytest.raises(QualityError, match=r"model\.onnx\.data in .* has other bytes; the files that were built"):
        measure_quality(model, LOOSE, workspace)
