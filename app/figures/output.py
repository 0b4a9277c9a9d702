"""How far the sparse run's predictions are from the dense run's."""

from __future__ import annotations

import numpy as np

from app.figures.chart import Chart, Line
from app.figures.palette import SPARSE


def divergence(positions, kl, x, title, footer) -> Chart:
    """KL(dense || sparse) at each position, on a log scale."""
    return Chart(
        title=title,
        x=x,
        y="KL (nats)",
        layers=(Line(positions, np.maximum(kl, 1e-9), "KL(dense ‖ sparse)", SPARSE, marker=len(positions) <= 256, width=1.0),),
        footer=footer,
        values={"position": positions, "kl": kl},
        log_y=True,
        height=300,
    )
