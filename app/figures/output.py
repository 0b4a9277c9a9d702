"""How far the sparse run's predictions are from the dense run's."""

from __future__ import annotations

import numpy as np

from app.figures.chart import Chart, Line
from app.figures.palette import DROPPED, SPARSE

LEAST = 1e-9


def divergence(positions, kl, same, x, title, footer) -> Chart:
    """KL(dense || sparse) at each position, on a log scale; same: bool, where the likeliest token is the same, or None."""
    shown = np.maximum(kl, LEAST)
    layers = [Line(positions, shown, "KL(dense ‖ sparse)", SPARSE, marker=len(positions) <= 256, width=1.0)]
    values = {"position": positions, "kl": kl}
    if same is not None:
        values["top1_equal"] = same.astype(np.uint8)
        other = np.flatnonzero(~same)
        name = f"another likeliest token ({len(other):,} of {len(same):,})"
        layers.append(Line(positions[other], shown[other], name, DROPPED, marker=True, symbol="cross", width=0))
    return Chart(title=title, x=x, y="KL (nats)", layers=tuple(layers), footer=footer, values=values, log_y=True, height=300)
