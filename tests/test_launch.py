"""Launches: the compiled kernel is looked up by what decides for which arguments Triton compiles."""

from types import SimpleNamespace

import pytest
import torch

pytest.importorskip("triton")
launch = pytest.importorskip("sampleattn.kernels.launch")


class Kernel:
    """Stands where a JIT function does: it remembers what it was asked to compile, and what ran."""

    arg_names = ("x", "count", "BLOCK")

    def __init__(self):
        self.compiled, self.ran = [], []

    def __getitem__(self, grid):
        def compile_and_run(*args, **settings):
            number = len(self.compiled)
            self.compiled.append((grid, args, settings))
            self.ran.append((number, grid, args))
            return Compiled(self, number)

        return compile_and_run


class Compiled:
    def __init__(self, kernel, number):
        self.kernel, self.number = kernel, number

    def __getitem__(self, grid):
        return lambda *args: self.kernel.ran.append((self.number, grid, args))


@pytest.fixture
def kernel(monkeypatch):
    monkeypatch.setattr(launch, "INTERPRETED", False)
    monkeypatch.setattr(launch, "_compiled", {})
    monkeypatch.setattr(torch.cuda, "current_device", lambda: -1)  # what get_device() says of a CPU tensor
    return Kernel()


def test_the_second_launch_runs_what_the_first_compiled_with_its_own_tensors_and_the_constexprs(kernel):
    first, second = torch.zeros(8), torch.zeros(8)
    for x in (first, second):
        launch.launch(kernel, (4, 2), (x,), (8,), BLOCK=16, num_warps=4)
    assert len(kernel.compiled) == 1 and kernel.compiled[0][2] == {"BLOCK": 16, "num_warps": 4}
    number, grid, args = kernel.ran[1]
    assert (number, grid) == (0, (4, 2, 1)) and args[0] is second and args[1:] == (8, 16)


@pytest.mark.parametrize(
    "other",
    [
        lambda x: (x[1:], 7, 16),  # an address that 16 does not divide
        lambda x: (x.half(), 8, 16),
        lambda x: (x, 1, 16),
        lambda x: (x, 8.0, 16),
        lambda x: (x, True, 16),
        lambda x: (x, 8, 32),
    ],
    ids=["address", "dtype", "number", "float", "bool", "constexpr"],
)
def test_what_triton_compiles_anew_is_not_taken_from_memory(kernel, other):
    x = torch.zeros(8)
    launch.launch(kernel, (1,), (x,), (8 if other(x)[1] is not True else 1,), BLOCK=16)
    x, count, block = other(x)
    launch.launch(kernel, (1,), (x,), (count,), BLOCK=block)
    assert len(kernel.compiled) == 2


def test_a_tensor_that_is_missing_is_a_kernel_of_its_own(kernel):
    for key_range in (None, torch.zeros(2), None):
        launch.launch(kernel, (1,), (torch.zeros(8), key_range), (8,), BLOCK=16)
    assert len(kernel.compiled) == 2


def test_descriptors_are_told_apart_by_dtype_and_block(kernel):
    x = torch.zeros(1, 1, 8, 64)
    for block in ([1, 1, 64, 64], [1, 1, 128, 64], [1, 1, 64, 64]):
        launch.launch(kernel, (1,), (SimpleNamespace(base=x, block_shape=block),), (8,), BLOCK=16)
    assert len(kernel.compiled) == 2 and len(kernel.ran) == 3


def test_memory_is_bounded(kernel, monkeypatch):
    monkeypatch.setattr(launch, "MOST_REMEMBERED", 3)
    for count in range(10):
        launch.launch(kernel, (1,), (torch.zeros(8),), (count,), BLOCK=16)
        assert len(launch._compiled) <= 3


@pytest.mark.parametrize("count", [1, 2, 3, 63, 64, 65, 1000])
def test_host_arithmetic(count):
    assert launch.power_of_2(count) >= count > launch.power_of_2(count) // 2
    assert (launch.cdiv(count, 8) - 1) * 8 < count <= launch.cdiv(count, 8) * 8
