"""Stage 2: the kernels choose what the torch twins choose, bit for bit, and a fixed density is kept.

As in test_kernels.py the cases run in Triton's interpreter and, marked `gpu`, on a GPU.
"""

import itertools
import re

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from interpreter import INTERPRETED, assert_passes_interpreted

from sampleattn import SampleAttentionConfig, joint, pieces
from sampleattn.block_mask import Grid
from sampleattn.filtering import select, selected_tiles
from sampleattn.sampling import rows_of_segments, sampled_rows

triton = pytest.importorskip("triton", reason="Triton is not installed")
from triton.backends.compiler import GPUTarget  # noqa: E402

from sampleattn.kernels import rows_of_segments as rows_kernel  # noqa: E402
from sampleattn.kernels import selected_tiles as kernel  # noqa: E402

CPU = torch.device("cpu")
KINDS = [dict(selection="joint"), dict(selection="joint", density=0.6), dict(selection="independent"), dict(selection="window")]
GRIDS = [(1000, 1300), (129, 513), (1, 400), (2000, 2000)]
LENGTHS = [1, 127, 128, 129, 1000, 4097]
PADDINGS = {"plain": None, "padded": [(0, None), (300, None), (0, -90), (0, 0)]}


@pytest.mark.skipif(INTERPRETED, reason="this is the interpreter")
def test_in_the_interpreter():
    assert_passes_interpreted(__file__)


def make_grid(nq, nk, padding, device):
    if padding is None:
        return Grid(nq, nk, 128, device)
    ends = [(start, nk if end is None else end % nk) for start, end in padding]
    return Grid(nq, nk, 128, device, torch.tensor(ends, dtype=torch.int32, device=device))


def random_masses(grid, rows, heads, seed=0, kind="peaks"):
    """fp32 [B, H, R, key blocks]: each real row's masses over its causal tiles add up to 1."""
    batch = 1 if grid.key_range is None else grid.key_range.shape[0]
    x = torch.rand(batch, heads, rows.shape[1], grid.key_blocks, generator=torch.Generator().manual_seed(seed))
    if kind == "one":
        x = (x == x.amax(-1, keepdim=True)).float()
    else:
        x = {"peaks": x**8, "equal": torch.ones_like(x), "zero": torch.zeros_like(x)}[kind]
    rows = rows.cpu()
    x *= (grid_on(grid, CPU).slash_of_rows(rows.clamp_min(0) // grid.block) >= 0)[:, None] & (rows >= 0)[:, None, :, None]
    return (x / x.sum(-1, keepdim=True).clamp_min(1e-9)).to(grid.device)


def grid_on(grid, device):
    return Grid(grid.nq, grid.nk, grid.block, device, None if grid.key_range is None else grid.key_range.to(device))


def assert_same_choice(grid, config, heads=2, seed=0, kind="peaks"):
    segments = config.segment_count(grid.nq) if config.scope == "segment" else 1
    rows = sampled_rows(grid, config)
    masses = random_masses(grid, rows, heads, seed, kind)
    wanted = selected_tiles(masses.cpu(), rows.cpu(), grid_on(grid, CPU), config, segments)
    found = kernel.selected_tiles(masses, rows, grid, config, segments)
    for name, x, y in zip(("block_mask", "columns", "slashes"), found, wanted, strict=True):
        assert x.dtype == torch.bool and torch.equal(x.cpu(), y), f"{name}: {(x.cpu() != y).sum()} of {y.numel()} differ"


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: "-".join(map(str, kind.values())))
@pytest.mark.parametrize("scope, sampling", [("head", "spread"), ("segment", "spread"), ("segment", "tail")])
@pytest.mark.parametrize("nq, nk", GRIDS)
@pytest.mark.parametrize("padding", PADDINGS.values(), ids=PADDINGS)
def test_the_kernel_makes_the_twins_choice(device, poison, kind, scope, sampling, nq, nk, padding):
    segments = 3 if nq > 300 and scope == "segment" else None
    config = SampleAttentionConfig(cra=0.8, sample_ratio=0.1, segments=segments, scope=scope, sampling=sampling, **kind)
    assert_same_choice(make_grid(nq, nk, padding, device), config, heads=1 if padding else 2)


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: "-".join(map(str, kind.values())))
@pytest.mark.parametrize("length", LENGTHS)
def test_lengths(device, poison, kind, length):
    assert_same_choice(make_grid(length, length, None, device), SampleAttentionConfig(cra=0.8, sample_ratio=0.02, **kind))


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: "-".join(map(str, kind.values())))
@pytest.mark.parametrize("masses", ["equal", "one", "zero"])
def test_ties_and_extremes(device, poison, kind, masses):
    assert_same_choice(make_grid(1500, 1500, None, device), SampleAttentionConfig(sample_ratio=0.05, **kind), kind=masses)


SETTINGS = [
    dict(cra=0.99, rows_at_target=1.0),
    dict(sampling_margin=0.0),
    dict(last_blocks=0, sink_blocks=0),
    dict(last_blocks=30),
    dict(local_blocks=9, sink_blocks=40),
    dict(density=0.01),
    dict(density=1.0),
]


@pytest.mark.parametrize("change", SETTINGS, ids=str)
def test_settings(device, poison, change):
    assert_same_choice(make_grid(1500, 1600, None, device), SampleAttentionConfig(sample_ratio=0.05, **change))


@pytest.mark.gpu
@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: "-".join(map(str, kind.values())))
@pytest.mark.parametrize("heads, length", [(32, 32_768), (8, 65_536), (3, 40_001), (40, 20_000)])
def test_programs_that_share_a_head_make_the_twins_choice(device, poison, kind, heads, length):
    config = SampleAttentionConfig(**kind)
    for seed in range(3):
        assert_same_choice(make_grid(length, length, None, device), config, heads, seed)


def test_numbers_that_both_twins_hold():
    assert kernel.ROUNDS == joint.ROUNDS
    assert (kernel.LEAST_SHARE.value, kernel.MOST_SHARE.value) == (joint.LEAST_SHARE, joint.MOST_SHARE)
    assert (kernel.HALVED_ROUNDS.value, kernel.CRUMB_BITS.value) == (joint.HALVED_ROUNDS, joint.CRUMB_BITS)
    worth = torch.tensor([1, 2**30, 7, 0], dtype=torch.int32)
    order = pieces.worth_per_tile(worth, torch.tensor([8192, 1, 3, 5]))
    assert order[0] > 0 and order[1] < 2**11 and order[3] == 0


@pytest.mark.skipif(INTERPRETED, reason="the interpreter has no compiler")
@pytest.mark.parametrize("kind", ["joint", "budget"])
@pytest.mark.parametrize("places, rows", [(256, 16), (1024, 8)])
def test_programs_that_share_a_head_keep_their_l1_cache(kind, places, rows):
    """Compiled for Hopper as at 32K and 128K: nothing acquires or fences, which flushes it, and masses are not read as vectors,
    which would spread a row over warps."""
    constants = dict(KIND=kind, HAS_RANGE=False, BLOCK=128, PLACES=places, ROWS=rows, SHARED=True, ROUNDS=20, DIGIT=4)
    constants |= dict(range_ptr=None, sr_r=1)
    pointers = dict(masses_ptr="*fp32", rows_ptr="*i64", work_ptr="*i32", mask_ptr="*i1", columns_ptr="*i1", slashes_ptr="*i1")
    floats = dict.fromkeys(("cra", "rest", "margin", "rows_at_target", "density", "alpha_columns", "alpha_slashes"), "fp32")
    names = kernel._select.arg_names
    signature = {name: (pointers | floats).get(name, "i32") for name in names} | dict.fromkeys(constants, "constexpr")
    aligned = {(names.index(name),): [["tt.divisibility", 16]] for name in pointers}
    options = dict(num_warps=8, enable_fp_fusion=False, launch_cooperative_grid=True)
    source = triton.compiler.ASTSource(kernel._select, signature, constants, aligned)
    ptx = triton.compile(source, target=GPUTarget("cuda", 90, 32), options=options).asm["ptx"]
    assert "ld.relaxed.gpu" in ptx
    assert not re.findall("acquire|acq_rel|fence|membar|ld.global[a-z.:]*.v[24]", ptx)


@pytest.mark.parametrize("sampling", ["spread", "tail"])
def test_rows(device, poison, sampling):
    for (nq, nk), padding, segments, count in itertools.product(GRIDS, PADDINGS.values(), (1, 3, 8), (1, 50, 128)):
        grid = make_grid(nq, nk, padding, device)
        segments = min(segments, grid.query_blocks)
        found = rows_kernel.rows_of_segments(grid, segments, count, sampling)
        wanted = rows_of_segments(grid_on(grid, CPU), segments, count, sampling)
        assert found.dtype == torch.int64 and torch.equal(found.cpu(), wanted), (nq, nk, padding, segments, count)


@pytest.mark.parametrize(
    "change, error, said",
    [
        (dict(masses=torch.zeros(1, 2, 8, 4, dtype=torch.float64)), TypeError, "float32"),
        (dict(masses=torch.zeros(1, 2, 8, 3)), ValueError, "4"),
        (dict(rows=torch.zeros(1, 8)), TypeError, "int64"),
        (dict(rows=torch.zeros(1, 7, dtype=torch.int64)), ValueError, "rows must be"),
        (dict(segments=3), ValueError, "segments"),
        (dict(grid=Grid(2**21, 2**21, 128, CPU), masses=torch.zeros(1, 1, 8, 2**14)), ValueError, "8192 key blocks"),
    ],
)
def test_bad_inputs_are_named_before_any_launch(device, change, error, said):
    good = dict(masses=torch.zeros(1, 2, 8, 4), rows=torch.zeros(1, 8, dtype=torch.int64), segments=1)
    good["grid"] = Grid(500, 500, 128, CPU)
    values = {name: x.to(device) if isinstance(x, torch.Tensor) else x for name, x in (good | change).items()}
    with pytest.raises(error, match=said):
        kernel.selected_tiles(config=SampleAttentionConfig(), **values)


def chosen(length, config, heads=2, seed=0, padding=None):
    grid = make_grid(length, length, padding, CPU)
    rows = sampled_rows(grid, config)
    return select(random_masses(grid, rows, heads, seed), rows, grid, config)


@pytest.mark.skipif(INTERPRETED, reason="torch only")
class TestDensity:
    @settings(max_examples=30, deadline=None)
    @given(st.floats(0.02, 1), st.integers(300, 4000), st.integers(0, 99), st.sampled_from(["head", "segment"]), st.booleans())
    def test_is_not_exceeded(self, density, length, seed, scope, padded):
        padding = [(0, None), (150, None)] if padded else None
        config = SampleAttentionConfig(density=density, scope=scope, sample_ratio=0.05)
        selection = chosen(length, config, seed=seed, padding=padding)
        least = chosen(length, config.replace(density=1e-6), seed=seed, padding=padding).density
        # What is always kept may be more than a segment's share.
        most = torch.maximum(torch.tensor(density), least) if scope == "head" else density + least
        assert (selection.density <= most + 1e-6).all()

    @pytest.mark.parametrize("density", [0.05, 0.1, 0.25, 0.6])
    def test_is_nearly_used_up_at_32k(self, density):
        assert (chosen(32_768, SampleAttentionConfig(density=density)).density > 0.98 * density).all()

    def test_the_best_pieces_are_taken(self):
        """One column and one slash hold the mass: a budget for little more than them keeps both."""
        grid = Grid(8192, 8192, 128, CPU)
        config = SampleAttentionConfig(density=0.18)
        rows = sampled_rows(grid, config)
        masses = torch.zeros(1, 1, rows.shape[1], grid.key_blocks)
        block = rows[0] // 128
        masses[0, 0, :, 9] += 0.5 * (block >= 9)
        at = (block - 20).clamp_min(0)
        masses[0, 0].scatter_add_(-1, at[:, None], torch.full((len(at), 1), 0.5))
        selection = select(masses, rows, grid, config)
        assert selection.columns[0, 0, 0, 9] and selection.slashes[0, 0, 0, 20]
