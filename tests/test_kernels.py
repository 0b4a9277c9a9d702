"""The Triton kernels against float64: no further off than twice their torch twin plus a rounding band.

The same cases run in Triton's interpreter (float16, float32, small; bfloat16 is wrong there) and, marked `gpu`, on a GPU.
"""

import pytest
import torch
from dense import pooled
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from interpreter import INTERPRETED, assert_passes_interpreted

from sampleattn import SampleAttentionConfig, backends, reference, sample_attention
from sampleattn.block_mask import Grid
from sampleattn.filtering import select

pytest.importorskip("triton", reason="Triton is not installed")
from sampleattn.kernels.block_index_lists import block_index_lists  # noqa: E402

from sampleattn.kernels import block_sparse_attention, hopper, row_logsumexp, sampled_tile_masses  # noqa: E402

BLOCK = 128
EPSILON = torch.finfo(torch.float32).eps


@pytest.fixture(params=["half", "wide"])
def dtype(request, device):
    """float16 and float32 in the interpreter, float16 and bfloat16 on a GPU."""
    return torch.float16 if request.param == "half" else torch.bfloat16 if device.type == "cuda" else torch.float32


@pytest.mark.skipif(INTERPRETED, reason="this is the interpreter")
def test_in_the_interpreter():
    assert_passes_interpreted(__file__)


def inputs(device, dtype, heads=2, kv_heads=1, nq=300, nk=None, head_dim=64, value_dim=None, padding=None):
    """q, k, v, a random causal block mask, key_range; `padding`: the (first, one-past-last) real key of each batch row."""
    nk, batch = nk or nq, 1 if padding is None else len(padding)
    generator = torch.Generator().manual_seed(nq * 1009 + nk * 31 + head_dim + heads)

    def random(*shape):
        return torch.randn(*shape, generator=generator).to(device, dtype)

    q, k = random(batch, heads, nq, head_dim), random(batch, kv_heads, nk, head_dim)
    v = random(batch, kv_heads, nk, value_dim or head_dim)
    mask = torch.rand(batch, heads, -(-nq // BLOCK), -(-nk // BLOCK), generator=generator).to(device) < 0.6
    key_range = None if padding is None else torch.tensor(padding, dtype=torch.int32, device=device)
    return q, k, v, mask, key_range


def exact(q, k, v, mask, scale, key_range):
    """out, lse and cell probabilities in float64, dense, over the cells of the mask; and the largest |q|.|k| behind a logit."""
    nq, nk, group = q.shape[2], k.shape[2], q.shape[1] // k.shape[1]
    q, k, v = q.double(), k.double().repeat_interleave(group, 1), v.double().repeat_interleave(group, 1)
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    position = torch.arange(nq, device=q.device)[:, None] + nk - nq
    keys = torch.arange(nk, device=q.device)[None]
    visible = (keys <= position)[None, None]
    if key_range is not None:
        lo, hi = key_range[:, 0, None, None, None], key_range[:, 1, None, None, None]
        visible = visible & (keys >= lo) & (keys < hi) & (position >= lo) & (position < hi)
    cells = mask.repeat_interleave(BLOCK, 2)[:, :, :nq].repeat_interleave(BLOCK, 3)[..., :nk] & visible
    logits = (q @ k.mT * scale).masked_fill(~cells, -torch.inf)
    lse = torch.logsumexp(logits, -1)
    weights = torch.exp(logits - lse.masked_fill(lse == -torch.inf, 0)[..., None])
    return weights @ v, lse, weights, float((q.abs() @ k.abs().mT).max() * scale)


def within(found, twin, truth, band, what):
    """Both finite where the truth is, equal where it is -inf, and `found` off by at most 2 x the twin's error + band."""
    assert found.shape == truth.shape, what
    found, twin, finite = found.double(), twin.double(), truth.isfinite()
    assert torch.equal(found.isfinite(), finite), f"{what}: NaN or inf where there should be none, or none where there should be"
    assert torch.equal(found[~finite], truth[~finite]), what
    if finite.any():
        error, allowed = (found - truth)[finite].abs().max(), 2 * (twin - truth)[finite].abs().max() + band
        assert error <= allowed, f"{what}: off by {error:.3g}, allowed {allowed:.3g}"


def compare(q, k, v, mask, key_range=None, scale=None, clean=None):
    """All three kernels against float64 and their twins. `clean`: the same k, v with numbers in place of the padding."""
    triton, k0, v0 = backends.twins("triton"), *(clean or (k, v))
    truth, lse, _, size = exact(q, k0, v0, mask, scale, key_range)
    band = 8 * EPSILON * (1 + size)  # of a logit summed in float32
    largest = float(v0.abs().max())
    out, out_lse = triton.block_sparse_attention(q, k, v, mask, scale, key_range)
    twin, twin_lse = reference.block_sparse_attention(q, k0, v0, mask, scale, key_range)
    assert out.dtype == q.dtype and out_lse.dtype == torch.float32
    within(out, twin, truth, (torch.finfo(q.dtype).eps + band) * largest, "out")
    within(out_lse, twin_lse, lse, band, "lse")

    _, lse, weights, _ = exact(q, k0, v0, torch.ones_like(mask), scale, key_range)
    dense = triton.row_logsumexp(q, k, scale, key_range)
    within(dense, reference.row_logsumexp(q, k0, scale, key_range), lse, band, "row_logsumexp")

    batch, nq, tiles = q.shape[0], q.shape[2], mask.shape[3]
    sampled = 150 if q.is_cuda or nq == 1000 else 20  # the interpreter takes milliseconds a row; 150 are two programs' rows
    rows = torch.cat((torch.randperm(nq)[:sampled], torch.tensor([-1, nq - 1]))).to(q.device).expand(batch, -1)
    masses, row_lse = triton.sampled_tile_masses(q, k, rows, scale, key_range)
    twin, twin_lse = reference.sampled_tile_masses(q, k0, rows, scale, key_range)
    missing = (rows < 0)[:, None]
    padded = torch.nn.functional.pad(weights, (0, tiles * BLOCK - weights.shape[-1])).unflatten(-1, (tiles, BLOCK)).sum(-1)
    wanted = padded[:, :, rows[0].clamp_min(0)].masked_fill(missing[..., None], 0)
    within(masses, twin, wanted, band, "tile masses")
    within(row_lse, twin_lse, lse[:, :, rows[0].clamp_min(0)].masked_fill(missing, -torch.inf), band, "rows' lse")


@pytest.mark.parametrize("length", [1, 127, 128, 129, 300, 1000])
def test_lengths(device, dtype, poison, length):
    compare(*inputs(device, dtype, nq=length, heads=1 if length == 1000 else 2))


@pytest.mark.gpu
def test_a_longer_length(device, dtype, poison):
    compare(*inputs(device, dtype, nq=1024 if INTERPRETED else 4097, heads=4, kv_heads=2, head_dim=128))


@pytest.mark.gpu
@pytest.mark.parametrize("head_dim", [64, 128])
def test_the_kernels_of_other_gpus(device, dtype, poison, monkeypatch, head_dim):
    """What runs where Hopper's copy engine can't."""
    monkeypatch.setattr(hopper, "readable", lambda *layouts, **limits: False)
    for module in (block_sparse_attention, row_logsumexp, sampled_tile_masses):
        monkeypatch.setattr(module, "_plan", module._plan.__wrapped__)
    padding = [(0, 777), (130, 777), (0, 600)]
    compare(*inputs(device, dtype, nq=700, nk=777, heads=4, kv_heads=2, head_dim=head_dim, padding=padding))


@pytest.mark.parametrize(("heads", "kv_heads"), [(4, 4), (4, 2), (4, 1), (8, 1)])
def test_groups(device, dtype, poison, heads, kv_heads):
    compare(*inputs(device, dtype, heads=heads, kv_heads=kv_heads, nq=140))


@pytest.mark.parametrize(("head_dim", "value_dim"), [(64, 32), (16, 32), (96, 96), (128, 128), (192, 128), (256, 256), (40, 72)])
def test_head_dims(device, dtype, poison, head_dim, value_dim):
    compare(*inputs(device, dtype, heads=1, nq=260, head_dim=head_dim, value_dim=value_dim))


@pytest.mark.parametrize(("nq", "nk"), [(1, 300), (100, 300), (128, 384), (129, 700)])
def test_fewer_queries_than_keys(device, dtype, poison, nq, nk):
    compare(*inputs(device, dtype, nq=nq, nk=nk))


@pytest.mark.parametrize(("nq", "nk"), [(300, 300), (150, 333)])
def test_mixed_padding(device, dtype, poison, nq, nk):
    """Left, right and no padding in one batch, and nothing but padding; NaN in padded keys and values stays out."""
    q, k, v, mask, key_range = inputs(device, dtype, nq=nq, nk=nk, heads=1, padding=[(0, nk), (130, nk), (0, nk - 170), (5, 5)])
    real = torch.arange(nk, device=device)
    padded = ~((real >= key_range[:, :1]) & (real < key_range[:, 1:]))[:, None, :, None]
    compare(q, k.masked_fill(padded, torch.nan), v.masked_fill(padded, torch.nan), mask, key_range, clean=(k, v))


def test_strides(device, dtype, poison):
    """Token-major q and k, as models give them, v with its last dimension strided, and an expanded mask."""
    q, k, v, mask, _ = inputs(device, dtype, heads=4, kv_heads=2, nq=200)
    q, k = (x.transpose(1, 2).contiguous().transpose(1, 2) for x in (q, k))
    v = torch.stack((v, v), -1)[..., 0]
    assert v.stride(-1) == 2 and not q.is_contiguous()
    compare(q, k, v, mask[:, :1].expand(-1, 4, -1, -1))


@pytest.mark.parametrize("kind", ["huge", "rising", "falling", "equal", "dominant"])
def test_extreme_logits(device, dtype, poison, kind):
    q, k, v, mask, _ = inputs(device, dtype)
    if kind == "huge":  # logits of about +-1e4
        compare(q * 16, k * 16, v, mask, scale=5.0)
    elif kind in ("rising", "falling"):  # each tile's maximum is far above, or below, that of the one before
        growth = torch.linspace(0.1, 60, k.shape[2], device=device)[:, None].to(dtype)
        compare(q, k * (growth if kind == "rising" else growth.flip(0)), v, mask)
    elif kind == "equal":
        compare(q, torch.zeros_like(k), v, mask)
    else:
        k[:, :, 7] = q[:, :1, 200] * 30
        compare(q, k, v, mask)


def test_rows_without_a_kept_tile(device, dtype, poison):
    q, k, v, mask, _ = inputs(device, dtype)
    out, lse = backends.twins("triton").block_sparse_attention(q, k, v, torch.zeros_like(mask))
    assert (out == 0).all() and (lse == -torch.inf).all()


def test_more_tiles_than_a_program_holds(device, dtype, poison, monkeypatch):
    """Rows' masses are then normalised some tiles at a time."""
    monkeypatch.setattr(sampled_tile_masses, "AT_ONCE", 2)
    monkeypatch.setattr(sampled_tile_masses, "_plan", sampled_tile_masses._plan.__wrapped__)
    q, k, *_ = inputs(device, dtype, nq=300, nk=450, heads=2, padding=[(0, 450), (130, 450)])
    key_range = torch.tensor([[0, 450], [130, 450]], dtype=torch.int32, device=device)
    rows = torch.tensor([[3, 250, -1, 299]], device=device)
    masses, lse = backends.twins("triton").sampled_tile_masses(q, k, rows, None, key_range)
    twin, twin_lse = reference.sampled_tile_masses(q, k, rows, None, key_range)
    torch.testing.assert_close(masses, twin, rtol=0, atol=1e-4)
    torch.testing.assert_close(lse, twin_lse, rtol=0, atol=1e-3)


@pytest.mark.gpu
@pytest.mark.parametrize(("heads", "count"), [(1, 5000), (2, 700), (8, 1100)])
def test_many_sampled_rows(device, dtype, poison, heads, count):
    """In any order and more than once; more of them than the row blocks that a program's share is cut from."""
    q, k, *_ = inputs(device, dtype, heads=heads, kv_heads=1, nq=900, nk=1000, head_dim=128)
    rows = torch.randint(-1, 900, (1, count), generator=torch.Generator().manual_seed(count)).to(device)
    masses, lse = backends.twins("triton").sampled_tile_masses(q, k, rows)
    twin, twin_lse = reference.sampled_tile_masses(q, k, rows)
    torch.testing.assert_close(masses, twin, rtol=0, atol=1e-4)
    torch.testing.assert_close(lse, twin_lse, rtol=0, atol=1e-3)


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_mask_to_lists_and_back(device, poison, data):
    """Any mask, lengths and padding: the tiles listed are the kept ones that a row sees, ascending, full ones in one span."""
    length = data.draw(st.integers(1, 1500))
    queries = data.draw(st.integers(1, length))
    real = sorted(data.draw(st.tuples(*[st.integers(0, length)] * 2)))
    share, seed = data.draw(st.sampled_from([0.0, 0.3, 1.0])), data.draw(st.integers(0, 99))
    off, tiles, rows = length - queries, -(-length // BLOCK), -(-queries // BLOCK)
    mask = torch.rand(2, 3, rows, tiles, generator=torch.Generator().manual_seed(seed)).to(device) < share
    key_range = torch.tensor([[0, length], real], dtype=torch.int32, device=device)
    ids, spans = block_index_lists(mask, queries, length, key_range)
    j, i = torch.arange(tiles), torch.arange(rows)[:, None]
    for b, (lo, hi) in enumerate(key_range.tolist()):
        first, last = i * BLOCK + off, ((i + 1) * BLOCK).clamp_max(queries) + off - 1
        seen = (j * BLOCK <= last) & ((j + 1) * BLOCK > lo) & (j * BLOCK < hi)
        full = ((j + 1) * BLOCK <= (first + 1).clamp_max(hi)) & (j * BLOCK >= lo)
        for h in range(3):
            for row in range(rows):
                begin, end, count, _ = spans[b, h, row].tolist()
                listed = ids[b, h, row, :count].cpu().long()
                assert torch.equal(listed, (mask[b, h, row].cpu() & seen[row]).nonzero()[:, 0])
                assert full[row][listed[begin:end]].all() and not full[row][listed[:begin]].any()
                assert not full[row][listed[end:]].any()


def test_rows_of_all_batches_at_once(device, poison):
    q, k, *_ = inputs(device, torch.float16, padding=[(0, 300), (40, 300)])
    rows = torch.tensor([[3, 250, -1]], device=device)
    once, each = (backends.twins("triton").sampled_tile_masses(q, k, r) for r in (rows, rows.expand(2, -1).contiguous()))
    assert torch.equal(once[0], each[0]) and torch.equal(once[1], each[1])


def compare_maps(q, k, mask, rows, cols, shape, scale=None):
    """Both planes of a map window, each way of pooling, against float64 and the torch twin."""
    (r0, r1), (c0, c1) = rows, cols
    _, lse, weights, size = exact(q, k, k, torch.ones_like(mask), scale, None)
    lse = lse[..., r0:r1].float()
    cells = mask.repeat_interleave(BLOCK, 2)[:, :, : q.shape[2]].repeat_interleave(BLOCK, 3)[..., : k.shape[2]]
    truth = torch.stack((weights, weights * ~cells))[..., r0:r1, c0:c1].cpu()
    for reduce in ("max", "sum"):
        wanted = pooled(truth, *shape, reduce).to(q.device)
        window = (q, k, lse, rows, cols, shape, reduce, scale)
        band = 8 * EPSILON * (1 + size) * max(1.0, float(wanted.max()))
        twin = backends.twins("torch").map_window(*window, mask)
        found = backends.twins("triton").map_window(*window, mask)
        within(found, twin, wanted, band, f"{reduce}, weights and missed")
        if q.is_cuda:
            assert torch.equal(found, backends.twins("triton").map_window(*window, mask)), "two calls differ"
        within(backends.twins("triton").map_window(*window), twin[:1], wanted[:1], band, f"{reduce}, weights alone")


@pytest.mark.parametrize(
    ("nq", "nk", "rows", "cols", "shape"),
    [
        (1, 1, (0, 1), (0, 1), (1, 1)),
        (127, 127, (0, 127), (0, 127), (127, 127)),
        (129, 129, (0, 129), (0, 129), (1, 1)),
        (300, 300, (0, 300), (0, 300), (150, 140)),  # edges that don't divide, one program on the diagonal
        (300, 300, (170, 300), (0, 130), (10, 65)),  # no key after its row
        (300, 300, (0, 130), (170, 300), (3, 3)),  # nothing but keys after their rows
        (150, 333, (7, 149), (40, 331), (71, 97)),
        (500, 500, (0, 500), (0, 500), (260, 7)),
    ],
)
def test_map_windows(device, dtype, poison, nq, nk, rows, cols, shape):
    q, k, _, mask, _ = inputs(device, dtype, nq=nq, nk=nk)
    compare_maps(q, k, mask, rows, cols, shape)


@pytest.mark.parametrize(("heads", "kv_heads", "head_dim"), [(8, 1, 64), (4, 4, 40), (4, 2, 128), (2, 1, 96), (1, 1, 256)])
def test_map_windows_of_heads(device, dtype, poison, heads, kv_heads, head_dim):
    """Groups, head dimensions, token-major q and k, an expanded mask."""
    q, k, _, mask, _ = inputs(device, dtype, heads=heads, kv_heads=kv_heads, nq=140, nk=160, head_dim=head_dim)
    q, k = (x.transpose(1, 2).contiguous().transpose(1, 2).expand(2, -1, -1, -1) for x in (q, k))
    compare_maps(q, k, mask[:, :1].expand(2, heads, -1, -1), (0, 140), (20, 160), (50, 77))


@pytest.mark.parametrize("kind", ["huge", "equal", "dominant"])
def test_map_windows_of_extreme_logits(device, dtype, poison, kind):
    q, k, _, mask, _ = inputs(device, dtype)
    if kind == "equal":
        k = torch.zeros_like(k)
    elif kind == "dominant":
        k[:, :, 7] = q[:, :1, 200] * 30
    else:
        q, k = q * 16, k * 16
    compare_maps(q, k, mask, (5, 300), (0, 280), (59, 40), scale=5.0 if kind == "huge" else None)


@pytest.mark.parametrize(("length", "shape"), [((131072, 131072), (1024, 1024)), ((100, 131072), (1, 1)), ((700, 3), (260, 3))])
def test_parts_of_cells_fill_the_gpu_and_fit_the_window(length, shape):
    from sampleattn.kernels.map_window import LARGEST_BUFFER, _parts

    for maps in (1, 64):
        parts = _parts(length, shape, maps, (128, 64))
        cells = [count * part for count, part in zip(shape, parts, strict=True)]
        assert all(count <= n for count, n in zip(cells, length, strict=True))
        assert parts == (1, 1) or 4 * maps * cells[0] * cells[1] <= LARGEST_BUFFER


def test_bad_logsumexps_of_map_windows(device):
    q, window = half(1, 2, 8, 64).to(device), ((0, 8), (0, 8), (4, 4), "max")
    with pytest.raises(TypeError, match="float64"):
        backends.twins("triton").map_window(q, q, torch.zeros(1, 2, 8, dtype=torch.float64, device=device), *window)
    with pytest.raises(ValueError, match=r"\[1, 2, 8\]"):
        backends.twins("triton").map_window(q, q, torch.zeros(1, 2, 9, device=device), *window)


def half(*shape):
    return torch.zeros(*shape, dtype=torch.float16)


BAD = [
    ({"q": torch.zeros(1, 2, 8, 64, dtype=torch.float64)}, TypeError, "float64"),
    ({"q": "text"}, TypeError, "str"),
    ({"q": half(2, 8, 64)}, ValueError, "4 dimensions"),
    ({"k": half(1, 2, 8, 32)}, ValueError, "k must be"),
    ({"k": half(1, 3, 8, 64), "v": half(1, 3, 8, 64)}, ValueError, "multiple of the key heads"),
    ({"q": half(1, 2, 9, 64)}, ValueError, "9 queries"),
    ({"v": half(1, 2, 7, 64)}, ValueError, "v must be"),
    ({"k": half(1, 2, 0, 64)}, ValueError, "not be empty"),
    ({"q": half(1, 2, 8, 512), "k": half(1, 2, 8, 512)}, ValueError, "at most 256"),
    ({"scale": -1.0}, ValueError, "scale"),
    ({"scale": float("nan")}, ValueError, "scale"),
    ({"key_range": torch.zeros(1, 2, dtype=torch.int64)}, TypeError, "int64"),
    ({"key_range": torch.zeros(2, 2, dtype=torch.int32)}, ValueError, "key_range must be"),
    ({"block_size": 100}, ValueError, "block_size"),
    ({"block_mask": torch.ones(1, 2, 1, 1)}, TypeError, "float32"),
    ({"block_mask": torch.ones(1, 2, 1, 2, dtype=torch.bool)}, ValueError, r"\[1, 2, 1, 1\]"),
]


@pytest.mark.parametrize(("change", "error", "message"), BAD, ids=[str(i) for i in range(len(BAD))])
def test_bad_inputs_are_named_before_any_launch(device, change, error, message):
    q = half(1, 2, 8, 64)
    good = {"q": q, "k": q, "v": q, "block_mask": torch.ones(1, 2, 1, 1, dtype=torch.bool)}
    values = {name: x.to(device) if isinstance(x, torch.Tensor) else x for name, x in (good | change).items()}
    with pytest.raises(error, match=message):
        backends.twins("triton").block_sparse_attention(**values)


@pytest.mark.parametrize(("rows", "error"), [(torch.zeros(1, 4), TypeError), (torch.zeros(3, 4, dtype=torch.int64), ValueError)])
def test_bad_rows(device, rows, error):
    q = half(1, 2, 8, 64).to(device)
    with pytest.raises(error, match="rows must be"):
        backends.twins("triton").sampled_tile_masses(q, q, rows.to(device))


@pytest.mark.skipif(INTERPRETED, reason="the interpreter takes CPU tensors")
def test_cpu_tensors_are_refused():
    q = half(1, 2, 8, 64)
    with pytest.raises(ValueError, match="needs CUDA tensors, found cpu"):
        backends.twins("triton").row_logsumexp(q, q)


KINDS = [
    {"selection": "joint"},
    {"density": 0.4},
    {"selection": "independent"},
    {"selection": "window"},
    {"scope": "segment"},
    {"sampling": "tail"},
]


@pytest.mark.parametrize("kind", KINDS, ids=str)
@pytest.mark.parametrize(
    ("nq", "nk", "heads", "kv_heads"),
    [
        (129, 300, 2, 1),
        pytest.param(127, 127, 8, 8, marks=pytest.mark.gpu),
        pytest.param(1000, 1000, 8, 4, marks=pytest.mark.gpu),
        pytest.param(700, 4097, 8, 1, marks=pytest.mark.gpu),
    ],
)
def test_the_whole_method(device, poison, kind, nq, nk, heads, kv_heads):
    """Left, right and no padding in one batch: the torch twin's choice on the same masses, and attention over its tiles."""
    ends = [(0, nk), (nk // 3, nk), (0, nk - nk // 4)]
    q, k, v, _, key_range = inputs(device, torch.float16, heads, kv_heads, nq, nk, padding=ends)
    position = torch.arange(nk, device=device)
    padding = (position >= key_range[:, :1]) & (position < key_range[:, 1:])
    config = SampleAttentionConfig(cra=0.7, sample_ratio=1 / 8, dense_below=0, backend="triton", **kind)
    out, chosen = sample_attention(q, k, v, config, padding=padding, return_selection=True)
    grid = Grid(nq, nk, BLOCK, torch.device("cpu"), key_range.cpu())
    same = select(chosen.tile_masses.cpu(), chosen.rows.cpu(), grid, config.replace(backend="torch"))
    assert torch.equal(chosen.block_mask.cpu(), same.block_mask)
    truth, _, _, size = exact(q, k, v, chosen.block_mask, None, key_range)
    twin, _ = reference.block_sparse_attention(q, k, v, chosen.block_mask, None, key_range)
    band = torch.finfo(q.dtype).eps + 8 * EPSILON * (1 + size)
    within(out, twin, truth, band * float(v.abs().max()), "out")


@pytest.mark.gpu
@pytest.mark.parametrize("kind", KINDS, ids=str)
@pytest.mark.parametrize("padded", [False, True])
def test_sample_attention_never_waits_for_the_gpu(device, kind, padded):
    """The whole method on the kernels, no host sync, and the torch backend's output on the same selection."""
    q, k, v, *_ = inputs(device, torch.bfloat16, heads=4, kv_heads=2, nq=2048, head_dim=64)
    padding = torch.arange(2048, device=device)[None] >= 100 if padded else None
    config = SampleAttentionConfig(backend="triton", **kind)
    sample_attention(q, k, v, config, padding=padding)  # compiles
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        out, chosen = sample_attention(q, k, v, config, padding=padding, return_selection=True)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    key_range = torch.tensor([[100, 2048]], dtype=torch.int32, device=device) if padded else None
    twin, _ = reference.block_sparse_attention(q, k, v, chosen.block_mask, None, key_range)
    assert (out.float() - twin.float()).abs().max() < 0.05 and not out.isnan().any()
