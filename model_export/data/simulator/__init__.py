"""The built-in simulator: a log of a made-up video service, and the truth behind it.

What can be learnt from the log: a user has two to four interests that drift, and a visit serves several of them; titles
and text tell topic and subject; whoever watched part 2 of a series welcomes part 3, but not a third part running; what
resembles the items before it, in the visit or in the days before, is passed over. So a slate is worth more or less than
its items are worth alone, and the truth says exactly how much. See `docs/decisions/0008-the-simulator.md`.
"""

from model_export.data.simulator.config import SimulatorConfig
from model_export.data.simulator.log_files import log_sha256
from model_export.data.simulator.scoring import TrueScorer
from model_export.data.simulator.simulation import SimulationSummary, simulate, write_simulation
from model_export.data.simulator.truth import Truth

__all__ = [
    "SimulationSummary",
    "SimulatorConfig",
    "TrueScorer",
    "Truth",
    "log_sha256",
    "simulate",
    "write_simulation",
]
