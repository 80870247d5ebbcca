"""Gates of one at every position, by plain multiplication: the oracle of the taps (headdynamics/taps.py)."""

from __future__ import annotations





