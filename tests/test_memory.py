"""What a call needs, and what it says when there is too little."""

import weakref
from types import SimpleNamespace

import pytest
import torch

from sampleattn import SampleAttentionConfig, backends, memory, metrics, sample_attention
from sampleattn.memory import NotEnoughMemory, estimated_bytes, forward_bytes

CONFIG = SampleAttentionConfig(cra=0.6, dense_below=0)
MIB = 2**20


def small(length=500, heads=4, dim=32):
    return [torch.randn(1, heads // group, length, dim) for group in (1, 2, 2)]


@pytest.fixture
def full(monkeypatch):
    """Twins of which the forward finds no memory; 10 MiB are free. Returns weak references to what it held."""
    held = []

    def block_sparse_attention(q, *_):
        work = q.new_zeros(1 << 20)
        held.append(weakref.ref(work))
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

    usual = backends.twins("torch")
    twins = SimpleNamespace(**vars(usual) | {"block_sparse_attention": block_sparse_attention})
    monkeypatch.setattr(backends, "twins", lambda name: twins)
    monkeypatch.setattr(memory, "free_bytes", lambda device: 10 * MIB)
    return held


def test_the_estimate_counts_what_the_method_holds_in_the_end():
    """The masses, the block mask, the output, logsumexp and lists: from the tensors of a run, and the lists' formula."""
    q, k, v = small(1000)
    out, selection = sample_attention(q, k, v, CONFIG, return_selection=True)
    held = selection.tile_masses.nbytes + selection.block_mask.nbytes + out.nbytes + 4 * out[..., 0].numel()
    lists = 4 * 8 * (8 * 2 + 12)
    estimate = estimated_bytes(1, 4, 1000, 1000, CONFIG, value_dim=32, itemsize=4)
    assert 0 <= estimate - held - lists <= 4 * selection.rows.numel() * 4, "beside them only the sampled rows' logsumexp"


def test_many_sampled_rows_count_twice():
    config = CONFIG.replace(sample_ratio=1.0, max_sampled_rows=8192)
    assert estimated_bytes(1, 1, 8192, 8192, config, value_dim=16) == 2 * 4 * 8192 * 65


def test_the_estimate_at_128k_keeps_to_the_bar():
    """At most 512 MB besides inputs and output for 32 heads."""
    length = 131072
    out = 2 * 32 * length * 128
    assert estimated_bytes(1, 32, length, length, SampleAttentionConfig()) - out < 512e6
    assert estimated_bytes(1, 32, length, length, SampleAttentionConfig(backend="fa4")) - out < 512e6
    assert forward_bytes(1, 1, 2**22, 2**22, 128, 2) - 2**22 * 260 == 2**15 * (12 + 4 * 2**15), (
        "lists of int32 from 32768 blocks on"
    )


def test_sample_attention_says_what_it_needs_and_what_would_fit(full):
    with pytest.raises(
        NotEnoughMemory, match=r"out of GPU memory at 20,000 tokens: about \d+ MiB are needed besides the inputs"
    ) as caught:
        sample_attention(*small(20_000, dim=64), CONFIG)
    error = caught.value
    assert isinstance(error, MemoryError) and isinstance(error.__cause__, torch.OutOfMemoryError)
    assert "10 MiB are free; about" in str(error) and f"{error.fits:,} tokens would fit" in str(error)

    def need(length):
        return estimated_bytes(1, 4, length, length, CONFIG, 64, 4)

    assert need(20_000) == error.need and need(error.fits) <= 10 * MIB < need(error.fits + 1)


def test_nothing_of_the_failed_call_is_held_when_the_free_memory_is_read(full, monkeypatch):
    def free_bytes(device):
        assert full[0]() is None
        return 0

    monkeypatch.setattr(memory, "free_bytes", free_bytes)
    with pytest.raises(NotEnoughMemory, match="about 0 tokens would fit"):
        sample_attention(*small(), CONFIG)


def test_row_recall(full, monkeypatch):
    monkeypatch.setattr(backends, "resolve", lambda *_: "triton")
    q, k, _ = small(20_000, dim=64)
    mask = torch.ones(1, 4, 157, 157, dtype=torch.bool)
    monkeypatch.setattr(backends.twins("triton"), "row_logsumexp", lambda q, *_: q[..., 0])
    with pytest.raises(NotEnoughMemory, match="at 20,000 tokens"):
        metrics.row_recall(q, k, mask)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
class TestOnAGpu:
    @staticmethod
    def inputs(length, heads=32):
        return [torch.randn(1, h, length, 128, device="cuda", dtype=torch.bfloat16) for h in (heads, heads // 4, heads // 4)]

    @pytest.mark.parametrize("length", [8192, 32768])
    @pytest.mark.parametrize("backend", ["triton", "fa4"])
    def test_the_estimate_is_what_is_allocated(self, length, backend):
        if obstacle := backends.fa4_obstacle(torch.device("cuda")) if backend == "fa4" else "":
            pytest.skip(obstacle)
        q, k, v = self.inputs(length)
        config = CONFIG.replace(backend=backend)
        sample_attention(q, k, v, config)
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        sample_attention(q, k, v, config)
        peak = torch.cuda.max_memory_allocated() - before
        assert 0.9 <= estimated_bytes(1, 32, length, length, config) / peak <= 1.1

    def test_what_would_fit_fits(self):
        q, k, v = self.inputs(65536)
        config = CONFIG.replace(backend="triton")
        sample_attention(*(x[:, :, :2048] for x in (q, k, v)), config)  # compiles
        torch.cuda.empty_cache()
        filler = torch.empty(memory.free_bytes(q.device) - 400 * MIB, dtype=torch.int8, device="cuda")
        with pytest.raises(NotEnoughMemory) as caught:
            sample_attention(q, k, v, config)
        fits = int(caught.value.fits * 0.9)
        assert fits > 8192
        sample_attention(*(x[:, :, :fits] for x in (q, k, v)), config)
        del filler
