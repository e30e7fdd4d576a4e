"""`quantile` of a few numbers, without numpy's fixed cost of a call."""

from collections.abc import Sequence


def quantile(ordered: Sequence[float], share: float) -> float | None:
    """Linear between order statistics, as numpy's default; None of nothing. `ordered` rises."""
    if not ordered:
        return None
    at = share * (len(ordered) - 1)
    low = int(at)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (ordered[high] - ordered[low]) * (at - low)
