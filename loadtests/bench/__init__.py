"""Benchmarks: each runs real code beside its rivals, prints a table and ends in one JSON line."""
