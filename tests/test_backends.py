"""Which implementation runs, and what each refuses."""

from types import SimpleNamespace

import pytest
import torch

from sampleattn import SampleAttentionConfig, backends, fastest

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

    @pytest.mark.parametrize("changes", [{"dtype": torch.float32}, {"block_size": 64}, {"head_dim": 320}])
    def test_auto_takes_torch_for_what_the_kernels_do_not_take(self, gpu, changes):
        assert backends.resolve("auto", "cuda", **changes) == "torch"

    def test_unknown_names(self):
        with pytest.raises(ValueError, match="auto, torch, triton or fa4"):
            backends.resolve("cuda", "cpu")
        with pytest.raises(ValueError, match="torch"):
            backends.twins("auto")


class TestAuto:
    """What `backend="auto"` takes on a GPU. The tensors are stand-ins: only what the choice reads."""

    @pytest.fixture
    def q(self, gpu, monkeypatch):
        fastest.measured.cache_clear()
        table = {(9, 0): {64: fastest.Measured(4096, ("triton",)), 128: fastest.Measured(8192, ("fa4", "triton"))}}
        monkeypatch.setattr(fastest, "TABLE", table)
        yield SimpleNamespace(device=CUDA, is_cuda=True, dtype=torch.bfloat16, shape=(1, 8, 100, 128))
        fastest.measured.cache_clear()

    @pytest.mark.parametrize(
        ("head_dim", "keys", "dense"), [(128, 8191, True), (128, 8192, False), (80, 8191, True), (64, 4096, False)]
    )
    def test_dense_below_the_break_even(self, q, head_dim, keys, dense):
        q.shape = (1, 8, 100, head_dim)
        reason = fastest.dense_reason(SampleAttentionConfig(), q, keys)
        assert bool(reason) == dense and (not dense or "dense is faster below 8192 tokens (measured on" in reason)

    @pytest.mark.parametrize("backend", ["triton", "fa4", "torch"])
    def test_a_backend_by_name_obeys(self, q, backend):
        assert fastest.dense_reason(SampleAttentionConfig(backend=backend), q, 2048) == ""

    def test_the_users_floor_comes_first(self, q):
        assert "dense_below = 9000" in fastest.dense_reason(SampleAttentionConfig(dense_below=9000), q, 8500)

    def test_no_break_even_without_kernels(self, q, gpu):
        q.dtype = torch.float32
        assert fastest.dense_reason(SampleAttentionConfig(), q, 2048) == ""
        q.is_cuda = False
        assert fastest.dense_reason(SampleAttentionConfig(), q, 2048) == ""

    def test_an_unmeasured_gpu_gets_the_row_of_the_measured_one(self, q, gpu):
        gpu[0] = (12, 0)
        assert "8192" in fastest.dense_reason(SampleAttentionConfig(), q, 2048)
        assert fastest.backend_for(SampleAttentionConfig(), q, q, padded=False) == "triton"

    def test_the_fastest_forward_that_takes_the_inputs(self, q):
        assert fastest.backend_for(SampleAttentionConfig(), q, q, padded=False) == "fa4"
        assert fastest.backend_for(SampleAttentionConfig(), q, q, padded=True) == "triton"
        q.shape = (1, 8, 100, 64)
        assert fastest.backend_for(SampleAttentionConfig(), q, q, padded=False) == "triton"
        q.shape = (1, 8, 100, 512)
        assert fastest.backend_for(SampleAttentionConfig(), q, q, padded=False) == "torch"


def test_every_row_of_the_table_names_a_forward_that_runs_everywhere():
    for rows in fastest.TABLE.values():
        assert all(row.forwards[-1] == "triton" and row.break_even > 0 for row in rows.values())


FITS = {"dtype": torch.bfloat16, "head_dim": 128, "value_dim": 128, "block_size": 128, "padded": False}


@pytest.mark.parametrize("head_dims", [(128, 128), (64, 64), (96, 96), (192, 128), (80, 40)])
def test_fa4_fits(head_dims):
    assert backends.fa4_misfit(**FITS | dict(zip(("head_dim", "value_dim"), head_dims, strict=True))) == ""


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"dtype": torch.float32}, "not float32"),
        ({"padded": True}, "no padding"),
        ({"block_size": 64}, "blocks of 128, not 64"),
        ({"head_dim": 100}, "multiples of 8"),
        ({"head_dim": 256, "value_dim": 256}, "not 256 and 256"),
    ],
)
def test_what_fa4_does_not_take(changes, reason):
    assert reason in backends.fa4_misfit(**FITS | changes)
