"""How far the sparse run's predictions are from the dense run's."""

from __future__ import annotations

import numpy as np

from app.figures.chart import Chart, Line
from app.figures.palette import DROPPED, SPARSE

LEAST = 1e-9
RAISED = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


def divergence(positions, kl, same, texts, x, title, footer) -> Chart:
    """KL(dense || sparse) at each position, on a log scale; same: bool, where the likeliest token is the same, or None; texts:
    what to say of each position beside its KL."""
    shown = np.maximum(kl, LEAST)
    hover = tuple(f"{text}: KL {scientific(value)} nats" for text, value in zip(texts, kl.tolist(), strict=True))
    layers = [Line(positions, shown, "KL(dense ‖ sparse)", SPARSE, marker=len(positions) <= 256, width=1.0, hover=hover)]
    values = {"position": positions, "kl": kl}
    if same is not None:
        values["top1_equal"] = same.astype(np.uint8)
        other = np.flatnonzero(~same)
        name = f"another likeliest token ({len(other):,} of {len(same):,})"
        there = tuple(hover[at] for at in other)
        layers.append(Line(positions[other], shown[other], name, DROPPED, marker=True, symbol="cross", width=0, hover=there))
    return Chart(
        title=title,
        x=x,
        y="KL (nats)",
        layers=tuple(layers),
        footer=footer,
        values=values,
        log_y=True,
        y_ticks=_powers(shown),
        height=300,
    )


def scientific(value: float) -> str:
    """A number of two digits: 0.0067, 3.8 × 10⁻⁵."""
    if value == 0 or not np.isfinite(value) or abs(value) >= 1e-3:
        return f"{value:.2g}"
    digits, power = f"{value:.1e}".split("e")
    return f"{digits} × {_power(int(power))}"


def _power(exponent: int) -> str:
    return f"10{str(exponent).translate(RAISED)}"


def _powers(shown) -> tuple[tuple[float, str], ...]:
    """Ticks at powers of ten around what is shown; smaller values are drawn at the last."""
    known = shown[np.isfinite(shown)]
    if not known.size:
        return ()
    low, high = np.floor(np.log10(known.min())), np.ceil(np.log10(known.max()))
    powers = range(int(low), int(high) + 1)
    return tuple((10.0**power, f"{'≤ ' if 10.0**power <= LEAST else ''}{_power(power)}") for power in powers)
