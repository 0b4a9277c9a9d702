"""sample_attention as a whole on a GPU: on two streams at once, in a CUDA graph, and what `auto` runs."""

import pytest
import torch

from sampleattn import SampleAttentionConfig, backends, fastest, sample_attention
from sampleattn.dense import dense_attention

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")]
CUDA = torch.device("cuda")
KINDS = [{"selection": "joint"}, {"selection": "independent"}, {"selection": "window"}, {"scope": "segment"}]


def inputs(seed, length=3000, head_dim=128, batch=1):
    generator = torch.Generator(CUDA).manual_seed(seed)
    shapes = [(batch, heads, length, head_dim) for heads in (8, 2, 2)]
    return [torch.randn(*shape, generator=generator, device=CUDA, dtype=torch.bfloat16) for shape in shapes]


def config(**changes):
    return SampleAttentionConfig(cra=0.6, dense_below=0, backend="triton", **changes)


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_two_streams_at_once(kind):
    """Nothing that one call writes is another's: each gets what it gets alone, however the calls overlap."""
    feeds = [inputs(seed) for seed in (0, 1)]
    alone = [sample_attention(*feed, config(**kind), return_selection=True) for feed in feeds]
    torch.cuda.synchronize()
    streams, together = [torch.cuda.Stream() for _ in feeds], []
    for _ in range(20):
        for stream, feed in zip(streams, feeds, strict=True):
            with torch.cuda.stream(stream):
                together.append(sample_attention(*feed, config(**kind), return_selection=True))
    torch.cuda.synchronize()
    for call, (out, selection) in enumerate(together):
        expected, same = alone[call % 2]
        assert torch.equal(selection.block_mask, same.block_mask) and torch.equal(out, expected), f"call {call}"


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_a_cuda_graph_replays_with_new_inputs(kind, padded):
    feed, other = inputs(0), inputs(1)
    padding = torch.ones(1, 3000, dtype=torch.bool, device=CUDA) if padded else None
    if padded:
        padding[:, :300] = False
    expected = [sample_attention(*x, config(**kind), padding=padding, return_selection=True) for x in (feed, other)]
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out, selection = sample_attention(*feed, config(**kind), padding=padding, return_selection=True)
    for x, (wanted, same) in zip((feed, other), expected, strict=True):
        for place, tensor in zip(feed, x, strict=True):
            place.copy_(tensor)
        graph.replay()
        assert torch.equal(selection.block_mask, same.block_mask) and torch.equal(out, wanted)


def test_auto_is_dense_below_the_break_even_and_sparse_from_it_on(monkeypatch):
    feed = inputs(0, 2048)
    monkeypatch.setattr(fastest, "measured", lambda device, head_dim: fastest.Measured(2048, ("triton",)))
    auto = config().replace(backend="auto")
    _, selection = sample_attention(*(x[:, :, :2047] for x in feed), auto, return_selection=True)
    assert selection.dense and "dense is faster below 2048 tokens" in selection.reason
    _, selection = sample_attention(*feed, auto, return_selection=True)
    assert not selection.dense


@pytest.mark.parametrize("head_dim", [64, 128, 256])
@pytest.mark.parametrize(("nq", "first"), [(700, 0), (300, 0), (700, 130)])
def test_dense_attention(nq, first, head_dim):
    """cuDNN's operator, and the kernel with every tile kept for fewer queries than keys and for padding."""
    q, k, v = inputs(0, 700, head_dim)
    q = q[:, :, 700 - nq :]
    key_range = torch.tensor([[first, 700]], dtype=torch.int32, device=CUDA) if first else None
    twin, _ = backends.twins("torch").block_sparse_attention(
        q.float(), k.float(), v.float(), torch.ones(1, 8, -(-nq // 128), 6, dtype=torch.bool, device=CUDA), None, key_range
    )
    out = dense_attention(q, k, v, None, key_range)
    assert out.dtype == q.dtype and (out.float() - twin).abs().max() < 4 * torch.finfo(q.dtype).eps * float(v.abs().max())
