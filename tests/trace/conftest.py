"""A small trace with a pinned layer and a dense one: as a folder that stays as it is, as the bytes of a zip, and to alter."""

import shutil

import pytest
from synthetic_trace import write_synthetic_trace

from sampleattn.trace import Trace


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("trace") / "trace"
    write_synthetic_trace(path, layers=3, heads=4, tokens=300, pin_layers=(1,), dense_layers=(2,))
    return path


@pytest.fixture(scope="module")
def zipped(folder, tmp_path_factory):
    return Trace.load(folder).save(tmp_path_factory.mktemp("zip") / "trace.zip").read_bytes()


@pytest.fixture
def copy(folder, tmp_path):
    return shutil.copytree(folder, tmp_path / "copy")
