"""Beam search over the live catalog: traceable pieces, one driver, run eagerly or written into a graph."""
