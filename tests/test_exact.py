"""Exact numbers of a layer's rows: both ways agree with each other and with a float64 softmax."""

import pytest
import torch
from dense import cells, dense_attention

from sampleattn import SampleAttentionConfig, backends, exact
from sampleattn.exact import exact_by_torch, oracle_blocks
from sampleattn.exact_kernels import exact_by_kernels
from sampleattn.metrics import oracle_density

SCALE = 0.3


def inputs(tokens, block, device="cpu", dtype=torch.float32):
    generator = torch.Generator().manual_seed(tokens)
    q, k = (2 * torch.randn(1, heads, tokens, 16, generator=generator) for heads in (4, 2))
    blocks = -(-tokens // block)
    mask = torch.rand(1, 4, blocks, blocks, generator=generator) < 0.5
    mask |= torch.eye(blocks, dtype=torch.bool)
    mask[..., -1, :] = True
    return q.to(device, dtype), k.to(device, dtype), mask.to(device)


def assert_agree(found, expected, off, oracle_off):
    """oracle_off: a tile on the brink may be taken by one and not by the other."""
    for name in ("lse", "recall", "tiles", "overview", "oracle_density"):
        most = oracle_off if name == "oracle_density" else off
        torch.testing.assert_close(getattr(found, name).cpu(), getattr(expected, name).cpu(), rtol=most, atol=most)


@pytest.mark.parametrize("block", [32, 128])
@pytest.mark.parametrize("tokens", [5, 127, 128, 129, 300, 1000])
def test_both_ways_agree_with_float64(tokens, block):
    q, k, mask = inputs(tokens, block)
    config = SampleAttentionConfig(cra=0.9, block_size=block)
    ticks = []
    one = exact_by_torch(q, k, mask, config, SCALE, ticks.append)
    other = exact_by_kernels(backends.twins("torch"), q, k, mask, config, SCALE, ticks.append)
    assert_agree(other, one, 2e-5, 1e-6)
    assert ticks[-1] == 1 and max(ticks) == 1
    _, weights = dense_attention(q, k, k, scale=SCALE)
    recall = (weights * cells(mask, tokens, tokens, block)).sum(-1)[0]
    torch.testing.assert_close(one.recall.double(), recall, rtol=0, atol=2e-6)
    torch.testing.assert_close(one.oracle_density, oracle_density(q, k, 0.9, SCALE, block_size=block)[0])
    full = (mask | torch.ones_like(mask).triu(1)).all(-1)[0].repeat_interleave(block, -1)[:, :tokens]
    assert (other.recall[full] == 1).all()
    means = torch.from_numpy(one.mean_tiles())
    torch.testing.assert_close(means.sum(-1), torch.ones(means.shape[:2]), rtol=0, atol=1e-5)


def test_the_oracle_of_a_long_prompt_looks_at_some_blocks(monkeypatch):
    monkeypatch.setattr(exact.trace_format, "FULL_TOKENS", 999)
    monkeypatch.setattr(exact, "ORACLE_BLOCKS", 8)
    q, k, mask = inputs(1000, 32)
    config = SampleAttentionConfig(cra=0.9, block_size=32)
    chosen = oracle_blocks(1000, 32)
    assert len(chosen) == 8 and chosen[0] == 0 and chosen[-1] == 31
    one = exact_by_torch(q, k, mask, config, SCALE)
    assert_agree(exact_by_kernels(backends.twins("torch"), q, k, mask, config, SCALE), one, 2e-5, 1e-6)
    whole = oracle_density(q, k, 0.9, SCALE, block_size=32)[0]
    torch.testing.assert_close(one.oracle_density, whole, rtol=0.1, atol=0)


@pytest.mark.gpu
@pytest.mark.parametrize("tokens", [300, 1024, 2500])
def test_the_kernels_on_a_gpu(tokens):
    if not torch.cuda.is_available():
        pytest.skip("needs an NVIDIA GPU")
    q, k, mask = inputs(tokens, 128, "cuda", torch.float16)
    config = SampleAttentionConfig(cra=0.9)
    expected = exact_by_torch(q.cpu(), k.cpu(), mask.cpu(), config, SCALE)
    assert_agree(exact_by_kernels(backends.twins("triton"), q, k, mask, config, SCALE), expected, 2e-3, 0.05)
