"""What a rate seen in a sample says of the rate itself: exact bounds, whatever the distribution."""

from __future__ import annotations


def error_bound(seen: int, of: int, confidence: float) -> float:
    """Upper bound of a rate seen ``seen`` times among ``of`` (Clopper and Pearson 1934)."""
    from scipy.stats import beta

    return 1.0 if seen >= of else float(beta.ppf(confidence, seen + 1, of - seen))
