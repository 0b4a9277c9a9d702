"""sample_attention against float64 dense attention restricted to the tiles that it says it kept."""

import itertools
import subprocess
import sys

import pytest
import torch
from dense import cells, dense_attention, planted
from hypothesis import given, settings
from hypothesis import strategies as st

from sampleattn import SampleAttentionConfig, sample_attention
from sampleattn.config import SAMPLINGS, SCOPES, SELECTIONS

EVERY_KIND = [
    dict(selection=selection, sampling=sampling, scope=scope)
    for selection, sampling, scope in itertools.product(SELECTIONS, SAMPLINGS, SCOPES)
]


def inputs(nq, nk, heads=4, kv_heads=2, batch=1, dim=16, value_dim=None, dtype=torch.float64, seed=0):
    generator = torch.Generator().manual_seed(seed)
    make = lambda *shape: torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)  # noqa: E731
    return (
        make(batch, heads, nq, dim) * 2,
        make(batch, kv_heads, nk, dim) * 2,
        make(batch, kv_heads, nk, value_dim or dim),
    )


def left_and_right_padding(batch, nk):
    padding = torch.ones(batch, nk, dtype=torch.bool)
    padding[0, : nk // 3] = False
    padding[1, nk - nk // 4 :] = False
    return padding


def expected(q, k, v, selection, padding=None):
    _, weights = dense_attention(q, k, v, padding)
    kept = weights * cells(selection.block_mask, q.shape[2], k.shape[2])
    values = v.double().repeat_interleave(q.shape[1] // k.shape[1], 1)
    return (kept / kept.sum(-1, keepdim=True).clamp_min(1e-300)) @ values


@pytest.mark.parametrize("kind", EVERY_KIND, ids=lambda kind: "-".join(kind.values()))
@pytest.mark.parametrize("nq, nk", [(700, 700), (513, 900), (128, 1300)])
@pytest.mark.parametrize("padded", [False, True])
def test_output_is_attention_over_the_kept_tiles(kind, nq, nk, padded):
    q, k, v = inputs(nq, nk, batch=2, value_dim=8)
    padding = left_and_right_padding(2, nk) if padded else None
    config = SampleAttentionConfig(cra=0.8, dense_below=0, **kind)
    out, selection = sample_attention(q, k, v, config, padding=padding, return_selection=True)
    torch.testing.assert_close(out, expected(q, k, v, selection, padding), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("nq, nk", [(1, 1), (1, 257), (2, 2), (127, 127), (128, 128), (129, 129), (300, 333), (1000, 1000)])
@pytest.mark.parametrize("kind", EVERY_KIND, ids=lambda kind: "-".join(kind.values()))
def test_a_target_of_one_is_dense_attention(nq, nk, kind):
    q, k, v = inputs(nq, nk, batch=2)
    out = sample_attention(q, k, v, SampleAttentionConfig(cra=1.0, dense_below=0, **kind))
    torch.testing.assert_close(out, dense_attention(q, k, v)[0], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("dtype, tolerance", [(torch.float32, 1e-5), (torch.float16, 3e-3), (torch.bfloat16, 2e-2)])
def test_low_precision(dtype, tolerance):
    q, k, v = inputs(500, 500, dtype=dtype)
    out, selection = sample_attention(q, k, v, SampleAttentionConfig(cra=0.7, dense_below=0), return_selection=True)
    assert out.dtype == dtype
    error = (out.double() - expected(q, k, v, selection)).norm() / out.double().norm()
    assert error < tolerance


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("nq", [500, 333])
def test_below_dense_below_it_runs_dense_and_says_so(padded, nq):
    q, k, v = inputs(nq, 500, batch=2)
    padding = left_and_right_padding(2, 500) if padded else None
    out, selection = sample_attention(q, k, v, SampleAttentionConfig(dense_below=501), padding=padding, return_selection=True)
    assert selection.dense and "501" in selection.reason
    assert (selection.density == 1).all()
    torch.testing.assert_close(out, dense_attention(q, k, v, padding)[0], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("heads, kv_heads", [(1, 1), (4, 1), (6, 2), (8, 8)])
def test_grouped_heads(heads, kv_heads):
    q, k, v = inputs(400, 400, heads, kv_heads)
    out, selection = sample_attention(q, k, v, SampleAttentionConfig(cra=0.7, dense_below=0), return_selection=True)
    torch.testing.assert_close(out, expected(q, k, v, selection), rtol=1e-9, atol=1e-9)


def test_strided_inputs_and_scale():
    q, k, v = (x.transpose(1, 2).contiguous().transpose(1, 2) for x in inputs(400, 400))
    out = sample_attention(q, k, v, SampleAttentionConfig(cra=1.0, dense_below=0), scale=0.3)
    torch.testing.assert_close(out, dense_attention(q, k, v, scale=0.3)[0], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("scale", [0.0, 1e4])
def test_equal_and_extreme_logits_stay_finite(scale):
    q, k, v = inputs(400, 400, dtype=torch.float32)
    out = sample_attention(q, k, v, SampleAttentionConfig(dense_below=0), scale=scale)
    assert out.isfinite().all()


@pytest.mark.parametrize("sampling", ["spread", "tail"])
@pytest.mark.parametrize("selection", ["joint", "independent"])
def test_planted_columns_and_slashes_are_found(sampling, selection):
    q, k, v = planted(4096, columns=(0, 1000, 1700), slashes=(600,), strength=120)
    ratio = 1 / 8 if sampling == "tail" else 1 / 32
    config = SampleAttentionConfig(cra=0.9, selection=selection, sampling=sampling, sample_ratio=ratio, dense_below=0)
    _, found = sample_attention(q, k, v, config, return_selection=True)
    columns = set(found.columns[0, 0, 0].nonzero().flatten().tolist())
    slashes = set(found.slashes[0, 0, 0].nonzero().flatten().tolist())
    assert {1000 // 128, 1700 // 128} <= columns
    assert {600 // 128, 600 // 128 + 1} <= slashes
    if selection == "joint" and sampling == "spread":
        assert columns | {0} <= {0, 1000 // 128, 1700 // 128}
        assert found.density.max() < 0.4


@settings(max_examples=25, deadline=None)
@given(st.floats(0.3, 0.99), st.sampled_from(EVERY_KIND), st.integers(300, 900), st.integers(0, 2**16))
def test_always_kept_tiles_are_kept_and_nothing_above_the_diagonal(cra, kind, n, seed):
    q, k, v = inputs(n, n, heads=2, kv_heads=1, seed=seed, dtype=torch.float32)
    config = SampleAttentionConfig(cra=cra, dense_below=0, sink_blocks=1, local_blocks=2, last_blocks=1, **kind)
    _, selection = sample_attention(q, k, v, config, return_selection=True)
    mask = selection.block_mask
    blocks = mask.shape[-1]
    causal = torch.ones(blocks, blocks, dtype=torch.bool).tril()
    assert not (mask & ~causal).any()
    assert mask[..., :, 0].all() and mask.diagonal(dim1=-2, dim2=-1).all() and mask.diagonal(-1, -2, -1).all()
    assert (mask[..., -1, :] == causal[-1]).all()
    torch.testing.assert_close(selection.density, mask.sum((-2, -1)) / causal.sum())


def test_joint_keeps_the_target_on_the_sampled_rows():
    q, k, v = inputs(2048, 2048, dtype=torch.float32)
    config = SampleAttentionConfig(cra=0.8, rows_at_target=1.0, dense_below=0)
    _, selection = sample_attention(q, k, v, config, return_selection=True)
    assert selection.sampled_cra.min() >= 0.8 - 1e-5
    assert selection.density.max() < 1


def test_stages_are_told_in_order():
    stages = []
    sample_attention(*inputs(300, 300), SampleAttentionConfig(dense_below=0), on_stage=stages.append)
    assert stages == ["sampling", "filtering", "sparse_attention"]


def test_batch_rows_do_not_influence_each_other():
    q, k, v = inputs(700, 700, batch=2, dtype=torch.float32)
    config = SampleAttentionConfig(cra=0.8, dense_below=0)
    both = sample_attention(q, k, v, config)
    torch.testing.assert_close(both[1:], sample_attention(q[1:], k[1:], v[1:], config))


@pytest.mark.parametrize(
    "change, error, said",
    [
        (dict(q=[1]), TypeError, "q must be a torch.Tensor"),
        (dict(q=torch.ones(1, 4, 8, 16, dtype=torch.int64)), TypeError, "float16"),
        (dict(q=torch.ones(4, 8, 16)), ValueError, "four"),
        (dict(q=torch.ones(1, 3, 8, 16)), ValueError, "multiple"),
        (dict(q=torch.ones(1, 4, 9, 16)), ValueError, "more queries"),
        (dict(v=torch.ones(1, 2, 7, 16)), ValueError, "v must have"),
        (dict(k=torch.ones(1, 2, 8, 15)), ValueError, "head_dim"),
        (dict(k=torch.ones(1, 2, 8, 16).double()), ValueError, "float64"),
        (dict(padding=torch.ones(1, 7)), ValueError, "padding"),
        (dict(padding=torch.tensor([[1, 1, 0, 0, 1, 1, 1, 1]])), ValueError, "contiguous"),
    ],
)
def test_inputs_that_do_not_fit_are_refused_in_words(change, error, said):
    q, k, v = (torch.ones(1, heads, 8, 16) for heads in (4, 2, 2))
    with pytest.raises(error, match=said):
        sample_attention(**(dict(q=q, k=k, v=v) | change))


MEMORY = """
import sys, threading, torch
from sampleattn import SampleAttentionConfig, sample_attention
torch.set_num_threads(2)
def rss():
    return int(open("/proc/self/statm").read().split()[1]) * 4096
def peak(n):
    q, k, v = (torch.randn(1, h, n, 32) for h in (2, 1, 1))
    before, most, done = rss(), 0, threading.Event()
    def watch():
        nonlocal most
        while not done.wait(0.002):
            most = max(most, rss())
    thread = threading.Thread(target=watch); thread.start()
    config = SampleAttentionConfig(selection="window", window_ratio=512 / n, alpha_columns=1e-6, sampling="tail")
    sample_attention(q, k, v, config)
    done.set(); thread.join()
    return most - before
peak(4096)
print(*(peak(int(n)) for n in sys.argv[1:]))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_memory_is_linear_in_the_length():
    lengths = 32_768, 65_536
    run = subprocess.run([sys.executable, "-c", MEMORY, *map(str, lengths)], capture_output=True, text=True, check=True)
    half, whole = map(int, run.stdout.split())
    assert whole < 2.7 * half, f"{half / 1e6:.0f} and {whole / 1e6:.0f} MB: twice the length must take about twice the memory"
    assert whole < lengths[1] ** 2 / 16, f"peak {whole / 1e6:.0f} MB"
