"""What tests that break things measure."""

from collections.abc import Callable

Figures = Callable[[str, str, float, str], None]
"""`figures(workload, system, value, unit)` tells one; all are printed in the end."""
