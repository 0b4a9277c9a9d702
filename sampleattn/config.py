"""The settings of the method: one frozen, validated value that travels from the page to the kernel."""

from __future__ import annotations

import dataclasses
import json
import re
from dataclasses import dataclass

SELECTIONS = ("joint", "independent", "window")
SAMPLINGS = ("spread", "tail")
SCOPES = ("head", "segment")
BACKENDS = ("auto", "torch", "triton", "fa4")
BLOCKS_PER_SEGMENT = 8


@dataclass(frozen=True)
class SampleAttentionConfig:
    """Settings of SampleAttention (MLSys 2025, arXiv 2406.15486); the defaults are measured in notes/study.md.

    cra: the recall that rows shall keep (the CRA target), in (0, 1].
    rows_at_target: the share of the sampled rows that must reach `cra`; used by `selection="joint"`.
    selection: "joint" (columns and slashes chosen together), "independent" (the paper) or "window" (arXiv v1/v2).
    scope: choose once for the "head", or per "segment" of the queries.
    sampling: "spread" (rows evenly over each segment) or "tail" (the last rows of each segment, the paper).
    sample_ratio: the share of the query rows that is sampled.
    max_sampled_rows: the most rows that are sampled, however long the prompt is.
    sampling_margin: `joint` asks more than `cra` of the sampled rows, because the choice fits them better than the others:
        cra + (1 - cra) * sampling_margin / sqrt(sampled rows).
    segments: the number of equal parts of the queries; None lets the length decide (see `segment_count`).
    alpha_columns, alpha_slashes: the shares of the sampled mass that `independent` and `window` keep; None means `cra`.
    density: None (`cra` decides), or a fixed share of the causal tiles, in (0, 1], for `selection="joint"`: sink, local and last
        blocks, and the pieces with the most sampled mass per tile, as many as fit; `cra` and `rows_at_target` say nothing then.
    window_ratio: the width of the local window of `window`, as a share of the keys.
    block_size: tokens per block. The kernels are built for 128.
    sink_blocks, local_blocks, last_blocks: first key blocks, blocks up to and with the diagonal, and last query blocks (computed
        in full) that are always kept.
    dense_below: with fewer keys than this the layer runs dense.
    backend: "torch", "triton", "fa4" (Triton, with FlashAttention-4's forward; an error where they can't run) or "auto" (the
        fastest correct one).
    """

    cra: float = 0.95
    rows_at_target: float = 0.97
    selection: str = "joint"
    scope: str = "head"
    sampling: str = "spread"
    sample_ratio: float = 1 / 32
    max_sampled_rows: int = 512
    sampling_margin: float = 4.0
    segments: int | None = None
    alpha_columns: float | None = None
    alpha_slashes: float | None = None
    density: float | None = None
    window_ratio: float = 0.08
    block_size: int = 128
    sink_blocks: int = 1
    local_blocks: int = 2
    last_blocks: int = 1
    dense_below: int = 1024
    backend: str = "auto"

    def __post_init__(self):
        for name in ("cra", "rows_at_target", "sample_ratio", "window_ratio"):
            self._check_share(name)
        for name in ("alpha_columns", "alpha_slashes", "density"):
            if getattr(self, name) is not None:
                self._check_share(name)
        for name, choices in (("selection", SELECTIONS), ("sampling", SAMPLINGS), ("scope", SCOPES), ("backend", BACKENDS)):
            if getattr(self, name) not in choices:
                raise ValueError(f"{name} must be one of {', '.join(choices)}, not {getattr(self, name)!r}")
        if self.density is not None and self.selection != "joint":
            raise ValueError(f"density needs selection='joint', not {self.selection!r}")
        for name in ("block_size", "local_blocks", "max_sampled_rows"):
            self._check_count(name, 1)
        for name in ("sink_blocks", "last_blocks", "dense_below"):
            self._check_count(name, 0)
        margin = self.sampling_margin
        if isinstance(margin, bool) or not isinstance(margin, (int, float)) or not 0 <= margin < float("inf"):
            raise ValueError(f"sampling_margin must be a number of at least 0, not {margin!r}")
        if self.segments is not None:
            self._check_count("segments", 1)

    def _check_share(self, name):
        value = getattr(self, name)
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value <= 1:
            raise ValueError(f"{name} must be a number above 0 and at most 1, not {value!r}")

    def _check_count(self, name, least):
        value = getattr(self, name)
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise ValueError(f"{name} must be a whole number of at least {least}, not {value!r}")

    def rows_wanted(self, queries: int) -> int:
        """How many of the queries are to be sampled."""
        return min(int(self.sample_ratio * queries + 0.5), self.max_sampled_rows)

    def segment_count(self, queries: int) -> int:
        """The number of equal parts of the queries: as set, else one per sampled block ("tail") or 8 query blocks ("spread")."""
        blocks = -(-queries // self.block_size)
        if self.segments is not None:
            wanted = self.segments
        elif self.sampling == "tail":
            wanted = round(self.rows_wanted(queries) / self.block_size)
        else:
            wanted = blocks // BLOCKS_PER_SEGMENT
        return min(max(wanted, 1), blocks)

    def replace(self, **changes) -> SampleAttentionConfig:
        """A copy with some settings changed, validated again."""
        return dataclasses.replace(self, **changes)

    def to_dict(self) -> dict:
        return dataclasses.asdict(self)

    def to_json(self) -> str:
        return json.dumps(self.to_dict(), indent=2)

    @classmethod
    def from_dict(cls, values: dict) -> SampleAttentionConfig:
        """The config of a dict as `to_dict` made it. Raises ValueError for a name that is no setting."""
        known = {field.name for field in dataclasses.fields(cls)}
        unknown = sorted(set(values) - known)
        if unknown:
            raise ValueError(f"unknown setting(s): {', '.join(map(str, unknown))}; known: {', '.join(sorted(known))}")
        return cls(**values)


def meanings() -> dict[str, str]:
    """What each setting means, as the class's docstring says; {} where Python runs without docstrings."""
    entries = re.findall(r"^    ([a-z][a-z_, ]*): (.+(?:\n        .+)*)", SampleAttentionConfig.__doc__ or "", re.MULTILINE)
    return {name: " ".join(text.replace("`", "").split()) for names, text in entries for name in names.split(", ")}
