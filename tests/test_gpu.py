"""sample_attention as a whole on a GPU: on two streams at once, in a CUDA graph, with late warps, and what `auto` runs."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from sampleattn.kernels.block_index_lists import block_index_lists
from sampleattn.kernels.block_sparse_attention_hopper import block_sparse_attention_hopper
from sampleattn.kernels.checks import layouts
from test_kernels import EPSILON, exact, within

from sampleattn import SampleAttentionConfig, backends, fastest, reference, sample_attention
from sampleattn.dense import dense_attention
from sampleattn.kernels import causal_attention, hopper

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


def test_warps_that_come_late_change_nothing():
    """Not a bit, in any kernel that hands work from warp to warp; a kernel with a fault does change (tests/disturbed.py)."""
    if not hopper.is_hopper(CUDA):
        pytest.skip("needs a Hopper GPU")

    def hashes(*late):
        script = Path(__file__).with_name("disturbed.py")
        return json.loads(subprocess.run([sys.executable, script, *late], check=True, capture_output=True, timeout=300).stdout)

    quiet, late = hashes(), hashes("late")
    assert late.pop("hands over") and not late.pop("leaves early")
    assert late == {name: quiet[name] for name in late} and all(len(bits) == 1 for bits in late.values())


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
    """Whatever kernel is the fastest, and the sparse forward with every tile kept where there is padding."""
    q, k, v = inputs(0, 700, head_dim)
    q = q[:, :, 700 - nq :]
    key_range = torch.tensor([[first, 700]], dtype=torch.int32, device=CUDA) if first else None
    twin, _ = backends.twins("torch").block_sparse_attention(
        q.float(), k.float(), v.float(), torch.ones(1, 8, -(-nq // 128), 6, dtype=torch.bool, device=CUDA), None, key_range
    )
    out = dense_attention(q, k, v, None, key_range)
    assert out.dtype == q.dtype and (out.float() - twin).abs().max() < 4 * torch.finfo(q.dtype).eps * float(v.abs().max())


class TestOurDenseKernel:
    """Against float64 with the error budget of test_kernels: no further off than twice the torch twin plus a rounding band."""

    @pytest.fixture(autouse=True)
    def hopper(self):
        if causal_attention.if_taken(*inputs(0, 128)) is None:
            pytest.skip("the dense kernel needs a Hopper GPU")

    @staticmethod
    def compare(q, k, v, scale=None):
        out, twin = causal_attention.causal_attention(q, k, v, scale), reference.causal_attention(q, k, v, scale)
        every = torch.ones(*q.shape[:2], -(-q.shape[2] // 128), -(-k.shape[2] // 128), dtype=torch.bool, device=CUDA)
        truth, _, _, size = exact(q, k, v, every, scale, None)
        assert out.dtype == q.dtype and out.is_contiguous()
        within(out, twin, truth, (torch.finfo(q.dtype).eps + 8 * EPSILON * (1 + size)) * float(v.abs().max()), "out")

    @pytest.mark.parametrize("head_dim", [64, 128, 256])
    @pytest.mark.parametrize(
        ("nq", "nk"), [(1, 1), (127, 127), (128, 128), (129, 129), (1000, 1000), (4097, 4097), (1, 700), (300, 777)]
    )
    def test_lengths(self, nq, nk, head_dim, poison):
        q, k, v = inputs(nq, nk, head_dim)
        self.compare(q[:, :, nk - nq :], k, v)

    @pytest.mark.parametrize(("heads", "kv_heads"), [(1, 1), (8, 8), (8, 1), (40, 8)])
    def test_heads_and_batches(self, heads, kv_heads, poison):
        generator = torch.Generator(CUDA).manual_seed(heads)
        shapes = [(3, heads, 600, 128), (3, kv_heads, 600, 128), (3, kv_heads, 600, 96)]
        self.compare(*[torch.randn(*shape, generator=generator, device=CUDA, dtype=torch.float16) for shape in shapes])

    def test_token_major_inputs_and_a_scale(self, poison):
        self.compare(*[x.transpose(1, 2).contiguous().transpose(1, 2) for x in inputs(3, 900)], scale=0.3)

    def test_maxima_that_rise_in_every_tile(self, poison):
        q, k, v = inputs(4, 1000)
        self.compare(q, k * torch.linspace(0.1, 60, 1000, device=CUDA)[:, None].bfloat16(), v)

    def test_what_it_does_not_take(self):
        q, k, v = inputs(5, 300)
        with pytest.raises(ValueError, match="16 bytes"):
            causal_attention.causal_attention(q, k, torch.stack((v, v), -1)[..., 0])


@pytest.mark.skipif(torch.cuda.is_available() and torch.cuda.get_device_capability()[0] != 9, reason="needs a Hopper GPU")
def test_lists_serve_more_than_one_forward():
    """The queue that a forward takes its query blocks from stands in the lists, and is set back."""
    q, k, v = inputs(6, 2500)
    mask = torch.rand(1, 8, 20, 20, device=CUDA) < 0.4
    ids, spans = block_index_lists(mask, 2500, 2500)
    forward, outputs = block_sparse_attention_hopper(*layouts(q, k, v), 128**-0.5, False), []
    for _ in range(3):
        out, lse = torch.full_like(q, float("nan")), torch.full(q.shape[:3], float("nan"), device=CUDA)
        forward(q, k, v, ids, spans, None, out, lse)
        outputs.append(out)
    assert torch.equal(outputs[0], outputs[1]) and torch.equal(outputs[0], outputs[2]) and not outputs[0].isnan().any()
