"""torch.compile keeps sample_attention in one graph, with the results of eager calls."""

import pytest
import torch

from sampleattn import SampleAttentionConfig, compiled, sample_attention


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def device(request):
    if request.param == "cuda" and not torch.cuda.is_available():
        pytest.skip("needs an NVIDIA GPU")
    torch._dynamo.reset()
    yield torch.device(request.param)
    torch._dynamo.reset()


def inputs(device, length=700, head_dim=64, value_dim=64):
    generator = torch.Generator().manual_seed(length)
    dtype = torch.float32 if device.type == "cpu" else torch.bfloat16
    shapes = (4, head_dim), (2, head_dim), (2, value_dim)
    return [torch.randn(2, heads, length, dim, generator=generator).to(device, dtype) for heads, dim in shapes]


def method(q, k, v, config, scale=None, padding=None):
    return 2 * sample_attention(q * 0.5, k, v, config, scale, padding)


SPARSE = SampleAttentionConfig(cra=0.5, dense_below=0)


def sparse_on(device, config=SPARSE):
    """On a GPU the kernels by name: "auto" runs dense at these lengths."""
    return config.replace(backend="triton") if device.type == "cuda" else config


@pytest.mark.parametrize("kind", [{}, {"selection": "window"}, {"scope": "segment"}, {"density": 0.4}], ids=str)
def test_one_graph_with_the_results_of_eager(device, kind):
    compare_with_eager(device, sparse_on(device, SPARSE.replace(**kind)))


@pytest.mark.parametrize("config", [SampleAttentionConfig(), None])
def test_one_graph_of_dense_attention(device, config):
    compare_with_eager(device, config)


def compare_with_eager(device, config):
    q, k, v = inputs(device)
    padding = torch.arange(700, device=device) >= torch.tensor([[0], [130]], device=device)
    whole = torch.compile(method, fullgraph=True, backend="aot_eager")
    for options in ({}, {"scale": 0.2}, {"padding": padding}):
        assert torch.equal(whole(q, k, v, config, **options), method(q, k, v, config, **options))


def test_settings_and_lengths_that_change(device):
    whole = torch.compile(method, fullgraph=True, backend="aot_eager")
    for cra, length in ((0.3, 700), (0.9, 700), (0.3, 900), (0.6, 1000), (0.3, 700)):
        q, k, v = inputs(device, length)
        config = sparse_on(device).replace(cra=cra)
        assert torch.equal(whole(q, k, v, config), method(q, k, v, config))


def test_the_default_compiler_with_other_strides(device):
    """Token-major inputs and another value dimension: the graph must expect the strides that come."""
    q, k, v = (x.transpose(1, 2).contiguous().transpose(1, 2) for x in inputs(device, 300, 64, 32))
    for config in (sparse_on(device), SampleAttentionConfig()):
        found = torch.compile(method, fullgraph=True)(q, k, v, config)
        torch.testing.assert_close(found, method(q, k, v, config))


def test_the_selection_breaks_the_graph(device):
    q, k, v = inputs(device)

    def selecting(q, k, v):
        return sample_attention(q, k, v, sparse_on(device), return_selection=True)

    out, selection = torch.compile(selecting, backend="eager")(q, k, v)
    expected, same = selecting(q, k, v)
    assert torch.equal(out, expected) and torch.equal(selection.block_mask, same.block_mask) and not selection.dense
    torch._dynamo.reset()
    with pytest.raises(torch._dynamo.exc.Unsupported):
        torch.compile(selecting, fullgraph=True, backend="eager")(q, k, v)


def test_the_operator_keeps_the_rules_of_operators():
    q, k, v = inputs(torch.device("cpu"), 200)
    settings = SPARSE.to_dict().values()
    torch.library.opcheck(torch.ops.sampleattn.sample_attention.default, (q, k, v, None, None, *settings))
    assert tuple(SPARSE.to_dict()) == compiled.SETTINGS
