"""Preference alignment of a generator to a reward."""

from model_export.align.best_of_n import BestOfN
from model_export.align.config import AlignConfig
from model_export.align.stage import align

__all__ = ["AlignConfig", "BestOfN", "align"]
