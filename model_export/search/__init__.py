"""Beam search over the live catalog: traceable pieces, one driver, run eagerly or written into a graph."""

from model_export.search.eager import BeamSearch, Slates

__all__ = ["BeamSearch", "Slates"]
