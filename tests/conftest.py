import os
import sys
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # before torch is loaded, see sampleattn/__main__.py
os.environ["OPENBLAS_NUM_THREADS"] = "1"  # before numpy is loaded, as in app/main.py: with more, sums differ in their last bits

import pytest  # noqa: E402
import torch  # noqa: E402

sys.path.insert(0, str(Path(__file__).parent))
torch.set_num_threads(2)

from interpreter import INTERPRETED  # noqa: E402


@pytest.fixture(params=["interpreter", pytest.param("cuda", marks=pytest.mark.gpu)])
def device(request):
    """Where a kernel runs: on a GPU, or on CPU tensors in Triton's interpreter (see interpreter.py)."""
    if request.param == "cuda":
        if INTERPRETED or not torch.cuda.is_available():
            pytest.skip("needs an NVIDIA GPU")
        return torch.device("cuda")
    if not INTERPRETED:
        pytest.skip("runs in test_in_the_interpreter")
    return torch.device("cpu")


@pytest.fixture
def poison(monkeypatch):
    """torch.empty comes filled with NaN (integers: 99, bool: True), so that an output nobody wrote is seen."""
    empty = torch.empty

    def poisoned(*args, **kwargs):
        x = empty(*args, **kwargs)
        return x.fill_(float("nan") if x.is_floating_point() else 99)

    monkeypatch.setattr(torch, "empty", poisoned)
