"""Every kernel once or more, at one small shape of each kind: what compute-sanitizer looks at. Prints what ran; asserts nothing.

compute-sanitizer --tool memcheck python tests/bench/every_kernel.py
compute-sanitizer --tool racecheck python tests/bench/every_kernel.py [portable]

"portable" leaves the warp-specialised kernels out. In these racecheck reports two hand-overs that are in order, and only these
(notes/kernels.md); tests/disturbed.py stands for them.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from sampleattn import SampleAttentionConfig, backends, sample_attention  # noqa: E402
from sampleattn.kernels import hopper  # noqa: E402
from sampleattn.maps import attention_map  # noqa: E402
from sampleattn.metrics import row_recall  # noqa: E402

TOKENS = 385
CHOICES = (
    {},
    {"density": 0.5},
    {"scope": "segment", "segments": 2},
    {"selection": "independent"},
    {"selection": "window"},
    {"sampling": "tail"},
)


def inputs(head_dim: int = 64, queries: int = TOKENS, batch: int = 1, strided: bool = False):
    """q, k, v for 4 query and 2 key heads in bfloat16; `strided`: token-major, as models give them."""
    generator = torch.Generator("cuda").manual_seed(head_dim + queries)
    made = []
    for heads, tokens in ((4, queries), (2, TOKENS), (2, TOKENS)):
        shape = (batch, tokens, heads, head_dim) if strided else (batch, heads, tokens, head_dim)
        x = torch.randn(shape, generator=generator, device="cuda", dtype=torch.bfloat16)
        made.append(x.transpose(1, 2) if strided else x)
    return made


def method(q, k, v, padding=None, **settings):
    config = SampleAttentionConfig(backend="triton", dense_below=0, sample_ratio=0.25, cra=0.8, **settings)
    _, selection = sample_attention(q, k, v, config, padding=padding, return_selection=True)
    row_recall(q, k, selection.block_mask, padding=padding)
    return selection


def main() -> None:
    if "portable" in sys.argv[1:]:
        hopper.readable = lambda *layouts, **limits: False
    padding = torch.arange(TOKENS, device="cuda") >= torch.tensor([[0], [130]], device="cuda")
    for head_dim in (64, 128, 256, 72):
        q, k, v = inputs(head_dim)
        selection = method(q, k, v)
        for reduce in ("max", "mean", "sum"):
            attention_map(q, k, (100, TOKENS), (0, 300), (64, 57), reduce, block_mask=selection.block_mask)
        method(*inputs(head_dim, strided=True))
        method(*inputs(head_dim, queries=200))
        method(*inputs(head_dim, batch=2), padding)
        torch.cuda.synchronize()
        print(f"head_dim {head_dim}: method, recall and maps; strided, fewer queries, padded", flush=True)
    for choice in CHOICES:
        method(*inputs(), **choice)
        method(*inputs(batch=2), padding, **choice)
        torch.cuda.synchronize()
        print(f"choice {choice or 'joint'}: plain and padded", flush=True)
    backends.twins("triton").row_logsumexp(*inputs(128)[:2])
    torch.cuda.synchronize()
    print("every kernel ran")


if __name__ == "__main__":
    main()
