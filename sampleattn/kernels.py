"""The one door to the Triton kernels in the top-level folder `kernels/`.

That folder has no `__init__.py`, because a top-level package called `kernels` would shadow Hugging Face's. Giving this module
a `__path__` makes it a package, so `from sampleattn.kernels.row_logsumexp import row_logsumexp` finds `kernels/row_logsumexp.py`.
"""

from pathlib import Path

__path__ = [str(Path(__file__).resolve().parent.parent / "kernels")]
