"""What is done to every family of `families`: build, run, and compare with transformers."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from building import methods_put_back
from families import FAMILIES, Family, Found, write_checkpoint, write_exported
from numpy.typing import NDArray

from slmpack.build.build import SampleDecodeRequest, build_package, run_sample_decode
from slmpack.build.genai.run_builder import BuildRequest, run_builder
from slmpack.build.optimum.export import GRAPH, export_graph
from slmpack.build.optimum.genai_config import PackageRequest, write_package
from slmpack.build.optimum.quantise_graph import GraphOptions
from slmpack.checkpoint.tokenizer import read_tokenizer
from slmpack.checkpoint.windows import TEXT_FILE
from slmpack.machine.json_file import read_json
from slmpack.machine.store import sha256_of
from slmpack.prove.parity.check import ParityRequest, parity_of
from slmpack.quantise.calibrate import BUILT_IN_TEXT, CalibrationRequest, run_calibration
from slmpack.quantise.prepare import Prepared
from slmpack.records import Recipe, Record, Target, digest_of
from slmpack.source.fetch import fetch_snapshot
from slmpack.source.resolve import resolve_source
from slmpack.targets import PLAIN, RECIPES, BuilderOptions

Floats = NDArray[np.floating[Any]]

NEW_TOKENS = 24
PROMPT_TOKENS = (12, 60)  # the second is longer than any sliding window, and the answer to the first crosses it
FIRST_ID, LAST_ID = 300, 690  # text, of every tokenizer
# Both round in float32, each in its own way: a package may be off from transformers in float64 by this many times what
# transformers in float32 is. Measured: 0.5 to 2.4; with norms' epsilon at 1e-6 in the place of 1e-5, 15 to 43.
ROUNDING = 4.0
LEAST_LEAD = 4e-4  # of the likeliest token before the next, as a share of the logits' standard deviation
# Correlation of logits. Random weights are hard to quantise: 4 bits keep 0.65 to 0.99, another model has 0 to 0.35.
SAME_IN_FP16, SAME_IN_INT4 = 0.99, 0.5
FP32 = PLAIN[Target.CUDA_FP16].model_copy(update={"precision": "fp32", "execution_provider": "cpu"})  # no target


class Where(Record):
    """An empty folder."""

    folder: Path


class Builds(Record):
    """What became of each family, by its name."""

    found: dict[str, Found]


def build_families(where: Where) -> Builds:
    """Run in a child."""
    import torch

    torch.set_num_threads(1)
    compared: set[str] = set()
    return Builds(
        found={
            name: build_family(family, where.folder / str(index), compared)
            for index, (name, family) in enumerate(FAMILIES.items())
        }
    )


def build_family(family: Family, folder: Path, compared: set[str]) -> Found:
    checkpoint = folder / "checkpoint"
    write_checkpoint(family, checkpoint)
    answers = answers_of(checkpoint)
    calibration = calibrated(checkpoint, folder / "calibration")
    small, balanced = (RECIPES[Target.CUDA_INT4][recipe] for recipe in (Recipe.STOCK_SMALL, Recipe.BALANCED))

    def build(name: str, options: BuilderOptions) -> Path:
        return built(checkpoint, options, calibration, folder / name)

    def float32() -> None:
        answers_the_same(build("float32", FP32), answers)

    def cpu_int4() -> None:
        package = build("cpu-int4", RECIPES[Target.CPU_INT4][Recipe.SMALL])
        resembles(package, answers, SAME_IN_INT4)
        run_sample_decode(SampleDecodeRequest(package=package))
        reads_as_source(package, checkpoint, compared)

    def cuda_int4() -> None:
        resembles(build("cuda-int4", small), answers, SAME_IN_INT4)
        resembles(build("cuda-int4-zeros", balanced), answers, SAME_IN_INT4)

    def cuda_fp16() -> None:
        resembles(build("cuda-fp16", PLAIN[Target.CUDA_FP16]), answers, SAME_IN_FP16)

    return Found(
        float32=wrong(float32), cpu_int4=wrong(cpu_int4), cuda_int4=wrong(cuda_int4), cuda_fp16=wrong(cuda_fp16)
    )


def wrong(step: Callable[[], None]) -> str:
    """Return what went wrong in one line, "" if nothing did."""
    import traceback

    try:
        step()
    except Exception as error:
        traceback.print_exc()
        return " ".join(str(error).split()) or type(error).__name__
    return ""


# ---------------------------------------------------------------------------------------------- transformers


@dataclass(frozen=True)
class Answer:
    """What transformers says to a prompt, greedily and without ever ending its turn.

    Attributes:
        ids: of the prompt and of the answer.
        logits: computed in float64, `[prompt + answer, vocabulary]`, as the whole is read.
        rounding: largest difference of those that transformers computes in float32.
    """

    prompt: list[int]
    ids: list[int]
    logits: Floats
    rounding: float


def prompts() -> list[list[int]]:
    generator = np.random.default_rng(0)
    return [generator.integers(FIRST_ID, LAST_ID, count).tolist() for count in PROMPT_TOKENS]


def answers_of(checkpoint: Path) -> list[Answer]:
    import torch
    from transformers import AutoModelForCausalLM

    exact, usual = (
        AutoModelForCausalLM.from_pretrained(checkpoint, dtype=dtype, attn_implementation="eager")
        for dtype in (torch.float64, torch.float32)
    )
    return [_answer_of(exact, usual, prompt) for prompt in prompts()]


def _answer_of(exact: Any, usual: Any, prompt: list[int]) -> Answer:
    """Answer without a cache; fail where the weights are no good for a comparison."""
    end, ids = exact.config.eos_token_id, list(prompt)
    for _ in range(NEW_TOKENS):
        last = _logits(usual, ids)[-1]
        last[end] = last.min()
        second, first = np.sort(last)[-2:]
        assert first - second > LEAST_LEAD * last.std(), "two tokens as likely: take another seed"
        ids.append(int(last.argmax()))
    assert len(set(ids[len(prompt) :])) >= 8, "an answer that repeats itself: take another seed"
    logits = _logits(exact, ids)
    return Answer(prompt, ids, logits, rounding=float(np.abs(_logits(usual, ids) - logits).max()))


def _logits(model: Any, ids: list[int]) -> Floats:
    import torch

    with torch.no_grad():
        logits: Floats = model(torch.tensor([ids])).logits[0].double().numpy()
    return logits


# ---------------------------------------------------------------------------------------------- the builder


def calibrated(checkpoint: Path, into: Path) -> Path:
    into.mkdir()
    (into / TEXT_FILE).write_text(BUILT_IN_TEXT, encoding="utf-8")
    reading = CalibrationRequest(
        snapshot=checkpoint, dtype="bfloat16", context_length=256, text_tokens=256, random_tokens=256, into=into
    )
    run_calibration(reading)
    return into


def built(checkpoint: Path, options: BuilderOptions, calibration: Path, into: Path) -> Path:
    import onnxruntime_genai.models.builder  # noqa: F401 - its classes are on the path from then on

    into.mkdir()
    config = read_json(checkpoint / "config.json")
    request = BuildRequest.model_construct(  # not checked, since float32 is no precision of ours
        snapshot=checkpoint, architecture=config["architectures"][0], layers=config["num_hidden_layers"],
        options=options, streamed=options.quantises and options is not FP32,
        prepared=Prepared(calibration=calibration if options.weighted else None), into=into,
    )  # fmt: skip
    with methods_put_back():
        done = run_builder(request)
    assert done.unsupported_reason is None, done.unsupported_reason
    return into


# ---------------------------------------------------------------------------------------------- the text files


def reads_as_source(package: Path, checkpoint: Path, compared: set[str]) -> None:
    """Compare how both read text, unless all that this depends on has been compared: families share tokenizers."""
    if (key := digest_of(text_files(package, checkpoint))) not in compared:
        parity_of(ParityRequest(package=package, snapshot=checkpoint))
        compared.add(key)


def text_files(package: Path, checkpoint: Path) -> list[Any]:
    """Return what `parity` depends on: the package's text files, and the source's tokenizer as transformers has it."""
    source, config = read_tokenizer(checkpoint), read_json(package / "genai_config.json")["model"]
    files = sorted(path for path in package.iterdir() if not path.name.startswith(("model.onnx", "genai_config")))
    return [
        {key: value for key, value in config.items() if key not in ("decoder", "type")},
        [(path.name, sha256_of(path)) for path in files],
        [source.backend_tokenizer.to_str(), source.split_special_tokens, source.special_tokens_map],
        [
            source.chat_template,
            sha256_of(checkpoint / "tokenizer.json"),
            sha256_of(checkpoint / "generation_config.json"),
        ],
        read_json(checkpoint / "config.json").get("eos_token_id"),
    ]


# ---------------------------------------------------------------------------------------------- the runtime


def answers_the_same(package: Path, answers: Sequence[Answer]) -> None:
    for answer in answers:
        ids, logits = run(package, answer)
        assert ids == answer.ids, f"other ids than transformers: {ids}, not {answer.ids}"
        times = float(np.abs(logits - answer.logits).max()) / answer.rounding
        assert times < ROUNDING, f"logits are off by {times:.0f} times what rounding makes of them"


def resembles(package: Path, answers: Sequence[Answer], least: float) -> None:
    """Feed it transformers' answers, and compare the logits of all positions."""
    for answer in answers:
        _, logits = run(package, answer, fed=True)
        assert np.isfinite(logits).all(), "logits that are not finite"
        found = float(np.corrcoef(logits.ravel(), answer.logits.ravel())[0, 1])
        assert found > least, f"its logits have a correlation of {found:.2f} with the source's"


def run(package: Path, answer: Answer, *, fed: bool = False) -> tuple[list[int], Floats]:
    """Prefill the prompt and decode as many tokens as transformers did, on the CPU whatever the package is for.

    Args:
        fed: decode transformers' tokens, not those that are likeliest here.

    Returns:
        All ids, and the logits, float32 `[ids, vocabulary]`.
    """
    import onnxruntime_genai as og

    config = og.Config(str(package))
    config.clear_providers()
    model = og.Model(config)
    parameters = og.GeneratorParams(model)
    parameters.set_search_options(max_length=len(answer.ids) + 1, min_length=len(answer.ids) + 1)
    generator = og.Generator(model, parameters)
    generator.append_tokens(answer.prompt)
    rows = [np.array(generator.get_output("logits"))[0].astype(np.float32)]
    for token in answer.ids[len(answer.prompt) :]:
        if fed:
            generator.append_tokens([token])
        else:
            generator.generate_next_token()
            generator.get_logits()
        rows.append(np.array(generator.get_output("logits"))[0].astype(np.float32))
    return [int(token) for token in generator.get_sequence(0)], np.concatenate(rows)


# ---------------------------------------------------------------------------------------------- optimum


def export_family(name: str, folder: Path, workspace: Path) -> Found:
    """Build one that the builder does not know, as the product does; every step has a child of its own."""
    write_exported(name, folder / "checkpoint")
    snapshot = fetch_snapshot(resolve_source(str(folder / "checkpoint")), workspace)
    answers = answers_of(folder / "checkpoint")

    def float32() -> None:
        into = folder / "float32"
        into.mkdir()
        request = PackageRequest(
            graph=export_graph(snapshot, workspace) / GRAPH, snapshot=snapshot.path, layers=snapshot.layers,
            context_length=snapshot.context_length, options=GraphOptions(bits=None), into=into,
        )  # fmt: skip
        write_package(request)
        answers_the_same(into, answers)

    def cpu_int4() -> None:
        package = build_package(snapshot, Target.CPU_INT4, Recipe.SMALL, workspace)
        resembles(package.path, answers, SAME_IN_INT4)
        parity_of(ParityRequest(package=package.path, snapshot=snapshot.path))

    return Found(float32=wrong(float32), cpu_int4=wrong(cpu_int4), cuda_int4=None, cuda_fp16=None)
