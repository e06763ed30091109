"""The frontier: what each recipe that was tried costs in size and loses in quality, drawn as SVG.

A drawing is the same bytes for the same attempts. Its colours are CSS variables with a light page's values as fallback,
so it stands alone and also follows the page that it is set in, light or dark.
"""

import io
import math
import re
from typing import TYPE_CHECKING

from slmpack.figures import bytes_shown, limit_shown, rate_shown, ratio_shown
from slmpack.publish.page.attempt import Attempt
from slmpack.reports import QualityPolicy

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# In points. As wide as a phone's screen takes at a readable size.
WIDTH, PLOT_HEIGHT, TOP, AXIS_HEIGHT, LINE_HEIGHT = 350.0, 208.0, 14.0, 36.0, 13.0
PLOT_LEFT, PLOT_RIGHT = 38.0, 228.0
FONT_POINTS = 9.0
NAME_CHARACTERS, LINE_CHARACTERS = 18, 72
LINEAR_UNITS = (
    6.0  # so many times the loss that is allowed: from there a linear axis would press the good ones together
)
FAR_TICKS = (0.5, 0.8, 1, 1.05, 1.1, 1.2, 1.5, 2, 3, 5, 10, 30, 100, 1e3, 1e4, 1e5, 1e6, 1e7, 1e8, 1e9)
LARGEST = 1e9

# Matplotlib knows no CSS variable, so it draws with colours that nothing else has.
INK, MUTED, LINE, CHOSEN, LIMIT = "#010201", "#020301", "#030401", "#040501", "#050601"
VARIABLES = {
    INK: "var(--ink, #1c2127)",
    MUTED: "var(--muted, #5c6670)",
    LINE: "var(--line, #d5dae0)",
    CHOSEN: "var(--good, #14703c)",
    LIMIT: "var(--bad, #a8321f)",
}


def frontier_svg(attempts: tuple[Attempt, ...], policy: QualityPolicy) -> str:
    """Draw size against perplexity ratio, the policy's limit, and a line of text for each attempt without a ratio.

    Returns:
        An `<svg>` element without an XML header, to be set in a page or saved as it is.
    """
    drawn = sorted(
        (attempt for attempt in attempts if _ratio(attempt) is not None), key=lambda attempt: _ratio(attempt) or 0.0
    )
    listed = [attempt for attempt in attempts if _ratio(attempt) is None]
    below = len(listed) * LINE_HEIGHT
    height = (TOP + PLOT_HEIGHT + AXIS_HEIGHT if drawn else 0.0) + below

    from matplotlib import style
    from matplotlib.figure import Figure

    settings = {"svg.fonttype": "none", "svg.hashsalt": "slmpack", "font.size": FONT_POINTS}
    with style.context(settings, after_reset=True):  # not as the user's own matplotlibrc says
        figure = Figure(figsize=(WIDTH / 72, max(height, LINE_HEIGHT) / 72))
        if drawn:
            place = (
                PLOT_LEFT / WIDTH,
                (AXIS_HEIGHT + below) / height,
                (PLOT_RIGHT - PLOT_LEFT) / WIDTH,
                PLOT_HEIGHT / height,
            )
            axes = figure.add_axes(place)
            _draw_axes(axes, drawn, policy)
            _draw_attempts(axes, drawn)
        _list_attempts(figure, listed, height)
        return _svg_of(figure, _in_words(drawn, listed, policy))


def _ratio(attempt: Attempt) -> float | None:
    """Return the ratio where it can be drawn; that of a model that overflows is not a number or off any scale."""
    ratio = attempt.quality.perplexity_ratio if attempt.quality else math.nan
    return ratio if 0 < ratio < LARGEST else None


def _megabytes(attempt: Attempt) -> float:
    return (attempt.size_bytes or 0) / 1e6


def _draw_axes(axes: "Axes", drawn: list[Attempt], policy: QualityPolicy) -> None:
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    sizes = [_megabytes(attempt) for attempt in drawn]
    _scale_ratios(axes, [_ratio(attempt) or 1.0 for attempt in drawn], policy.max_perplexity_ratio)
    space = 0.12 * (max(sizes) - min(sizes)) or 0.1 * max(sizes) or 1.0
    axes.set_xlim(min(sizes) - space, max(sizes) + space)
    axes.xaxis.set_major_locator(MaxNLocator(5))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.4g}"))
    _dress(axes)
    limit = policy.max_perplexity_ratio
    axes.axhline(limit, color=LIMIT, linewidth=1, dashes=(4, 3), zorder=1)
    axes.text(
        0.012,
        limit,
        f"limit {limit_shown(limit)}",
        transform=axes.get_yaxis_transform(),
        color=LIMIT,
        fontsize=FONT_POINTS - 1,
        va="bottom",
    )


def _scale_ratios(axes: "Axes", ratios: list[float], limit: float) -> None:
    """Give the axis room where it matters: linear about the limit, logarithmic beyond it if something is far off."""
    import numpy as np

    low, high = min(*ratios, 1.0), max(*ratios, limit)
    unit = max(limit - 1.0, 0.05)
    if high - 1.0 <= LINEAR_UNITS * unit:
        margin = 0.08 * (high - low or 0.01)
        axes.set_ylim(low - margin, high + margin)
        return
    axes.set_yscale(
        "function",
        functions=(lambda ratio: np.arcsinh((np.asarray(ratio) - 1) / unit), lambda height: np.sinh(height) * unit + 1),
    )
    heights = np.arcsinh((np.array([low, high]) - 1) / unit)
    margin = 0.08 * (heights[1] - heights[0])
    bottom, top = np.sinh(heights + np.array([-margin, margin])) * unit + 1
    axes.set_ylim(bottom, top)
    ticks: list[float] = []
    for tick in FAR_TICKS:
        apart = np.diff(np.arcsinh((np.array([ticks[-1], tick]) - 1) / unit)) if ticks else np.inf
        if bottom <= tick <= top and apart > 0.06 * (heights[1] - heights[0]):
            ticks.append(tick)
    axes.set_yticks(ticks)


def _dress(axes: "Axes") -> None:
    """Leave what is needed to read the figures off, and nothing else."""
    axes.set_facecolor("none")
    axes.set_xlabel("size, MB", color=MUTED)
    left = -PLOT_LEFT / (PLOT_RIGHT - PLOT_LEFT)
    axes.set_title("perplexity over the source's", color=MUTED, fontsize=FONT_POINTS, loc="left", x=left, pad=4)
    axes.tick_params(which="both", colors=MUTED, length=0)
    axes.grid(color=LINE, linewidth=0.6)
    axes.set_axisbelow(True)
    for side in axes.spines.values():
        side.set_visible(False)
    axes.spines["bottom"].set(visible=True, color=LINE)


def _draw_attempts(axes: "Axes", drawn: list[Attempt]) -> None:
    """Mark each attempt and label it in a column beside the plot, where labels cannot cover each other."""
    gap = min(0.125, 1.0 / len(drawn))
    points = [(_megabytes(attempt), _ratio(attempt) or 1.0) for attempt in drawn]
    to_axes = axes.transData + axes.transAxes.inverted()
    heights = _spread([float(to_axes.transform(point)[1]) for point in points], gap)
    leader = {"arrowstyle": "-", "color": MUTED, "linewidth": 0.4, "shrinkA": 0, "shrinkB": 5}
    for attempt, point, height in zip(drawn, points, heights, strict=True):
        chosen = attempt.status == "published"
        colour = CHOSEN if chosen else INK
        axes.annotate(
            "", xy=point, xytext=(1.03, height), textcoords="axes fraction", annotation_clip=False, arrowprops=leader
        )
        axes.plot(
            *point,
            marker="o" if attempt.status != "failed" else "x",
            markersize=9 if chosen else 6,
            color=colour,
            markerfacecolor=colour if chosen else "none",
            zorder=3,
            clip_on=False,
        )
        name = _short(attempt.recipe, NAME_CHARACTERS) + (", chosen" if chosen else "")
        _label(axes, height, name, colour, bold=chosen, above=True)
        _label(axes, height, _speed(attempt), MUTED, bold=False, above=False)


def _label(axes: "Axes", height: float, text: str, colour: str, *, bold: bool, above: bool) -> None:
    axes.annotate(
        text,
        xy=(1.045, height),
        xycoords="axes fraction",
        xytext=(0, 0.5 if above else -1.5),
        textcoords="offset points",
        color=colour,
        va="bottom" if above else "top",
        annotation_clip=False,
        fontsize=FONT_POINTS if above else FONT_POINTS - 1,
        fontweight="bold" if bold else "normal",
        parse_math=False,
    )


def _spread(ideal: list[float], gap: float) -> list[float]:
    """Return heights as near to `ideal` (ascending, 0 to 1) as `gap` between neighbours allows."""
    placed: list[float] = []
    for height in ideal:
        placed.append(max(height, placed[-1] + gap) if placed else max(height, 0.04))
    ceiling = 0.96
    for index in reversed(range(len(placed))):
        placed[index] = min(placed[index], ceiling)
        ceiling = placed[index] - gap
    return placed


def _list_attempts(figure: "Figure", listed: list[Attempt], height: float) -> None:
    for row, attempt in enumerate(reversed(listed)):
        weight = "bold" if attempt.status == "published" else "normal"
        figure.text(
            4 / WIDTH,
            (row * LINE_HEIGHT + 4) / height,
            _unmeasured(attempt),
            color=MUTED,
            parse_math=False,
            fontsize=FONT_POINTS - 0.5,
            fontweight=weight,
        )


def _unmeasured(attempt: Attempt) -> str:
    name = _short(attempt.recipe, NAME_CHARACTERS)
    reason = f": {attempt.reason}" if attempt.reason else ""
    if attempt.size_bytes is None:
        return _short(f"{name}, not built{reason}", LINE_CHARACTERS)
    found = (
        "no quality measured"
        if attempt.quality is None
        else f"perplexity ratio {ratio_shown(attempt.quality.perplexity_ratio)}"
    )
    size = bytes_shown(attempt.size_bytes)
    return _short(f"{name}, {size}, {_speed(attempt)}: {found}, {attempt.status}{reason}", LINE_CHARACTERS)


def _speed(attempt: Attempt) -> str:
    return f"{rate_shown(attempt.speed.decode_tokens_per_second)} tokens/s" if attempt.speed else "not timed"


def _short(text: str, limit: int) -> str:
    text = " ".join(text.split())
    return text if len(text) <= limit else text[: limit - 1] + "…"


def _place_of(attempt: Attempt) -> str:
    return f"{bytes_shown(attempt.size_bytes or 0)} at {ratio_shown(_ratio(attempt) or 1.0)}"


def _in_words(drawn: list[Attempt], listed: list[Attempt], policy: QualityPolicy) -> str:
    parts = [f"{_short(attempt.recipe, NAME_CHARACTERS)} {_place_of(attempt)}" for attempt in drawn]
    parts += [
        f"{_short(attempt.recipe, NAME_CHARACTERS)} {'not built' if attempt.size_bytes is None else 'not measured'}"
        for attempt in listed
    ]
    limit = limit_shown(policy.max_perplexity_ratio)
    return f"Size against perplexity ratio, limit {limit}: {'; '.join(parts) or 'no recipe'}"


def _svg_of(figure: "Figure", words: str) -> str:
    from xml.sax.saxutils import quoteattr

    figure.patch.set_alpha(0)
    file = io.StringIO()
    nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))  # a date would differ, a creator has a link
    figure.savefig(file, format="svg", metadata=nothing)
    svg = file.getvalue()
    svg = re.sub(r"<metadata>.*?</metadata>\s*", "", svg[svg.index("<svg") :], flags=re.DOTALL)
    svg = svg.replace("<svg ", f'<svg role="img" aria-label={quoteattr(words)} ', 1)
    for colour, variable in VARIABLES.items():
        svg = svg.replace(colour, variable)
    return re.sub(r"font-family: [^;\"]*|(?<=px )'DejaVu Sans'[^;\"]*", _sans_serif, svg)


def _sans_serif(found: "re.Match[str]") -> str:
    return "font-family: system-ui, sans-serif" if found[0].startswith("font-family") else "system-ui, sans-serif"
