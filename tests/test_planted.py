import pytest
import torch

from sampleattn import SampleAttentionConfig, sample_attention
from sampleattn.planted import SHARES, planted

SIZE = {"heads": 4, "kv_heads": 2, "head_dim": 64, "density": 0.3, "dtype": torch.float32, "device": "cpu"}


def tile_masses(x):
    """The exact mass [Hq, N, blocks] of planted inputs, densely and in float64."""
    group, length = x.q.shape[1] // x.k.shape[1], x.q.shape[2]
    scores = x.q[0].double() @ x.k[0].double().repeat_interleave(group, 0).mT * x.q.shape[-1] ** -0.5
    scores = scores.masked_fill(~torch.ones(length, length, dtype=torch.bool).tril(), -torch.inf)
    return torch.nn.functional.pad(scores.softmax(-1), (0, -length % 128)).unflatten(-1, (-1, 128)).sum(-1)


@pytest.mark.parametrize(("length", "head_dim", "dtype"), [(4096, 64, torch.float32), (3500, 128, torch.bfloat16)])
def test_the_planted_mass_is_where_it_should_be(length, head_dim, dtype):
    x = planted(length, **SIZE | {"head_dim": head_dim, "dtype": dtype})
    recall = (tile_masses(x) * x.mask[0].repeat_interleave(128, 1)[:, :length]).sum(-1)
    expected = x.mass.repeat_interleave(2, 0)
    assert recall.mean() == pytest.approx(float(expected.mean()), abs=0.01)
    assert recall.quantile(0.02) > 0.95
    assert x.density == pytest.approx(0.3, abs=0.03)


def test_planted_pieces_carry_their_shares():
    """Of the last rows' mass: the sink token, the column tokens (those of the rows that see them all) and one slash token."""
    x = planted(4096, **SIZE)
    rows, keys = x.q[0, 0, -200:], x.k[0, 0]
    future = torch.arange(4096) > torch.arange(3896, 4096)[:, None]
    weights = (rows @ keys.T * rows.shape[-1] ** -0.5).masked_fill(future, -torch.inf).softmax(-1)
    sink, columns = keys[:, 0] > 0, keys[:, 1] > 0
    assert sink.sum() == 1 and columns.sum() > 1
    assert weights[:, sink].sum(-1).mean() == pytest.approx(SHARES["sink"], abs=0.02)
    assert weights[:, columns].sum(-1).mean() == pytest.approx(SHARES["columns"], abs=0.02)
    assert weights[:, ~(sink | columns)].amax(-1).median() == pytest.approx(SHARES["slash"], abs=0.02)


def test_what_was_planted_is_detected():
    x = planted(4096, **SIZE)
    _, selection = sample_attention(x.q, x.k, x.v, SampleAttentionConfig(dense_below=0), return_selection=True)
    assert x.found(selection.block_mask) > 0.95
    assert float(selection.density.mean()) < 1.2 * x.density


def test_planting_is_repeatable_and_says_what_does_not_fit():
    a, b = planted(700, **SIZE), planted(700, **SIZE)
    assert torch.equal(a.q, b.q) and torch.equal(a.v, b.v) and torch.equal(a.mask, b.mask)
    with pytest.raises(ValueError, match="head_dim is too small"):
        planted(4096, **SIZE | {"head_dim": 8})


@pytest.mark.parametrize("length", [1, 127, 129, 300])
def test_short_planted_inputs(length):
    x = planted(length, **SIZE)
    assert x.q.isfinite().all() and x.k.isfinite().all() and x.mask.shape[-1] == -(-length // 128)
