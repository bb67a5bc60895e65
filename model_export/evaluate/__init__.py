"""How good the slates are: metrics, baselines, intervals, and the report."""
