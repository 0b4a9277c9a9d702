import sys

from sampleattn.cli import main

sys.exit(main())
