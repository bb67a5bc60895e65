"""The harness: every model gets the same trials; the best of each is refitted with several seeds and compared."""

from model_export.trials.plan import TrialsPlan, load_plan
from model_export.trials.report import TrialsReport, report_folder
from model_export.trials.run import run_trials

__all__ = ["TrialsPlan", "TrialsReport", "load_plan", "report_folder", "run_trials"]
