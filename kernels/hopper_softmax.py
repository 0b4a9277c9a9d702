"""Softmax of the Hopper kernels against a maximum that may be old: what a step of keys adds, and whether it must be done again.

Products lie in registers as wgmma leaves them: a row belongs to four threads of a warp, and a thread holds two rows."""

from triton.experimental import gluon
from triton.experimental.gluon import language as gl


@gluon.jit
def masked_scores(scores, ahead, lo, hi, HAS_RANGE: gl.constexpr):
    """-inf where row r of the warpgroup can't see key c of the step: c > r + ahead, or c outside lo .. hi - 1 (of the step).

    Rows are counted as 16 w + 8 r + t and keys as 8 a + 2 b + c: w, t and b tell threads apart; r, a and c, what a thread holds.
    So one number per thread is compared with constants."""
    KEYS: gl.constexpr = scores.type.shape[1]
    cells = scores.reshape([4, 2, 8, KEYS // 8, 4, 2])
    w, r, t = _index(cells, 0), _index(cells, 1), _index(cells, 2)
    a, b, c = _index(cells, 3), _index(cells, 4), _index(cells, 5)
    visible = 8 * a + c - 8 * r <= 16 * w + t - 2 * b + ahead
    if HAS_RANGE:
        visible = visible & (8 * a + c >= lo - 2 * b) & (8 * a + c < hi - 2 * b)
    return gl.convert_layout(gl.where(visible, cells, float("-inf")).reshape(scores.type.shape), scores.type.layout)


@gluon.constexpr_function
def _along(layout, axis, rank):
    for other in reversed(range(rank)):
        if other != axis:
            layout = gl.SliceLayout(other, layout)
    return layout


@gluon.jit
def _index(x, AXIS: gl.constexpr):
    """The place along an axis of x, of x's rank and layout."""
    RANK: gl.constexpr = len(x.type.shape)
    place = gl.arange(0, x.type.shape[AXIS], layout=_along(x.type.layout, AXIS, RANK))
    for other in gl.static_range(RANK):
        if other != AXIS:
            place = gl.expand_dims(place, other)
    return place


@gluon.jit
def softmax(scores, top, total, scale_log2):
    """Weights of a step against the new running maximum, and the factor by which what came before shrinks."""
    new_top = gl.maximum(top, gl.max(scores, 1) * scale_log2)
    base = gl.where(new_top == float("-inf"), 0.0, new_top)
    weights = gl.exp2(scores * scale_log2 - base[:, None])
    decay = gl.exp2(top - base)
    shrunk = total * gl.convert_layout(decay, gl.SliceLayout(1, total.type.layout))[:, None]
    return weights, decay, new_top, shrunk + thread_sums(weights)


@gluon.jit
def shrink(acc, decay):
    return acc * gl.convert_layout(decay, gl.SliceLayout(1, acc.type.layout))[:, None]


@gluon.jit
def thread_sums(weights):
    """[rows, 4]: what each of the four threads of a row of [rows, keys] adds up alone, in a product's layout."""
    ROWS: gl.constexpr = weights.type.shape[0]
    return gl.sum(gl.sum(weights.reshape([ROWS, weights.type.shape[1] // 8, 4, 2]), 3), 1)


@gluon.jit
def declare_too_large(WHO: gl.constexpr):
    """The PTX predicate through which `too_large` hands a bit from tensors to a scalar; once for each warpgroup."""
    gl.inline_asm_elementwise(f".reg .pred too_large{WHO}; mov.b32 $0, 0;", "=r", [], dtype=gl.int32, is_pure=False, pack=1)


@gluon.jit
def too_large(sums, WHO: gl.constexpr, TOGETHER: gl.constexpr):
    """Whether a thread holds one of its two sums above 256 (or NaN): a scalar. (A reduction would go through shared memory.)

    TOGETHER: a thread of the warpgroup; its threads meet at a hardware barrier, 10 + WHO, which Triton does not use, and agree.
    Else a thread of the warp: what depends on it must need no other warp: no product, no barrier, no shared memory."""
    asm: gl.constexpr = (
        "{ .reg .pred mine; setp.gtu.f32 mine, $2, 256.0; setp.gtu.or.f32 mine, $3, 256.0, mine; "
        + (
            f"barrier.cta.red.or.pred too_large{WHO}, {10 + WHO}, 128, mine; "
            if TOGETHER
            else f"vote.sync.any.pred too_large{WHO}, mine, -1; "
        )
        + "mov.b32 $0, $2; mov.b32 $1, $3; }"
    )
    gl.inline_asm_elementwise(asm, "=r,=r,r,r", [sums], dtype=gl.float32, is_pure=False, pack=2)
    return gl.inline_asm_elementwise(f"selp.b32 $0, 1, 0, too_large{WHO};", "=r", [], dtype=gl.int32, is_pure=False, pack=1)
