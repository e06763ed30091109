"""Figures: how each measured number is written, wherever a person reads it.

    measured --6 digits--> tag, read back by the next run
             --6 digits--> rounded half to even --> the text of the command line, the page, its summary and its plot

A tag has six digits. Rounding the measured number directly would show 1.080 the first time and 1.079 once it was read
back from the tag `1.0795`; so everything that is shown goes through those six digits first.
"""

from decimal import ROUND_HALF_EVEN, Decimal

TAG_DIGITS = 6
LARGEST = 1e15  # beyond it a model overflows, and digits mean nothing


def tag_of(value: float) -> str:
    """Return the number as a tag stores it; `float()` of it is written like the number itself."""
    return f"{value:.{TAG_DIGITS}g}"


def fixed(value: float, decimals: int) -> str:
    """Return the number with so many decimals, thousands apart."""
    exact = Decimal(tag_of(value))
    if not exact.is_finite() or abs(exact) >= LARGEST:
        return tag_of(value)
    return f"{exact.quantize(Decimal(1).scaleb(-decimals), ROUND_HALF_EVEN):,f}"


def ratio_shown(value: float) -> str:
    """Return a perplexity ratio, as in `1.080`."""
    return fixed(value, 3)


def perplexity_shown(value: float) -> str:
    """Return a perplexity with four digits, as in `12.60`."""
    exact = Decimal(tag_of(value))
    return fixed(value, max(0, 3 - exact.adjusted()) if exact.is_finite() else 0)


def limit_shown(value: float) -> str:
    """Return the limit of a ratio as it was given, with two decimals at least."""
    text = f"{Decimal(tag_of(value)).normalize():f}"
    return fixed(value, max(2, len(text.partition(".")[2])))


def divergence_shown(value: float) -> str:
    """Return a Kullback-Leibler divergence without its unit, as in `0.1912`."""
    return fixed(value, 4)


def share_shown(value: float) -> str:
    """Return a share in percent, as in `87.5%`."""
    return f"{fixed(100 * float(tag_of(value)), 1)}%"


def rate_shown(value: float) -> str:
    """Return tokens a second without their unit, as in `72.4`."""
    return fixed(value, 1)


def milliseconds_shown(value: float) -> str:
    """Return milliseconds without their unit, as in `126`."""
    return fixed(value, 0)


def seconds_shown(value: float) -> str:
    """Return seconds without their unit, as in `0.52`."""
    return fixed(value, 2)


def load_shown(value: float) -> str:
    """Return a load average per logical core, as in `0.35`."""
    return fixed(value, 2)


def bytes_shown(value: float) -> str:
    """Return a size in MB or GB, 1 MB being 1,000,000 bytes, as in `90.0 MB`."""
    exact = float(tag_of(value))
    return f"{fixed(exact / 1e9, 2)} GB" if exact >= 1e9 else f"{fixed(exact / 1e6, 1)} MB"
