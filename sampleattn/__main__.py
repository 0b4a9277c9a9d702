import os
import sys

# Read by OpenMP when torch is loaded: threads that spin while they wait make a busy machine many times slower.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

from sampleattn.cli import main  # noqa: E402

sys.exit(main())
