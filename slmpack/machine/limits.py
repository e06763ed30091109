"""How long a process may take: what is generous for a small model, and more for one that is larger."""

SMALL_BYTES = 4 * 10**9


def limit_seconds(small: float, size_bytes: int) -> float:
    """Return the time limit for work on `size_bytes` of weights where `small` is enough for up to 4 GB of them."""
    return small * max(1.0, size_bytes / SMALL_BYTES)
