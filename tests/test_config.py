"""Settings are validated, frozen, and survive a round trip; the light modules stay light."""

import dataclasses
import json
import subprocess
import sys

import pytest

from sampleattn import SampleAttentionConfig


def test_round_trip():
    config = SampleAttentionConfig(cra=0.9, selection="independent", segments=4)
    assert SampleAttentionConfig.from_dict(json.loads(config.to_json())) == config
    assert config.replace(cra=0.8).cra == 0.8


def test_it_is_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        SampleAttentionConfig().cra = 0.5


@pytest.mark.parametrize(
    "change",
    [
        dict(cra=0),
        dict(cra=1.01),
        dict(cra=float("nan")),
        dict(cra="0.9"),
        dict(cra=True),
        dict(sample_ratio=-0.1),
        dict(selection="best"),
        dict(sampling="head"),
        dict(scope="layer"),
        dict(backend="cuda"),
        dict(block_size=0),
        dict(local_blocks=0),
        dict(segments=0),
        dict(segments=2.5),
        dict(sampling_margin=-1),
        dict(max_sampled_rows=0),
        dict(density=0),
        dict(density=1.5),
        dict(density=0.5, selection="window"),
    ],
)
def test_a_value_out_of_range_is_refused_by_name(change):
    with pytest.raises(ValueError, match=next(iter(change))):
        SampleAttentionConfig(**change)


def test_an_unknown_setting_is_refused_by_name():
    with pytest.raises(ValueError, match="crra"):
        SampleAttentionConfig.from_dict({"crra": 0.9})


@pytest.mark.parametrize("module", ["sampleattn", "sampleattn.config", "sampleattn.trace"])
def test_reading_traces_and_settings_loads_neither_torch_nor_transformers(module):
    code = f"import sys, {module}; print(sorted({{'torch', 'transformers', 'streamlit', 'plotly'}} & set(sys.modules)))"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"
