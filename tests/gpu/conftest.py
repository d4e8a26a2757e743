"""The tests of banks on the CPU, whose parts those on CUDA share, are found from here too."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "modules" / "probes"))
