"""The Export menu: every file is made when its button is clicked, not before."""

from __future__ import annotations

import csv
import io
import json
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import streamlit as st

from app.figures.chart import Chart
from sampleattn.trace import Trace


def npz(values: dict[str, np.ndarray], footer: str) -> bytes:
    """The values behind a figure as one .npz, with its footer as the array `origin`."""
    buffer = io.BytesIO()
    np.savez_compressed(buffer, origin=np.array(footer), **values)
    return buffer.getvalue()


def table(values: dict[str, np.ndarray], footer: str) -> bytes:
    """The values as CSV, below the footer as comment lines (#).

    Arrays of one length are columns; else each line is name, row, column, value, and the zeros of a matrix are left out.
    """
    buffer = io.StringIO()
    for line in footer.split("\n"):
        buffer.write(f"# {line}\n")
    writer = csv.writer(buffer, lineterminator="\n")
    flat = {name: np.asarray(array) for name, array in values.items()}
    if len({array.shape for array in flat.values()}) == 1 and next(iter(flat.values())).ndim == 1:
        writer.writerow(flat)
        writer.writerows(zip(*(_column(array) for array in flat.values()), strict=True))
        return buffer.getvalue().encode()
    writer.writerow(("name", "row", "column", "value"))
    for name, array in flat.items():
        grid = np.atleast_2d(array)
        for row, column in np.argwhere(np.ones(grid.shape, bool) if grid.dtype.kind in "US" else (grid != 0) & (grid == grid)):
            writer.writerow((name, row, column, _cell(grid[row, column])))
    return buffer.getvalue().encode()


def _column(array):
    return [_cell(value) for value in array]


def _cell(value):
    if isinstance(value, (np.floating, float)):
        return f"{value:.6g}"
    text = value.item() if isinstance(value, np.generic) else value
    return f"'{text}" if isinstance(text, str) and text[:1] in "=+-@\t\r" else text


def config_json(trace) -> bytes:
    return json.dumps(trace.meta["settings"], indent=2).encode()


def whole_trace(path: Path) -> bytes:
    """The trace as one zip."""
    if path.is_file():
        return path.read_bytes()
    with tempfile.TemporaryDirectory() as folder:
        return Trace.load(path).save(Path(folder) / "trace.zip").read_bytes()


def menu(name: str, chart: Callable[[], Chart], opened, key: str) -> None:
    """A menu with the figure as PNG, SVG, PDF and HTML, its values as NPZ and CSV, the config and the whole trace."""
    menu_of({name: (name, chart, opened)}, key)


def menu_of(figures: dict[str, tuple], key: str) -> None:
    """The menu of one of several figures, chosen in it: label -> (name of its files, chart, the opened trace that it is of)."""
    with st.popover("Export", icon=":material/download:", width="content"):
        st.caption("Made when you click. Every figure carries model, prompt hash, layer, head and settings.")
        chosen = next(iter(figures))
        if len(figures) > 1:
            chosen = st.segmented_control("Of", list(figures), default=chosen, required=True, key=f"{key}_of")
        name, chart, opened = figures[chosen]
        pictures, values, rest = st.columns(3)
        for column, heading, files in (
            (pictures, "Figure", [(kind.upper(), f"{name}.{kind}", _picture(chart, kind)) for kind in ("png", "svg", "pdf")]
             + [("HTML", f"{name}.html", _page(chart))]),
            (values, "Values", [("NPZ", f"{name}.npz", lambda: npz(chart().values, chart().footer)),
                                ("CSV", f"{name}.csv", lambda: table(chart().values, chart().footer))]),
            (rest, "Run", [("Config", "config.json", lambda: config_json(opened.trace)),
                           ("Trace", "trace.zip", lambda: whole_trace(opened.path))]),
        ):  # fmt: skip
            column.markdown(f"**{heading}**")
            for label, file_name, make in files:
                column.download_button(label, make, file_name, on_click="ignore", key=f"{key}-{file_name}", width="stretch")


def _picture(chart, kind):
    def make():
        from app.figures.static import picture

        return picture(chart(), kind)

    return make


def _page(chart):
    def make():
        from app.figures.interactive import html

        return html(chart())

    return make
