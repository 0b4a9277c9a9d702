"""A chart as plain values: what is drawn, without saying with what. `interactive` (plotly) and `static` (matplotlib) draw it."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from app.figures.palette import RAMP

SYMBOLS = ("circle", "square", "diamond", "triangle", "cross")


@dataclass(frozen=True)
class Line:
    """A curve; `dash`, `marker` and its `symbol` (of SYMBOLS) tell it apart without colour."""

    x: np.ndarray
    y: np.ndarray
    name: str
    colour: str
    dash: bool = False
    marker: bool = False
    width: float = 1.5
    hover: tuple[str, ...] = ()
    symbol: str = "circle"


@dataclass(frozen=True)
class Span:
    """A shaded stretch of the x axis, from the edge of the picture or `begin` to `end`, with its name."""

    begin: float
    end: float
    name: str
    colour: str


@dataclass(frozen=True)
class Level:
    """A dashed line at a height, with its name."""

    y: float
    name: str
    colour: str


@dataclass(frozen=True)
class Bars:
    """Horizontal bars, one per name, with the values written at their ends."""

    names: tuple[str, ...]
    values: np.ndarray
    name: str
    colour: str
    text: tuple[str, ...] = ()


@dataclass(frozen=True)
class Heat:
    """A matrix of values in the colours of a ramp; x and y are the edges' first and last coordinates. NaN cells stay empty."""

    values: np.ndarray
    x: tuple[float, float]
    y: tuple[float, float]
    name: str
    low: float
    high: float
    log: bool = False
    text: tuple[tuple[str, ...], ...] = ()
    ramp: tuple[str, ...] = RAMP


@dataclass(frozen=True)
class Tint:
    """The cells of a mask, tinted and hatched."""

    mask: np.ndarray
    x: tuple[float, float]
    y: tuple[float, float]
    name: str
    colour: str


@dataclass(frozen=True)
class Outline:
    """Straight pieces (x0, y0, x1, y1), as the border of a region."""

    pieces: np.ndarray
    name: str
    colour: str


@dataclass(frozen=True)
class Marks:
    """Marks at the edge of the picture: "bottom" (columns) or "left" (slashes)."""

    at: np.ndarray
    side: str
    name: str
    colour: str


@dataclass(frozen=True)
class Chart:
    """Layers on one pair of axes, the footer that an exported picture carries, and the values behind it."""

    title: str
    x: str
    y: str
    layers: tuple
    footer: str
    values: dict[str, np.ndarray] = field(default_factory=dict)
    downwards: bool = False
    square: bool = False
    log_x: bool = False
    log_y: bool = False
    y_range: tuple[float, float] | None = None
    x_ticks: tuple[tuple[float, str], ...] = ()
    y_ticks: tuple[tuple[float, str], ...] = ()
    height: int = 360
