"""Launches: the compiled kernel is looked up by what decides for which arguments Triton compiles."""

from types import SimpleNamespace

import pytest
import torch

pytest.importorskip("triton")
launch = pytest.importorskip("sampleattn.kernels.launch")
hopper = pytest.importorskip("sampleattn.kernels.hopper")

STREAM = 5


class Kernel:
    """Stands where a JIT function does: it remembers what it was asked to compile, and what ran."""

    arg_names = ("x", "y", "count", "BLOCK")

    def __init__(self):
        self.compiled, self.ran, self.slow, self.scratch = [], [], 0, 0

    def __getitem__(self, grid):
        def compile_and_run(*args, **settings):
            number = len(self.compiled)
            self.compiled.append((grid, args, settings))
            self.ran.append((number, grid, args))
            return Compiled(self, number)

        return compile_and_run


class Compiled:
    """A compiled kernel of a Triton version: the C function below its launcher is `run.launch`."""

    function, packed_metadata = 7, (4, 1, 0)

    def __init__(self, kernel, number):
        self.kernel, self.number = kernel, number
        self.run = SimpleNamespace(
            launch=self.launch, global_scratch_size=kernel.scratch, profile_scratch_size=0, launch_cooperative_grid=False,
            launch_pdl=False, arg_annotations="annotations", kernel_signature="signature",
        )  # fmt: skip

    def launch(self, *args):
        if launch.triton.__version__.startswith("3.6."):
            assert args[3:13] == (STREAM, 7, False, False, None, None, (4, 1, 0), None, None, None)
            self.kernel.ran.append((self.number, args[:3], args[13:]))
        else:
            assert args[3:-1] == (STREAM, 7, False, False, (4, 1, 0), *[None] * 5, "annotations", "signature")
            self.kernel.ran.append((self.number, args[:3], args[-1]))

    def __getitem__(self, grid):
        def run(*args, stream):
            assert stream == STREAM
            self.kernel.slow += 1
            self.kernel.ran.append((self.number, grid, args))

        return run


@pytest.fixture
def kernel(monkeypatch):
    monkeypatch.setattr(launch, "INTERPRETED", False)
    monkeypatch.setattr(launch, "_compiled", {})
    monkeypatch.setattr(torch.cuda, "current_device", lambda: -1)  # what get_device() says of a CPU tensor
    monkeypatch.setattr(torch._C, "_cuda_getCurrentRawStream", lambda device: STREAM, raising=False)
    return Kernel()


@pytest.mark.parametrize(("version", "slow"), [("3.6.0", 0), ("3.7.1", 0), ("3.9.0", 1)])
def test_the_second_launch_runs_what_the_first_compiled_with_its_own_tensors_and_the_constexprs(
    kernel, version, slow, monkeypatch
):
    """Of a version that is not known, by Triton's own launcher."""
    monkeypatch.setattr(launch.triton, "__version__", version)
    first, second = torch.zeros(8), torch.zeros(8)
    for x in (first, second):
        launch.launch(kernel, (4, 2), (x, None), (8,), BLOCK=16, num_warps=4)
    assert len(kernel.compiled) == 1 and kernel.compiled[0][2] == {"BLOCK": 16, "num_warps": 4}
    number, grid, args = kernel.ran[1]
    assert (number, grid) == (0, (4, 2, 1)) and args == (second.data_ptr(), None, 8, 16) and kernel.slow == slow


def test_a_kernel_that_needs_scratch_memory_is_left_to_tritons_launcher(kernel):
    kernel.scratch = 8
    for _ in range(2):
        launch.launch(kernel, (1,), (torch.zeros(8), None), (8,), BLOCK=16)
    assert kernel.slow == 1


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
    launch.launch(kernel, (1,), (x, None), (8 if other(x)[1] is not True else 1,), BLOCK=16)
    x, count, block = other(x)
    launch.launch(kernel, (1,), (x, None), (count,), BLOCK=block)
    assert len(kernel.compiled) == 2


def test_a_tensor_that_is_missing_is_a_kernel_of_its_own(kernel):
    for key_range in (None, torch.zeros(2), None):
        launch.launch(kernel, (1,), (torch.zeros(8), key_range), (8,), BLOCK=16)
    assert len(kernel.compiled) == 2


def test_descriptors_are_told_apart_by_dtype_and_block(kernel):
    x = torch.zeros(1, 1, 128, 64, dtype=torch.float16)
    described = [
        hopper.Descriptor(x, 64),
        hopper.Descriptor(x, 128),
        hopper.Descriptor(x.bfloat16(), 64),
        hopper.Descriptor(x, 64),
    ]
    for each in described:
        launch.launch(kernel, (1,), (each, None), (8,), BLOCK=16)
    assert len(kernel.compiled) == 3 and len(kernel.ran) == 4
    for each, (_, args, _) in zip(described, kernel.compiled, strict=False):
        rows, dtype = each.compiled_for[1], each.compiled_for[0]
        assert args[0].block_shape == [1, 1, rows, 64] and args[0].base.dtype == dtype, (
            "Triton compiles for a descriptor of its own"
        )
    assert kernel.ran[3][2][0] is described[3]


def test_the_launcher_finds_in_a_descriptor_what_it_reads_of_tritons_own():
    """The names that triton.backends.nvidia.driver.make_tensordesc_arg reads."""
    ours = hopper.Descriptor(torch.zeros(1, 2, 128, 96, dtype=torch.float16), 64)
    theirs = ours.for_triton()
    for name in ("base", "padding"):
        assert getattr(ours, name) is getattr(theirs, name)
    assert list(ours.shape) == theirs.shape and list(ours.strides) == theirs.strides
    assert ours.round_f32_to_tf32 == getattr(theirs, "round_f32_to_tf32", False)


def test_memory_is_bounded(kernel, monkeypatch):
    monkeypatch.setattr(launch, "MOST_REMEMBERED", 3)
    for count in range(10):
        launch.launch(kernel, (1,), (torch.zeros(8), None), (count,), BLOCK=16)
        assert len(launch._compiled) <= 3


@pytest.mark.parametrize("count", [1, 2, 3, 63, 64, 65, 1000])
def test_host_arithmetic(count):
    assert launch.power_of_2(count) >= count > launch.power_of_2(count) // 2
    assert (launch.cdiv(count, 8) - 1) * 8 < count <= launch.cdiv(count, 8) * 8
