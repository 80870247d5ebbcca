"""What a correlation says, given its noise: the same heads, other heads, or nothing that can be told."""

from __future__ import annotations

import numpy as np
from headdynamics.analysis.correlation import Correlation
from headdynamics.analysis.verdict import LOW_CEILING, MIN_CEILING, Rule

NOISY = "too noisy to tell"
SAME = "no difference beyond noise"
NEARLY = "nearly the same"
DIFFER = "different beyond noise"
OPEN = "open: too few heads to tell"
UNKNOWN = "noise not known"


def reading(found: Correlation) -> str:
    """What a coefficient says, given its noise.

    Too noisy: a ceiling below 0.5. Different beyond noise: the whole interval, corrected for noise, is below 1;
    nearly the same: it is, and yet the corrected value is at least 0.9, at which a ranking counts as settled.
    Open: the interval reaches from no correlation at all to full agreement.
    """
    if not np.isfinite([found.value, found.ceiling, found.high]).all():
        return UNKNOWN
    if found.ceiling < MIN_CEILING or not np.isfinite(found.corrected):
        return NOISY
    # Simulated: of pairs with one truth about 5% or fewer are called different.
    if found.corrected + (found.high - found.value) / found.ceiling < 1:
        return NEARLY if found.corrected >= Rule().threshold else DIFFER
    return SAME if found.low > 0 else OPEN


def sentence(name: str, r: Correlation) -> str:
    """Pearson's r over some heads in words, and whether noise or a difference holds it down."""
    says = reading(r)
    if not np.isfinite(r.value):
        return f"{name}: Pearson's r is not defined: one side has the same number for every head."
    start = f"{name}: Pearson r = {r.value:.2f} (95%: {r.low:.2f} to {r.high:.2f})"
    if says == UNKNOWN:
        return f"{start}; how much of its distance from 1 is noise is not known."
    if says == NOISY:
        return (
            f"{start}; too noisy to tell: even if the same heads mattered, noise alone would hold r at about "
            f"{r.ceiling:.2f}. More examples would tell."
        )
    if says == OPEN:
        return f"{start}, ceiling {r.ceiling:.2f}: too few heads to tell agreement from none at all."
    if says == SAME:
        return (
            f"{start}, ceiling {r.ceiling:.2f}: no difference beyond noise. What keeps r from 1 is noise, not a "
            f"difference that these data show (corrected r = {r.corrected:.2f})."
        )
    if says == NEARLY:
        return (
            f"{start}, ceiling {r.ceiling:.2f}: nearly the same heads matter (corrected r = {r.corrected:.2f}); "
            "the little difference is more than noise."
        )
    also = ", though noise holds r down as well" if r.ceiling < LOW_CEILING else ""
    return (
        f"{start}, ceiling {r.ceiling:.2f}: different beyond noise{also} (corrected r = {r.corrected:.2f}). "
        "Not quite the same heads matter."
    )
