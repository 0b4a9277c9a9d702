"""The board of all heads: for the page's buttons, and as a chart for files."""

from __future__ import annotations

import numpy as np

from app.figures.chart import Chart, Heat
from app.figures.palette import RAMP


def value_range(values: np.ndarray, share: bool) -> tuple[float, float]:
    """The range that the colours cover: 0 to 1 for shares, else 0 to the greatest value."""
    finite = values[np.isfinite(values)]
    return (0.0, 1.0) if share else (0.0, float(finite.max()) if finite.size and finite.max() > 0 else 1.0)


def board(values, text, details, selected, kv_heads, name, share) -> dict:
    """What the board's buttons show: number, text, and the sentence read when a head is pointed at."""
    low, high = value_range(values, share)
    layers, heads = values.shape
    return {
        "layers": layers,
        "heads": heads,
        "kv_heads": kv_heads,
        "values": [[None if value != value else float(value) for value in row] for row in values],
        "text": text,
        "details": details,
        "selected": list(selected),
        "name": name,
        "low": low,
        "high": high,
        "low_text": f"{low:.0%}" if share else f"{low:.3g}",
        "high_text": f"{high:.0%}" if share else f"{high:.3g}",
        "ramp": RAMP,
    }


def chart(values, text, labels, kv_heads, name, share, title, footer) -> Chart:
    """The board as a heat map; an empty column stands between groups of query heads that share a key head."""
    layers, heads = values.shape
    group, low_high = heads // kv_heads, value_range(values, share)
    gaps = list(range(group, heads, group)) if kv_heads < heads else []
    spread = np.insert(values.astype(float), gaps, np.nan, axis=1)
    words = tuple(tuple(np.insert(np.array(row, dtype=object), gaps, "").tolist()) for row in text)
    places = [head + head // group * bool(gaps) for head in range(heads)]
    width = spread.shape[1]
    return Chart(
        title=title,
        x="head (a gap between groups that share a key head)" if gaps else "head",
        y="layer",
        layers=(Heat(spread, (-0.5, width - 0.5), (-0.5, layers - 0.5), name, *low_high, text=words if heads <= 16 else ()),),
        footer=footer,
        values={"values": values, "labels": np.array(labels)},
        downwards=True,
        x_ticks=tuple((float(place), str(head)) for head, place in enumerate(places) if heads <= 32 or head % 8 == 0),
        y_ticks=tuple((float(layer), str(layer)) for layer in range(layers) if layers <= 40 or layer % 4 == 0),
        height=max(320, 26 * layers + 120),
    )
