"""Alignment is tested on the data sets that training is tested on."""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parents[1] / "train"))
