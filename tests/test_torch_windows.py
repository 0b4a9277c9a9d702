"""Windows by the map kernel are the windows that numpy computes; on a GPU with the kernel, else with its twin."""

import time

import numpy as np
import pytest
import torch
from long_trace import write_long_trace
from synthetic_trace import write_synthetic_trace

from sampleattn.torch_windows import TorchWindows
from sampleattn.trace import Trace

gpu = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")]
DEVICES = ["cpu", pytest.param("cuda", marks=gpu)]
WINDOWS = [
    {"rows": (0, 700), "cols": (0, 700), "shape": (64, 50)},
    {"rows": (600, 700), "cols": (3, 698), "shape": (512, 512)},
    {"rows": (512, 700), "cols": (512, 700), "cell": 1},
    {"rows": (256, 700), "cols": (128, 700), "cell": 8},
    {"rows": (0, 700), "cols": (0, 700), "cell": 1024},
    {"rows": (640, 700), "cols": (0, 128), "cell": 64},
    {"rows": (699, 700), "cols": (0, 1), "cell": 64},
]


def prepared(device) -> TorchWindows:
    windows = TorchWindows(device).start()
    deadline = time.monotonic() + 60
    while not windows.ready and time.monotonic() < deadline:
        time.sleep(0.05)
    assert windows.ready
    return windows


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("trace") / "t"
    write_synthetic_trace(folder, tokens=700)
    return folder


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("reduce", ["max", "mean", "sum"])
def test_the_same_as_numpy(folder, device, reduce):
    trace = Trace.load(folder)
    accelerated = Trace.load(folder)
    accelerated.accelerator = prepared(device)
    for window in WINDOWS:
        for mine, numpys in zip(
            accelerated.window_planes(0, 3, reduce=reduce, **window),
            trace.window_planes(0, 3, reduce=reduce, **window),
            strict=True,
        ):
            np.testing.assert_allclose(mine, numpys, rtol=2e-4, atol=2e-6)
    assert accelerated.accelerator.ready


def test_heads_beyond_the_held_bytes_are_forgotten(folder):
    trace = Trace.load(folder)
    trace.accelerator = prepared("cpu")
    trace.accelerator.held_bytes = 1
    first = trace.window(0, 1, (0, 700), (0, 700), (9, 9))
    assert not np.array_equal(first, trace.window(0, 2, (0, 700), (0, 700), (9, 9)))
    assert np.array_equal(first, trace.window(0, 1, (0, 700), (0, 700), (9, 9)))
    assert len(trace.accelerator._heads) == 1


def test_numpy_takes_over_when_memory_runs_out(folder, monkeypatch):
    trace = Trace.load(folder)
    expected = trace.window(0, 1, (0, 700), (0, 700), (9, 9))
    trace.accelerator = prepared("cpu")

    def full(*args):
        raise torch.OutOfMemoryError("no memory")

    monkeypatch.setattr(trace.accelerator, "_head", full)
    assert np.array_equal(trace.window(0, 1, (0, 700), (0, 700), (9, 9)), expected)
    assert not trace.accelerator.ready


def test_without_a_gpu_nothing_starts():
    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    windows = TorchWindows().start()
    time.sleep(0.2)
    assert not windows.ready


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
def test_speed_at_128k(tmp_path, capsys):
    """The bars of the map on an H100: a window of a pinned head at 128K, from the trace to numpy, in 0.15 s."""
    write_long_trace(tmp_path / "t", 131072)
    trace = Trace.load(tmp_path / "t")
    trace.accelerator = prepared("cuda")
    rng, lines = np.random.default_rng(0), []
    for size, cells in ((512, 512), (8192, 512), (131072, 1024)):
        seconds = []
        for _ in range(21):
            r0 = int(rng.integers(131072 - size + 1))
            c0 = int(rng.integers(r0 + 1)) if size < 131072 else 0
            started = time.perf_counter()
            trace.window_planes(0, 0, (r0, r0 + size), (c0, min(c0 + size, 131072)), (cells, cells))
            seconds.append(time.perf_counter() - started)
        lines.append(
            f"{size} x {size} tokens to {cells} x {cells}: {np.median(seconds[1:]) * 1e3:.1f} ms, first {seconds[0]:.2f} s"
        )
        assert np.median(seconds) < 0.15
    with capsys.disabled():
        print("\n" + "\n".join(lines))
