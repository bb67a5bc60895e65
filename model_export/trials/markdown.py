"""The report of a plan's trials, for reading."""

import json
import math

from model_export.evaluate.markdown import DASH, table
from model_export.evaluate.markdown import render as render_evaluation
from model_export.trials.plan import TrialsPlan
from model_export.trials.report import ModelReport, TrialReport, TrialsReport


def render(report: TrialsReport) -> str:
    """The whole report as Markdown: effort, choices, every trial, then the test figures."""
    plan = TrialsPlan(**report.plan)
    chosen_by = f"`{plan.measure}` on valid"
    lines = [
        f"# Trials: {plan.name}",
        "",
        plan.purpose,
        "",
        f"Every model with settings gets {plan.num_trials} trials and at most {plan.max_cpu_hours:g} CPU-hours for "
        f"them (process time, one thread a trial). A trial fits on train with seed {plan.seeds[0]}; {chosen_by} "
        f"chooses. {_final_fits(plan)}, and measured on test.",
        f"Plan digest `{report.plan_digest}`."
        + (f" Simulated log, SHA-256 `{report.log_sha256}`." if report.log_sha256 else ""),
        "",
        "## Models",
        "",
        *_model_table(report),
        "",
        *[line for model in report.models for line in _trial_lines(model, plan.measure)],
        "## Test",
        "",
    ]
    test = render_evaluation(report.test).splitlines()[2:]
    return "\n".join(lines + [f"#{line}" if line.startswith("##") else line for line in test]) + "\n"


def _final_fits(plan: TrialsPlan) -> str:
    """What the fits behind the test figures saw."""
    seeds = f"with seeds {_listed(plan.seeds)}"
    if not plan.refit:
        return f"The best setting is fitted on train {seeds}, validation still choosing the epoch"
    return (
        f"The best setting is fitted again on train and valid together {seeds}, for the number of epochs that its "
        "trial found and under the same schedule"
    )


def _model_table(report: TrialsReport) -> list[str]:
    header = ["model", "trials", "valid", "epochs", "parameters", "CPU-s of trials", "CPU-s of final fits", "setting"]
    rows = []
    for model in report.models:
        best = None if model.chosen is None else model.trials[model.chosen]
        num_done = sum(trial.status == "done" for trial in model.trials)
        rows.append(
            [
                model.name,
                f"{num_done} of {len(model.trials)}" + (", stopped" if model.is_stopped else ""),
                DASH if best is None else f"{best.value:.4f}",
                DASH if best is None or best.num_epochs is None else str(best.num_epochs),
                f"{model.num_parameters:,}",
                f"{model.search_cpu_s:,.0f}",
                f"{model.refit_cpu_s:,.0f} ({model.num_seeds} fits)" if model.num_seeds else DASH,
                DASH if best is None else setting_text(best),
            ]
        )
    return table(header, rows)


def _trial_lines(model: ModelReport, measure: str) -> list[str]:
    if len(model.trials) == 1 and model.trials[0].status == "done":
        return []
    rows = [
        [
            str(place) + (" (chosen)" if place == model.chosen else ""),
            setting_text(trial),
            DASH if math.isnan(trial.value) else f"{trial.value:.4f}",
            DASH if trial.num_epochs is None else str(trial.num_epochs),
            f"{trial.cpu_s:,.0f}",
            trial.status + (f": {trial.reason}" if trial.reason else ""),
        ]
        for place, trial in enumerate(model.trials)
    ]
    return [f"### Trials of {model.name}", "", *table(["trial", "setting", measure, "epochs", "CPU-s", ""], rows), ""]


def setting_text(trial: TrialReport) -> str:
    """What a trial's grid entry changes, in a line."""
    parts = [
        f"{name}.{key}={json.dumps(value)}" for name, values in trial.tables.items() for key, value in values.items()
    ]
    return ", ".join(parts) or "as given"


def _listed(seeds: list[int]) -> str:
    return ", ".join(map(str, seeds))
