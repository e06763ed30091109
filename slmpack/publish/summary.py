"""Summary: the lines a command ends with: what became of a target, its figures, and what to type next."""

import shlex

from slmpack.figures import bytes_shown, milliseconds_shown, rate_shown, ratio_shown
from slmpack.publish.page.changes import spread_of
from slmpack.reports import Outcome


def summary_lines(outcome: Outcome, *, proved_again: bool = False) -> list[str]:
    """Return four lines about a target that is published; one where it is not, since the reason follows by itself.

    Args:
        proved_again: the command ran every proof of a model that was logged before.
    """
    if outcome.reason is not None:
        return [f"{outcome.target}: {outcome.status}"]
    next_lines = [
        f"  ask it: {shlex.join(['slmpack', 'chat', _uri_by_alias(outcome), 'Hello'])}",
        f"  prove it again: {shlex.join(['slmpack', 'verify', str(outcome.model_uri)])}",
    ]
    if proved_again:
        assert outcome.name is not None
        roll_back = ["slmpack", "rollback", outcome.name, "--target", str(outcome.target)]
        next_lines[1] = f"  give the alias back to the version before: {shlex.join(roll_back)}"
    figures = [f"  {line}"] if (line := figures_line(outcome)) else []
    return [headline_of(outcome, proved_again=proved_again), *figures, *next_lines]


def headline_of(outcome: Outcome, *, proved_again: bool = False) -> str:
    """Say which version there is, and in what time."""
    seconds = sum(outcome.seconds.values())
    status = {"unchanged": "proved again"}.get(outcome.status, outcome.status) if proved_again else outcome.status
    also = ", proved again" if proved_again and outcome.status == "published" else ""
    text = f"{status}: {outcome.name} version {outcome.version}, alias {outcome.alias}{also}, in {seconds:.0f} s"
    return text + "".join(f"; {sentence}" for sentence in outcome.unhealthy)


def figures_line(outcome: Outcome) -> str:
    """Return what was measured of a version, in one line; "" where that is not known."""
    speed, quality = outcome.speed, outcome.quality
    if speed is None or outcome.size_bytes is None:
        return ""
    recipe = f"{outcome.recipe}: " if outcome.recipe else ""
    parts = []
    if quality is not None:
        with_quality_chats = quality.chat_perplexity_ratio
        chats = "" if with_quality_chats is None else f", on chats {ratio_shown(with_quality_chats)}"
        parts.append(f"perplexity ratio {ratio_shown(quality.perplexity_ratio)}{chats}")
    spread = spread_of(speed)
    between = spread.decode.removeprefix("; ")
    decode = f"{rate_shown(speed.decode_tokens_per_second)} tokens/s" + (f" ({between})" if between else "")
    first = f"first token after {milliseconds_shown(speed.ttft_ms)} ms"
    memory = f"{bytes_shown(speed.peak_rss_bytes)} of memory"
    parts.append(f"{bytes_shown(outcome.size_bytes)}, {decode}, {first}, {memory}")
    return recipe + "; ".join(parts)


def _uri_by_alias(outcome: Outcome) -> str:
    """Return how the version is loaded by others; a target without an alias has the version itself."""
    return f"models:/{outcome.name}@{outcome.alias}" if outcome.alias else str(outcome.model_uri)


def json_of(outcome: Outcome) -> str:
    """Return the contract's object; a key beyond it only where there is something to say."""
    return outcome.model_dump_json(exclude=excluded(outcome))


def excluded(outcome: Outcome) -> dict[str, bool | set[str]]:
    """Return what the contract's object does not have: the spread of timings is on the page and in the run."""
    left_out: dict[str, bool | set[str]] = {} if outcome.unhealthy else {"unhealthy": True}
    return left_out | {"speed": BEYOND_CONTRACT}


BEYOND_CONTRACT = {
    "decode_p10_tokens_per_second",
    "decode_p90_tokens_per_second",
    "ttft_p10_ms",
    "ttft_p90_ms",
    "speed_repeats",
    "load_per_core",
}
