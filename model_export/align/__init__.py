"""Preference alignment of a generator to a reward."""
