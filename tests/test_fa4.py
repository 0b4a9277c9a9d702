"""FlashAttention-4's forward against float64: no further off than twice the torch twin plus a rounding band, as our kernels.

Needs a Hopper GPU and requirements-fa4.txt. What is refused before any launch is in test_backends.py.
"""

import pytest
import torch
from test_kernels import EPSILON, exact, inputs, within

from sampleattn import SampleAttentionConfig, backends, reference, sample_attention

pytestmark = pytest.mark.gpu
CUDA = torch.device("cuda")


@pytest.fixture(autouse=True)
def fa4():
    if obstacle := backends.fa4_obstacle(CUDA):
        pytest.skip(obstacle)
    from sampleattn import fa4

    return fa4


@pytest.fixture(params=[torch.float16, torch.bfloat16], ids=["float16", "bfloat16"])
def dtype(request):
    return request.param


def compare(q, k, v, mask, scale=None):
    out, lse = backends.twins("fa4").block_sparse_attention(q, k, v, mask, scale)
    twin, twin_lse = reference.block_sparse_attention(q, k, v, mask, scale)
    truth, truth_lse, _, size = exact(q, k, v, mask, scale, None)
    band = 8 * EPSILON * (1 + size)
    assert out.dtype == q.dtype and lse.dtype == torch.float32
    within(out, twin, truth, (torch.finfo(q.dtype).eps + band) * float(v.abs().max()), "out")
    within(lse, twin_lse, truth_lse, band, "lse")


@pytest.mark.parametrize("length", [1, 127, 128, 129, 1000, 4097])
def test_lengths(dtype, length):
    q, k, v, mask, _ = inputs(CUDA, dtype, heads=4, kv_heads=1, nq=length, head_dim=128)
    compare(q, k, v, mask)


@pytest.mark.parametrize(("nq", "nk"), [(1, 300), (128, 384), (300, 812), (130, 1000)])
def test_fewer_queries_than_keys(dtype, nq, nk):
    q, k, v, mask, _ = inputs(CUDA, dtype, heads=4, kv_heads=1, nq=nq, nk=nk, head_dim=128)
    compare(q, k, v, mask)


@pytest.mark.parametrize(("head_dim", "value_dim"), [(64, 64), (96, 96), (80, 80), (192, 128)])
def test_head_dims(dtype, head_dim, value_dim):
    q, k, v, mask, _ = inputs(CUDA, dtype, heads=4, kv_heads=1, nq=700, head_dim=head_dim, value_dim=value_dim)
    compare(q, k, v, mask)


@pytest.mark.parametrize("kv_heads", [8, 4, 2, 1])
def test_groups_and_batch(dtype, kv_heads):
    parts = [inputs(CUDA, dtype, heads=8, kv_heads=kv_heads, nq=nq, head_dim=64)[:4] for nq in (500, 500)]
    compare(*(torch.cat(pair) for pair in zip(*parts, strict=True)), scale=0.3)


def test_strided_inputs(dtype):
    q, k, v, mask, _ = inputs(CUDA, dtype, heads=4, kv_heads=1, nq=500, head_dim=128)
    q, k, v = (x.transpose(1, 2).contiguous().transpose(1, 2) for x in (q, k, v))
    compare(q, k, v, mask)


def test_no_tiles_and_tiles_above_the_diagonal(dtype):
    q, k, v, mask, _ = inputs(CUDA, dtype, heads=4, kv_heads=1, nq=600, head_dim=128)
    out, lse = backends.twins("fa4").block_sparse_attention(q, k, v, torch.zeros_like(mask))
    assert (out == 0).all() and (lse == -torch.inf).all()
    compare(q, k, v, torch.ones_like(mask))


@pytest.mark.parametrize("size", [1e-4, 30.0])
def test_equal_and_dominant_keys(dtype, size):
    q, k, v, mask, _ = inputs(CUDA, dtype, heads=4, kv_heads=1, nq=600, head_dim=128)
    compare(q * size, k * size, v, mask)


def test_dense(fa4, dtype):
    q, k, v, mask, _ = inputs(CUDA, dtype, heads=4, kv_heads=1, nq=300, nk=700, head_dim=128)
    truth = exact(q, k, v, torch.ones_like(mask), None, None)[0]
    assert (fa4.dense_attention(q, k, v) - truth).abs().max() < 4 * torch.finfo(dtype).eps * float(v.abs().max())


def test_the_whole_method_without_waiting():
    q, k, v, _, _ = inputs(CUDA, torch.bfloat16, heads=4, kv_heads=1, nq=2048, head_dim=128)
    results = {}
    for backend in ("triton", "fa4"):
        config = SampleAttentionConfig(backend=backend, dense_below=0)
        sample_attention(q, k, v, config)  # compiles
        torch.cuda.set_sync_debug_mode("error")
        try:
            results[backend] = sample_attention(q, k, v, config, return_selection=True)
        finally:
            torch.cuda.set_sync_debug_mode("default")
    (out, chosen), (expected, same) = results["fa4"], results["triton"]
    assert torch.equal(chosen.block_mask, same.block_mask)
    assert (out.float() - expected.float()).abs().max() < 4 * torch.finfo(q.dtype).eps * float(v.abs().max())
