"""The colours of every figure: one ramp for weights and numbers (cividis), one for what has two sides (blue, dark,
amber), both safe for colour-blind eyes; one colour per role."""

RAMP = (
    "#00224e", "#002d6c", "#1c3770", "#33436e", "#434e6c", "#525a6c", "#61656f", "#6f7073", "#7d7c78",
    "#8b8878", "#9a9476", "#aba173", "#bcaf6d", "#cdbc65", "#dfcb59", "#f2da49", "#fee838",
)  # fmt: skip
MISSED_RAMP = ("#3a1600", "#8a3a00", "#d55e00", "#ff9d4d", "#ffd9b3")
DIFFERENCE_RAMP = (
    "#93e8ff", "#5db4e0", "#3f77b5", "#2d3f78", "#1f1a2b", "#5c3438", "#b0683a", "#e0a85a", "#ffe59b",
)  # fmt: skip
KEPT = "#2f9bff"
DROPPED = "#d55e00"
SPARSE = "#0072b2"
DENSE = "#8a6d00"
MUTED = "#7d8794"
OTHER = "#9467bd"
