"""Measure: how much of its source a logged package keeps, position by position, judged by a policy.

    snapshot --transformers, once-----> log-probabilities -+-> perplexity ratio, KL, top-1 agreement -+
    logged model --its package, by URI--> logits ----------+                                          +-policy-> report
                                          greedy answers ---> new loops ------------------------------+

Both models are fed the same token ids, so that a difference is one of weights and arithmetic.
"""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from slmpack.build.genai.memory import FLOAT32_BYTES
from slmpack.checkpoint.windows import REFERENCE_FILE, dtype_of
from slmpack.errors import QualityError, UsageError
from slmpack.figures import limit_shown, ratio_shown
from slmpack.log.artifacts import artifacts_of
from slmpack.log.chat_artifacts import fetch_data
from slmpack.machine.child import run_in_child
from slmpack.machine.cores import share_of_cores, threads_of_children
from slmpack.machine.hardware import device_of, provider_here
from slmpack.machine.limits import limit_seconds
from slmpack.machine.memory import available_bytes
from slmpack.machine.private import folder_in
from slmpack.machine.side_by_side import Job
from slmpack.machine.store import digest_files, log_folder
from slmpack.prove.quality.chat_reference import chat_reference
from slmpack.prove.quality.compare import ComparisonRequest, run_package
from slmpack.prove.quality.reference import PROMPTS, Reference, source_reference
from slmpack.prove.quality.repetition import count_new_loops
from slmpack.prove.quality.text import checked_waiver, read_text
from slmpack.records import LoggedModel, Record, Snapshot, Target, digest_of
from slmpack.reports import CHAT_RATIO, RATIO, Check, Quality, QualityPolicy, QualityReport
from slmpack.source.mlflow_errors import final_errors

logger = logging.getLogger(__name__)

MEASURE_LIMIT_SECONDS = 2 * 3600.0
SOURCES_BESIDE = 3  # the source in float32, and as much twice for the builder
FREE_BESIDE_BYTES = 2_000_000_000  # for the libraries of both, and others on the machine
ADVICE = "use a dearer --recipe or --waive-quality REASON"


class CheckedTexts(Record):
    """Digests of what the quality is to be measured on, as it was when the run began.

    Attributes:
        chats: over the chats' own digests, sorted; None: there are none, or MLflow keeps them as they are.
    """

    text: str
    chats: str | None = None


def measure_quality(
    model: LoggedModel,
    policy: QualityPolicy,
    workspace: Path,
    *,
    text: Path | None = None,
    chats: str | None = None,
    waiver: str | None = None,
    advice: str = ADVICE,
    checked: CheckedTexts | None = None,
) -> QualityReport:
    """Compare the logged model's package with its source; target `transformers` must be its very bytes.

    Args:
        text: what to read instead of the built-in corpus: UTF-8, its first 2,048 tokens.
        chats: whose answers are measured as well: a path, or an artifact in MLflow.
        waiver: why to publish even below the policy.
        advice: what to do about a refusal, for the error.
        checked: what was read of `text` and `chats` when the run began; None: anything will do.

    Raises:
        QualityError: the package lost more than `policy` allows and there is no waiver (then with its `quality`), its
            logits are not finite, its bytes are others than those that were built, or its run failed.
        UsageError: a waiver without a reason, or a text that is too short, not UTF-8, or other than `checked`.
        DataError: the chats are gone or other than `checked`, or a line of them is none.
        SourceError: a file of the source changed while it ran.
        TrainError: the chats cannot be read with the source's template.
    """
    waiver = None if waiver is None else checked_waiver(waiver)
    content = read_text(text)
    if checked is not None and digest_of(content) != checked.text:
        raise UsageError("the text to measure on changed after it was checked", "a file at rest", "start again")
    with _logged_folder(model, workspace) as folder:
        same = _check_bytes(model, folder)
        if model.package.target is Target.TRANSFORMERS:
            return QualityReport(model=model, quality=None, policy=policy, checks=(same,))
        reference = source_reference(model.package.snapshot, content, workspace)
        provider = provider_here(model.package.target)
        chat_reference = None if chats is None else _chat_reference(model.package.snapshot, chats, workspace, checked)
        run = ComparisonRequest(package=folder, reference=reference, chats=chat_reference, provider=provider)
        quality = _measure(model, run, workspace)
    read = "the built-in text" if text is None else "a text of the user's"
    checks: tuple[Check, ...] = (same, Check(name="text", found=f"{quality.tokens} positions of {read}"))
    if quality.chats is not None:
        found = f"{quality.chats.tokens} tokens of answers in {quality.chats.chats} chats"
        checks = (*checks, Check(name="chats", found=found))
    measured = QualityReport(
        model=model, quality=quality, policy=policy, checks=checks, waiver=waiver, device=device_of(provider)
    )
    return judge(measured, advice)


def read_source_beside(
    snapshot: Snapshot,
    workspace: Path,
    *,
    text: Path | None = None,
    chats: str | None = None,
    checked: CheckedTexts | None = None,
) -> Job[None] | None:
    """Let the source read what `measure_quality` holds its package against, while that is built.

    An error of it is not raised here: `measure_quality` runs the source again, and raises it.

    Args:
        text, chats, checked: those of `measure_quality`.

    Returns:
        The job; None where there is not memory enough for both: the source follows when its package is measured.
    """
    if available_bytes() < SOURCES_BESIDE * FLOAT32_BYTES * snapshot.parameters + FREE_BESIDE_BYTES:
        return None

    def read() -> None:
        with threads_of_children(max(1, share_of_cores() // 2)):
            source_reference(snapshot, read_text(text), workspace)
            if chats is not None:
                _chat_reference(snapshot, chats, workspace, checked)

    return Job(read)


@contextmanager
def _logged_folder(model: LoggedModel, workspace: Path) -> Iterator[Path]:
    """Yield the folder of the package's files in the logged model: in place, or fetched and then removed."""
    inside = "model" if model.package.target is Target.TRANSFORMERS else "artifacts/package"
    scratch = folder_in(workspace, "scratch")
    with TemporaryDirectory(prefix="measure-", dir=scratch) as fetched:
        with final_errors(QualityError, f"to read {model.uri}"):
            folder = artifacts_of(model).path_of(inside, Path(fetched))
        yield folder


def _check_bytes(model: LoggedModel, folder: Path) -> Check:
    """Check that the measured files are those that were built; for `transformers` the weights are the snapshot's."""
    is_source = model.package.target is Target.TRANSFORMERS
    weights = (".safetensors",) if is_source else ("",)
    expected = {file.name: file for file in model.package.files if file.name.endswith(weights)}
    found = {file.name: file for file in digest_files(folder, "measure") if file.name.endswith(weights)}
    found = found if is_source else {name: file for name, file in found.items() if name in expected}
    for name in sorted(expected.keys() | found.keys()):
        if expected.get(name) != found.get(name):
            what = "is missing" if name not in found else "was added" if name not in expected else "has other bytes"
            whole = "the snapshot's own weights" if is_source else "the files that were built"
            raise QualityError(f"{name} in {model.uri} {what}", whole, "log the model again")
    return Check(name="weights", found=f"sha256 of {len(expected)} files")


def _chat_reference(snapshot: Snapshot, chats: str, workspace: Path, checked: CheckedTexts | None) -> Path:
    scratch = workspace / "scratch"
    with TemporaryDirectory(prefix="chats-", dir=scratch) as folder:
        return chat_reference(snapshot, fetch_data(chats, Path(folder)), workspace, checked.chats if checked else None)


def _measure(model: LoggedModel, request: ComparisonRequest, workspace: Path) -> Quality:
    snapshot = model.package.snapshot
    measured, _ = run_in_child(
        run_package,
        request,
        log=log_folder(workspace) / f"measure-{model.model_id}.log",
        limit_seconds=limit_seconds(MEASURE_LIMIT_SECONDS, model.package.size_bytes),
        failure=QualityError,
        doing="the run of the package",
    )
    fed = Reference.model_validate_json((request.reference / REFERENCE_FILE).read_text())
    return Quality(
        perplexity=measured.perplexity,
        source_perplexity=measured.source_perplexity,
        perplexity_ratio=measured.perplexity / measured.source_perplexity,
        mean_kl=measured.mean_kl,
        p99_kl=measured.p99_kl,
        top1_agreement=measured.top1_agreement,
        tokens=fed.positions,
        new_loops=count_new_loops(measured.answers, fed.prompts, snapshot, dtype_of(snapshot), workspace),
        seconds_per_1000_tokens=1000 * measured.seconds / sum(map(len, fed.windows)),
        chats=measured.chats,
    )


def judge(measured: QualityReport, advice: str) -> QualityReport:
    """Hold the figures against the policy; return the report, with its waiver only where one was needed.

    Raises:
        QualityError: they are below it and there is no waiver.
    """
    quality, policy = measured.quality, measured.policy
    assert quality is not None
    ratios = {RATIO: (quality.perplexity_ratio, policy.max_perplexity_ratio)}
    if quality.chats is not None:
        ratios[CHAT_RATIO] = (quality.chats.perplexity_ratio, policy.max_chat_perplexity_ratio)
    checks = (
        *(
            Check(name=name, found=f"{ratio_shown(ratio)}; at most {limit_shown(limit)}")
            for name, (ratio, limit) in ratios.items()
        ),
        Check(name="new loops", found=str(quality.new_loops)),
    )
    measured = measured.model_copy(update={"checks": measured.checks + checks})
    over = {name: of for name, of in ratios.items() if of[0] > of[1]}
    if over:
        name, (ratio, limit) = next(iter(over.items()))
        shown = ratio_shown(ratio) if ratio >= limit + 0.001 else f"{ratio:.6f}"  # never shown as the limit itself
        found, expected = f"{name} {shown}", f"at most {limit_shown(limit)}"
    elif quality.new_loops and not policy.allow_new_loops:
        found = f"{quality.new_loops} of {len(PROMPTS)} greedy answers loops where the source's does not"
        expected = "none"
    else:
        return measured.model_copy(update={"waiver": None})
    if measured.waiver is None:
        refusal = QualityError(found, expected, advice)
        refusal.quality = quality
        raise refusal
    logger.warning("%s; %s; waived: %s", found, expected, measured.waiver)
    return measured
