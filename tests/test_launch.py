"""Launches: what Triton compiles a kernel for is found once, and started by the C function of the Triton version at hand."""

from types import SimpleNamespace

import pytest
import torch

pytest.importorskip("triton")
launch = pytest.importorskip("sampleattn.kernels.launch")
launcher = pytest.importorskip("sampleattn.kernels.triton_launcher")
sizes = pytest.importorskip("sampleattn.kernels.sizes")

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
            return Compiled(self, number, described=any(hasattr(x, "block_shape") for x in args))

        return compile_and_run


class Compiled:
    """A compiled kernel: of one with descriptors, `run.launch` is a closure around the C function, as Triton's is."""

    function, packed_metadata = 7, (4, 1, 0)
    metadata = SimpleNamespace(tensordesc_meta=["what Triton says of the descriptor"])

    def __init__(self, kernel, number, described):
        self.kernel, self.number = kernel, number
        self.run = SimpleNamespace(
            launch=self.around(self.start) if described else self.start, global_scratch_size=kernel.scratch,
            profile_scratch_size=0, launch_cooperative_grid=False, launch_pdl=False,
            arg_annotations="annotations", kernel_signature="signature",
        )  # fmt: skip

    @staticmethod
    def around(launcher):
        return lambda *args: launcher("not to be called", *args)

    def start(self, *args):
        if launcher.triton.__version__.startswith("3.6."):
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
    monkeypatch.setattr(torch._C, "_cuda_getDevice", lambda: -1, raising=False)  # what get_device() says of a CPU tensor
    monkeypatch.setattr(torch._C, "_cuda_getCurrentRawStream", lambda device: STREAM, raising=False)
    return Kernel()


VERSIONS = pytest.mark.parametrize(("version", "slow"), [("3.6.0", 0), ("3.7.1", 0), ("3.9.0", 1)])


@VERSIONS
def test_the_second_start_runs_what_the_first_compiled_with_its_own_tensors(kernel, version, slow, monkeypatch):
    """And with the numbers and constexprs. Of a version that is not known, by Triton's own launcher."""
    monkeypatch.setattr(launcher.triton, "__version__", version)
    start = launch.Launch(kernel, (4, 2), (8,), BLOCK=16, num_warps=4)
    first, second = torch.zeros(8), torch.zeros(8)
    for x in (first, second):
        start(x, None)
    assert len(kernel.compiled) == 1 and kernel.compiled[0][2] == {"BLOCK": 16, "num_warps": 4}
    number, grid, args = kernel.ran[1]
    assert (number, grid, kernel.slow) == (0, (4, 2, 1), slow)
    assert args == ((second, None, 8, 16) if slow else (second.data_ptr(), None, 8, 16))


def test_a_kernel_that_needs_scratch_memory_is_left_to_tritons_launcher(kernel):
    kernel.scratch = 8
    start = launch.Launch(kernel, (1,), (8,), BLOCK=16)
    for _ in range(2):
        start(torch.zeros(8), None)
    assert kernel.slow == 1


def test_an_address_that_16_does_not_divide_is_compiled_anew(kernel):
    """So is another one that it does not divide; and a tensor that is missing."""
    start, x = launch.Launch(kernel, (1,), (8,), BLOCK=16), torch.zeros(64)
    for given in (x, x[4:], x[1:], x[5:], x[2:]):  # in floats: 0, 16, 4, 20, 8 bytes
        start(given, None)
    assert [number for number, *_ in kernel.ran] == [0, 0, 1, 1, 2]
    start(x, x)
    assert len(kernel.compiled) == 4


@VERSIONS
def test_a_tensor_that_tma_reads_is_described_once_for_each_address(kernel, version, slow, monkeypatch):
    from triton.backends.nvidia import driver

    monkeypatch.setattr(launcher.triton, "__version__", version)
    asked = []

    def described(x, meta):
        asked.append((x.base.data_ptr(), x.shape, x.strides, x.padding, x.round_f32_to_tf32, meta))
        return ["map", x.base.data_ptr(), *x.shape, *x.strides]

    monkeypatch.setattr(driver, "make_tensordesc_arg", described)
    start = launch.Launch(kernel, (1,), (8,), {0: 64}, BLOCK=16)
    x, y = (torch.zeros(1, 2, 128, 96, dtype=torch.float16) for _ in range(2))
    for given in (x, y, y, x):
        assert start(given, None)
    assert not start(x.reshape(-1)[1:].as_strided((1, 2, 127, 96), x.stride()), None), "TMA can't read that address"
    assert kernel.compiled[0][1][0].block_shape == [1, 1, 64, 128] and kernel.compiled[0][1][0].base is x
    if slow:
        assert kernel.slow == 3 and kernel.ran[1][2][0].base is y
    else:
        assert [address for address, *_ in asked] == [y.data_ptr(), x.data_ptr()]
        assert asked[0][1:] == ([1, 2, 128, 96], list(y.stride()), "zero", False, "what Triton says of the descriptor")
        assert kernel.ran[1][2] == kernel.ran[2][2] == ("map", y.data_ptr(), *y.shape, *y.stride(), None, 8, 16)


def test_descriptors_that_are_kept_are_bounded(kernel, monkeypatch):
    from triton.backends.nvidia import driver

    monkeypatch.setattr(driver, "make_tensordesc_arg", lambda x, meta: [x.base.data_ptr()])
    monkeypatch.setattr(launcher, "MOST_DESCRIBED", 3)
    monkeypatch.setattr(launcher.triton, "__version__", "3.7.1")
    tensors = [torch.zeros(1, 1, 128, 64, dtype=torch.float16) for _ in range(9)]
    expand = launcher._expander(Compiled(kernel, 0, True), {0: 64}, tensors[:1])
    for x in tensors:
        assert expand([x.data_ptr()]) == [x.data_ptr()]
    kept = launcher.inspect.getclosurevars(expand).nonlocals["kept"]
    assert len(kept[0]) <= 3


def test_the_launcher_that_is_installed_has_what_is_asked_of_it():
    """The names inside Triton that starting a kernel relies on, of the version that requirements.txt names."""
    driver = pytest.importorskip("triton.backends.nvidia.driver")
    wrapped = driver.wrap_handle_tensordesc("launcher", {"x": "tensordesc<fp16[1, 1, 64, 64]>"}, [{}])
    assert launcher.inspect.getclosurevars(wrapped).nonlocals["launcher"] == "launcher"
    assert driver.wrap_handle_tensordesc("launcher", {"x": "*fp16"}, None) == "launcher"
    assert launcher.triton.__version__.startswith(("3.6.", "3.7.")), (
        "a version whose C function is not known starts kernels slowly"
    )


@pytest.mark.parametrize("count", [1, 2, 3, 63, 64, 65, 1000])
def test_host_arithmetic(count):
    assert sizes.power_of_2(count) >= count > sizes.power_of_2(count) // 2
    assert (sizes.cdiv(count, 8) - 1) * 8 < count <= sizes.cdiv(count, 8) * 8
