"""Bad input is one TypeError or ValueError that says what was expected and what was found, before any work."""

import pytest
import torch

from sampleattn import SampleAttentionConfig, backends, reference, sample_attention
from sampleattn.maps import attention_map
from sampleattn.metrics import row_recall

Q, K, V = (torch.zeros(2, heads, 200, 16) for heads in (4, 2, 2))
MASK = torch.ones(2, 4, 2, 2, dtype=torch.bool)
REAL = torch.ones(2, 200, dtype=torch.bool)
GAP = REAL.clone()
GAP[1, 50:60] = False


def method(q=Q, k=K, v=V, **options):
    return sample_attention(q, k, v, SampleAttentionConfig(dense_below=0), **options)


def recall(q=Q, k=K, block_mask=MASK, **options):
    return row_recall(q, k, block_mask, **options)


def maps(q=Q, k=K, **options):
    return attention_map(q, k, shape=(8, 8), **options)


def forward(q=Q, k=K, v=V, block_mask=MASK, **options):
    return reference.block_sparse_attention(q, k, v, block_mask, **options)


ALL, WITH_V, WITH_MASK, WITH_PADDING = (method, recall, maps, forward), (method, forward), (recall, forward), (method, recall)
BAD = [
    (ALL, {"q": "q"}, TypeError, r"q must be a torch.Tensor, not str"),
    (ALL, {"k": None}, TypeError, r"k must be a torch.Tensor, not NoneType"),
    (ALL, {"q": Q.int(), "k": K.int(), "v": V.int()}, TypeError, r"q must be float16, .*, not torch.int32"),
    (ALL, {"k": K.half()}, ValueError, r"k must be torch.float32 on cpu like q, not torch.float16 on cpu"),
    (WITH_V, {"v": V.double()}, ValueError, r"v must be torch.float32 on cpu like q, not torch.float64"),
    (ALL, {"k": K.to("meta")}, ValueError, r"k must be torch.float32 on cpu like q, not torch.float32 on meta"),
    (ALL, {"q": Q[0]}, ValueError, r"q must have four non-empty dimensions .*, not \(4, 200, 16\)"),
    (ALL, {"q": Q[..., :0], "k": K[..., :0]}, ValueError, r"not \(2, 4, 200, 0\)"),
    (WITH_V, {"v": V[..., :0]}, ValueError, r"v must have four non-empty dimensions .*, not \(2, 2, 200, 0\)"),
    (ALL, {"k": K[..., :8]}, ValueError, r"k must have q's batch and head_dim \(2, 16\), not \(2, 8\)"),
    (ALL, {"k": K[:1]}, ValueError, r"k must have q's batch and head_dim \(2, 16\), not \(1, 16\)"),
    (ALL, {"q": Q[:, :3]}, ValueError, r"query heads \(3\) must be a multiple of the key heads \(2\)"),
    (ALL, {"k": K[:, :, :100], "v": V[:, :, :100]}, ValueError, r"more queries \(200\) than keys \(100\)"),
    (WITH_V, {"v": V[:, :, :100]}, ValueError, r"v must have k's batch, heads and tokens \(2, 2, 200\), not \(2, 2, 100\)"),
    (ALL, {"scale": float("nan")}, ValueError, r"scale must be a finite number, not nan"),
    (WITH_MASK, {"block_mask": MASK.int()}, TypeError, r"block_mask must be a bool tensor, not torch.int32"),
    (WITH_MASK, {"block_mask": MASK[..., :1]}, ValueError, r"= \(2, 4, 2, 2\) on cpu, not \(2, 4, 2, 1\) on cpu"),
    (WITH_MASK, {"block_mask": MASK.to("meta")}, ValueError, r"on cpu, not \(2, 4, 2, 2\) on meta"),
    (WITH_PADDING, {"padding": REAL[:, :9]}, ValueError, r"padding must be a tensor of shape \(2, 200\), .*, not \(2, 9\)"),
    (WITH_PADDING, {"padding": [True]}, ValueError, r"padding must be a tensor of shape \(2, 200\), .*, not list"),
    (WITH_PADDING, {"padding": REAL.to("meta")}, ValueError, r"padding must be on cpu like q, not on meta"),
    (WITH_PADDING, {"padding": GAP}, ValueError, r"one contiguous run"),
]


def takes(function, arguments):
    """The arguments without those that the function doesn't have: v for maps and recall."""
    return {name: value for name, value in arguments.items() if name != "v" or function in WITH_V}


@pytest.mark.parametrize(
    ("function", "arguments", "error", "said"),
    [(function, takes(function, arguments), *rest) for functions, arguments, *rest in BAD for function in functions],
)
def test_bad_input(function, arguments, error, said, monkeypatch):
    def no_work(*_):
        raise AssertionError("work began")

    for name in ("twins", "resolve"):
        monkeypatch.setattr(backends, name, no_work)
    with pytest.raises(error, match=said):
        function(**arguments)


@pytest.mark.parametrize("function", ALL)
def test_good_input(function):
    function()


@pytest.mark.parametrize(
    ("backend", "changes", "said"),
    [
        ("triton", {"dtype": torch.float32}, "the kernels take float16 and bfloat16, not float32"),
        ("triton", {"block_size": 96}, "the kernels take blocks of 16, 32, 64, 128, not 96"),
        ("triton", {"head_dim": 264}, "the kernels take head dimensions up to 256, not 264 and 264"),
        ("fa4", {"dtype": torch.float32}, "FlashAttention-4 takes float16 and bfloat16, not float32"),
        (
            "fa4",
            {"head_dim": 100},
            "FlashAttention-4 takes multiples of 8, head_dim to 192 and value dim to 128, not 100 and 100",
        ),
        ("fa4", {"padding": True}, "FlashAttention-4's block lists know no padding"),
    ],
)
def test_inputs_that_a_backend_asked_for_by_name_does_not_take(backend, changes, said, monkeypatch):
    for name in ("triton_obstacle", "fa4_obstacle"):
        monkeypatch.setattr(backends, name, lambda device: "")
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    x = torch.zeros(2, 2, 200, changes.get("head_dim", 128), dtype=changes.get("dtype", torch.bfloat16))
    config = SampleAttentionConfig(backend=backend, dense_below=0, block_size=changes.get("block_size", 128))
    with pytest.raises(ValueError, match=f"backend='{backend}' can't run: {said}"):
        sample_attention(x, x, x, config, padding=REAL if "padding" in changes else None)


def test_tiles_above_the_diagonal_are_ignored():
    """Whether a mask is causal is not checked (a GPU would have to wait): its other tiles don't count, in any twin."""
    q, k, v = (torch.randn_like(x) for x in (Q, K, V))
    for got, wanted in zip(forward(q, k, v), forward(q, k, v, MASK.tril()), strict=True):
        assert torch.equal(got, wanted)
    assert torch.equal(recall(q, k), recall(q, k, MASK.tril()))
