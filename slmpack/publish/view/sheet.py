"""Sheet: a version's view as lines for a person, each fact in one, MOST_LINES at most."""

import json
import shlex
from collections.abc import Iterator

from slmpack import figures
from slmpack.publish.page.render import HEADLINES
from slmpack.publish.view.version import VersionView
from slmpack.publish.view.words import minute_of, shown

MOST_LINES = 30
LABEL_CHARACTERS = 12
NOT_KNOWN, NOT_MEASURED = "not known", "not measured"
SHORT_DIGEST = 12


def sheet_lines(view: VersionView) -> list[str]:
    """Return what is known of a version; what nobody said and nobody misses is left out."""
    state = HEADLINES.get(view.state or "", "Published").lower()
    lines = [shown(f"{view.name} version {view.version}: {state}")]
    rows = (*_identity(view), *_origin(view), *_figures(view), *_proofs(view), *_use(view))
    lines += [f"  {label.ljust(LABEL_CHARACTERS)} {shown(text)}" for label, text in rows if text]
    return lines


def _identity(view: VersionView) -> Iterator[tuple[str, str | None]]:
    yield "unusable", view.unhealthy
    yield "aliases", ", ".join(view.aliases) or "none now"
    yield "approved", "; ".join(f"{alias}: {said}" for alias, said in view.approved.items())
    yield "published", minute_of(view.published)
    yield "target", f"{view.target or NOT_KNOWN}, {view.interface} interface"
    recipe = view.recipe or "none"
    yield "recipe", f"{recipe}: {'; '.join(view.quantisation)}" if view.quantisation else recipe


def _origin(view: VersionView) -> Iterator[tuple[str, str | None]]:
    yield "source", view.source or NOT_KNOWN
    yield "revision", view.revision or NOT_KNOWN
    yield "made from", view.base and f"{view.base}, revision {view.base_revision or NOT_KNOWN}"
    yield "trained on", ", ".join(view.trained_on)
    yield "licence", view.licence or "not stated"


def _figures(view: VersionView) -> Iterator[tuple[str, str | None]]:
    yield "quality", quality_shown(view)
    yield "speed", _speed_shown(view)
    yield "memory", _bytes(view.speed["peak_rss_bytes"])
    source = "" if view.source_bytes is None else f"; the source has {_bytes(view.source_bytes)}"
    yield "size", f"{_bytes(view.size_bytes)}{source}"
    yield "measured on", view.machine


def quality_shown(view: VersionView) -> str:
    """Return the figures of quality with their limits, in one line."""
    found = view.quality
    if found["perplexity_ratio"] is None:
        return NOT_MEASURED
    parts = [_ratio("perplexity ratio", found["perplexity_ratio"], found["max_perplexity_ratio"])]
    if found["mean_kl"] is not None:
        parts.append(f"mean KL {figures.divergence_shown(found['mean_kl'])} nats")
    if found["top1_agreement"] is not None:
        parts.append(f"top-1 agreement {figures.share_shown(found['top1_agreement'])}")
    if found["new_loops"] is not None:
        parts.append(f"new loops {figures.fixed(found['new_loops'], 0)}")
    if found["chat_perplexity_ratio"] is not None:
        parts.append(_ratio("on chats", found["chat_perplexity_ratio"], found["max_chat_perplexity_ratio"]))
    return ", ".join(parts)


def _ratio(label: str, ratio: float, limit: float | None) -> str:
    return f"{label} {figures.ratio_shown(ratio)}" + ("" if limit is None else f" (limit {figures.limit_shown(limit)})")


def _speed_shown(view: VersionView) -> str:
    found = view.speed
    decode, first, load = found["decode_tokens_per_second"], found["ttft_ms"], found["load_seconds"]
    if decode is None:
        return NOT_MEASURED
    low, high = found["decode_p10_tokens_per_second"], found["decode_p90_tokens_per_second"]
    between = "" if low is None or high is None else f" ({figures.rate_shown(low)} to {figures.rate_shown(high)})"
    parts = [f"{figures.rate_shown(decode)} tokens/s{between}"]
    parts += [] if first is None else [f"first token after {figures.milliseconds_shown(first)} ms"]
    parts += [] if load is None else [f"loaded in {figures.seconds_shown(load)} s"]
    return ", ".join(parts)


def _bytes(size: float | None) -> str:
    return NOT_KNOWN if size is None else figures.bytes_shown(size)


def _proofs(view: VersionView) -> Iterator[tuple[str, str | None]]:
    if view.checks is not None:
        not_run = "".join(f"; not run: {name}" for name in view.checks.not_run)
        yield "checks", f"{view.checks.held} of {view.checks.judged} held{not_run}"
    yield "waiver", view.waiver
    yield "template", view.template_waiver and f"depends on what messages say, waived: {view.template_waiver}"
    named = f"{view.key}, " if view.key else ""
    yield (
        "signed by",
        view.signed_by and f"{named}key {view.signed_by[:SHORT_DIGEST]}, as its tag says; not checked here",
    )
    yield "changes", view.changes
    yield "requires", ", ".join(view.requirements or ())
    yield "digest", view.digest


def _use(view: VersionView) -> Iterator[tuple[str, str | None]]:
    yield "load", f"mlflow.pyfunc.load_model({json.dumps(view.model_uri, ensure_ascii=False)})"
    yield "ask", shlex.join(["slmpack", "chat", view.model_uri, "Hello"])
    yield "page", view.page and f"{view.page}, of {view.page_of}" if view.page_of else view.page
    yield "in MLflow", view.page_address
