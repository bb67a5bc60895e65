"""Load tests (HTTP only) and benchmarks."""
