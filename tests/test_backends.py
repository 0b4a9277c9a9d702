"""Which implementation runs, and what each refuses."""

import pytest
import torch

from sampleattn import backends

CUDA = torch.device("cuda")


@pytest.fixture(autouse=True)
def no_answers_kept():
    """Obstacles are asked for once per process and device; tests change what there is to find."""
    yield
    backends.triton_obstacle.cache_clear()
    backends.fa4_obstacle.cache_clear()


@pytest.fixture
def gpu(monkeypatch):
    """Pretends to a GPU of the capability in the returned list, with every package installed."""
    capability = [(9, 0)]
    for name in ("triton_obstacle", "fa4_obstacle"):
        getattr(backends, name).cache_clear()
    monkeypatch.setattr(backends, "find_spec", lambda name: object())
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability[0])
    return capability


class TestResolve:
    def test_torch_and_auto_on_a_cpu(self):
        assert backends.resolve("torch", "cpu") == "torch"
        assert backends.resolve("auto", torch.device("cpu")) == "torch"

    @pytest.mark.parametrize("backend", ["triton", "fa4"])
    def test_a_gpu_backend_on_a_cpu_is_an_error(self, backend, gpu):
        with pytest.raises(RuntimeError, match=f"backend='{backend}' can't run: the tensors are on cpu"):
            backends.resolve(backend, "cpu")

    @pytest.mark.parametrize(("backend", "package"), [("triton", "Triton"), ("fa4", "FlashAttention-4")])
    def test_a_package_that_is_not_installed_is_an_error(self, backend, package, monkeypatch):
        monkeypatch.setattr(backends, "find_spec", lambda name: None)
        with pytest.raises(RuntimeError, match=f"{package} is not installed"):
            backends.resolve(backend, "cuda")
        assert backends.resolve("auto", "cuda") == "torch"

    def test_flash_attn_without_its_fourth_version(self, monkeypatch):
        def find_spec(name):
            raise ModuleNotFoundError("No module named 'flash_attn'")

        monkeypatch.setattr(backends, "find_spec", find_spec)
        assert "not installed" in backends.fa4_obstacle(CUDA)

    def test_an_older_gpu(self, gpu):
        gpu[0] = (7, 5)
        assert backends.resolve("auto", "cuda") == "torch"
        with pytest.raises(RuntimeError, match="compute capability 7.5"):
            backends.resolve("triton", "cuda")

    @pytest.mark.parametrize("capability", [(8, 0), (9, 0), (10, 0)])
    def test_capabilities_of_triton_and_fa4(self, gpu, capability):
        gpu[0] = capability
        assert backends.resolve("triton", "cuda") == backends.resolve("auto", "cuda") == "triton"
        if capability == (9, 0):
            assert backends.resolve("fa4", "cuda") == "fa4"
        else:
            with pytest.raises(RuntimeError, match="9.0 only"):
                backends.resolve("fa4", "cuda")

    @pytest.mark.parametrize("changes", [{"dtype": torch.float32}, {"block_size": 64}])
    def test_auto_takes_torch_for_what_the_kernels_do_not_take(self, gpu, changes):
        assert backends.resolve("auto", "cuda", **changes) == "torch"

    def test_unknown_names(self):
        with pytest.raises(ValueError, match="auto, torch, triton or fa4"):
            backends.resolve("cuda", "cpu")
        with pytest.raises(ValueError, match="torch"):
            backends.twins("auto")


FITS = {"dtype": torch.bfloat16, "head_dim": 128, "value_dim": 128, "padded": False, "block_size": 128}


@pytest.mark.parametrize("head_dims", [(128, 128), (64, 64), (96, 96), (192, 128), (80, 40)])
def test_fa4_fits(head_dims):
    assert backends.fa4_misfit(**FITS | dict(zip(("head_dim", "value_dim"), head_dims, strict=True))) == ""


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"dtype": torch.float32}, "not torch.float32"),
        ({"padded": True}, "no padding"),
        ({"block_size": 64}, "blocks of 128, not 64"),
        ({"head_dim": 100}, "multiples of 8"),
        ({"head_dim": 256, "value_dim": 256}, "not 256 and 256"),
    ],
)
def test_what_fa4_does_not_take(changes, reason):
    assert reason in backends.fa4_misfit(**FITS | changes)
