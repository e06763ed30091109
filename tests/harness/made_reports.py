"""Quality reports of figures that a test chooses: judged, never measured."""

from slmpack.records import LoggedModel
from slmpack.reports import Quality, QualityPolicy, QualityReport


def a_quality(ratio: float, new_loops: int = 0) -> Quality:
    return Quality(
        perplexity=10 * ratio, source_perplexity=10.0, perplexity_ratio=ratio, mean_kl=0.1, p99_kl=1.0,
        top1_agreement=0.9, tokens=1000, new_loops=new_loops, seconds_per_1000_tokens=1.0,
    )  # fmt: skip


def a_report(quality: Quality, waiver: str | None = None, *, allow_new_loops: bool = False) -> QualityReport:
    policy = QualityPolicy(max_perplexity_ratio=1.10, allow_new_loops=allow_new_loops)
    nowhere = LoggedModel.model_construct()  # type: ignore[call-arg]  # the figures alone are judged
    return QualityReport(model=nowhere, quality=quality, policy=policy, checks=(), waiver=waiver)
