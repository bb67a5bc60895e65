"""A plan, run: search on validation, refit the best of each model, compare on test.

Phase 1 fits every setting of every model on `train` with the first seed and measures it on `valid`. Phase 2 fits the
best setting of each on `train` and `valid` with every seed, for the number of epochs that phase 1 found, and measures
on `test`; a plan with `refit = false` leaves it at `train`, and every seed chooses its own epoch. Nothing of `test` is
read before that. What is done is not done again.
"""

import functools
import json
import shutil
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from model_export.data.preparation import prepare
from model_export.data.prepared import PreparedData
from model_export.evaluate.config import EvaluateConfig
from model_export.evaluate.evaluation import evaluate
from model_export.evaluate.measuring import Bench
from model_export.evaluate.metrics import ITEM_METRICS
from model_export.evaluate.recommender import Competitor, Seeds
from model_export.evaluate.recorded import RecordedLists
from model_export.evaluate.report import Report
from model_export.evaluate.samples import draw_samples
from model_export.progress import Progress
from model_export.tokenizer.config import TokenizerConfig
from model_export.trials.crew import Crew
from model_export.trials.kinds import plan_recipe
from model_export.trials.markdown import render
from model_export.trials.plan import PlanError, TrialsPlan, digest, load_plan
from model_export.trials.registry import check_models, kind_of
from model_export.trials.report import ModelReport, TrialReport, TrialsReport, report_folder
from model_export.trials.shared import Shared, data_digest
from model_export.trials.simulated import Simulation, simulated
from model_export.trials.trial import LISTS, Job, Result, write_whole

TEST = "test"


def run_trials(
    plan: str | Path, data: Path | None, out: Path, *, jobs: int = 1, progress: Progress | None = None
) -> TrialsReport:
    """Runs a plan to its report, going on where an earlier run in `out` stopped.

    Args:
        plan: Name of a plan that comes with OneSlate, or path of a `.toml` file.
        data: File or folder of the event log; None where the plan has a simulator.
        out: Folder of everything: prepared data, one folder a trial, and of each plan that is run in it the folder
            `reports/<plan>` with `report.json`, `report.md` and plots. Plans on the same data share it, and what they
            have in common.
        jobs: Trials side by side, one thread each.
        progress: Where to show how far it is.

    Raises:
        PlanError: the plan cannot be read or run, or `out` belongs to other data.
        TrialError: a trial broke.
    """
    read = load_plan(plan)
    check_models(read)
    run = _Run(read, out, jobs, progress or Progress())
    run.prepare(data)
    trials = run.search()
    chosen = {name: best for name, found in trials.items() if (best := run.best(found)) is not None}
    if read.subject not in chosen:
        raise PlanError(
            f"{out}: no trial of {read.subject} is done: {trials[read.subject][0][1].reason or 'see its log'}"
        )
    refits = run.refit(trials, chosen)
    report = run.report(trials, chosen, refits)
    report.save(run.reports)
    write_whole(run.reports / "report.md", render(report))
    return report


Ended = list[tuple[Job, Result]]


@dataclass(kw_only=True)
class _Data:
    """A prepared data set and where it lies."""

    folder: Path
    prepared: PreparedData


def _check_measure(plan: TrialsPlan, config: EvaluateConfig) -> None:
    """`PlanError` for a measure that will not be there."""
    level, _, metric = plan.measure.partition("/")
    of_slates = ["hit", "recall", "precision", "ndcg", *(["true_reward"] if plan.simulator is not None else [])]
    of_items = [f"{name}@{k}" for name in ITEM_METRICS for k in config.ks]
    known = of_items if level == "item" else of_slates
    if metric not in known:
        raise PlanError(f"measure {plan.measure}: a model is chosen by {level}/ and one of {', '.join(known)}")


class _Run:
    """One plan in one folder."""

    def __init__(self, plan: TrialsPlan, out: Path, num_jobs: int, progress: Progress) -> None:
        if num_jobs < 1:
            raise PlanError(f"jobs must be at least 1, not {num_jobs}")
        self.plan, self.out, self.num_jobs, self.progress = plan, out, num_jobs, progress
        self.reports = report_folder(out, plan.name)
        self.recipe = plan_recipe(plan.recipe, {"prepare": plan.prepare, "evaluate": plan.evaluate})
        _check_measure(plan, self.recipe.evaluate)
        self.shared = Shared(out / "shared")
        self.train: _Data
        self.final: _Data
        """What the fits behind the test figures see."""
        self.simulation: Simulation | None = None
        self._values: dict[Path, float] = {}

    def prepare(self, data: Path | None) -> None:
        """The data set as validation needs it, and the same with validation in training."""
        if self.plan.simulator is not None:
            if data is not None:
                raise PlanError(f"{self.plan.name}: the plan has a simulator, so it takes no data")
            self.simulation = simulated(self.plan.simulator, self.out / "simulator", self.progress)
            data = self.simulation.log
        elif data is None:
            raise PlanError(f"{self.plan.name}: name the data (--data)")
        folder, marker = self.out / "prepared", self.out / "prepared.json"
        made_from = json.loads(json.dumps({"data": str(data.resolve()), "prepare": asdict(self.recipe.prepare)}))
        if not marker.exists():
            self.progress.say(f"prepare: {data}")
            prepare(self.recipe.prepare, data, folder, lambda text: self.progress.say(f"  {text}"))
            write_whole(marker, json.dumps(made_from, indent=2) + "\n")
        elif json.loads(marker.read_text(encoding="utf-8")) != made_from:
            raise PlanError(
                f"{marker}: these trials were begun on other data or settings of prepare; name another --out"
            )
        self.train = _Data(folder=folder, prepared=PreparedData.load(folder))
        self.final = self._refit_data() if self.plan.refit else self.train

    def _refit_data(self) -> _Data:
        """The data set with validation in training."""
        folder = self.out / "prepared-refit"
        if not folder.exists():
            partial = folder.with_name(f".{folder.name}.writing")
            shutil.rmtree(partial, ignore_errors=True)
            self.train.prepared.refit().save(partial)
            partial.rename(folder)
        return _Data(folder=folder, prepared=PreparedData.load(folder))

    def search(self) -> dict[str, Ended]:
        """Every trial of every model, by model."""
        jobs = [
            self._job("search", name, place, self.plan.seeds[0], None)
            for name, model in self.plan.models.items()
            for place in range(model.num_trials)
        ]
        return self._run("trials", jobs, self.plan.max_cpu_hours)

    def best(self, trials: Ended) -> int | None:
        """Place of the trial with the best measure; of equal ones the first; None where none is done."""
        values = [self.measure(job, result) for job, result in trials]
        return None if all(np.isnan(values)) else int(np.nanargmax(values))

    def measure(self, job: Job, result: Result) -> float:
        """The plan's measure of a trial's lists on valid; NaN where it has none."""
        if result.status != "done":
            return float("nan")
        if job.folder not in self._values:
            self._values[job.folder] = self._measured(RecordedLists.load(job.folder / LISTS))
        return self._values[job.folder]

    def _measured(self, lists: RecordedLists) -> float:
        level, _, metric = self.plan.measure.partition("/")
        measured = self._bench.measure(lists, draw_samples(self._bench.config, self.train.prepared, "valid"), 0)
        values = measured.report.item if level == "item" else measured.report.slate
        return float(values[metric].mean)

    @functools.cached_property
    def _bench(self) -> Bench:
        """Measures means alone, on valid."""
        scorer = None if self.simulation is None else self.simulation.scorer(self.train.prepared)
        return Bench(replace(self.recipe.evaluate, num_bootstrap_samples=1), self.train.prepared, slate_value=scorer)

    def refit(self, trials: dict[str, Ended], chosen: dict[str, int]) -> dict[str, Ended]:
        """The best setting of each model on train and valid, with every seed where seeds matter."""
        jobs = []
        for name, place in chosen.items():
            seeds = self.plan.seeds if kind_of(self.plan.models[name].kind).has_seeds else self.plan.seeds[:1]
            num_epochs = trials[name][place][1].num_epochs if self.plan.refit else None
            jobs += [self._job("refit", name, place, seed, num_epochs) for seed in seeds]
        refits = self._run("refits", jobs, None)
        for job, result in (pair for pairs in refits.values() for pair in pairs):
            if result.status != "done":
                raise PlanError(f"{job.label}: the refit failed: {result.reason}; remove {job.folder} to try again")
        return refits

    def report(self, trials: dict[str, Ended], chosen: dict[str, int], refits: dict[str, Ended]) -> TrialsReport:
        """Everything in one place, the comparison on test included."""
        return TrialsReport(
            plan=self.plan.model_dump(mode="json"),
            plan_digest=digest([self.plan.model_dump(mode="json"), self.recipe.resolved()]),
            models=[
                self._model_report(name, found, chosen.get(name), refits.get(name, []))
                for name, found in trials.items()
            ],
            test=self._compare(refits),
            log_sha256="" if self.simulation is None else self.simulation.truth.log_sha256,
        )

    def _compare(self, refits: dict[str, Ended]) -> Report:
        competitors: list[Competitor] = [
            Seeds(name, tuple(RecordedLists.load(job.folder / LISTS) for job, _ in found))
            for name, found in refits.items()
        ]
        prepared = self.final.prepared
        return evaluate(
            replace(self.recipe.evaluate, splits=(TEST,)),
            prepared,
            competitors,
            self.reports / TEST,
            subject=self.plan.subject,
            embedding_ND=self._embeddings(prepared),
            slate_value=None if self.simulation is None else self.simulation.scorer(prepared),
            oracle=None if self.simulation is None else self.simulation.oracle(prepared),
            progress=lambda text: self.progress.say(f"  {text}"),
        )

    def _embeddings(self, prepared: PreparedData) -> npt.NDArray[np.float32] | None:
        """Text embeddings for the diversity of slates, the same for every model; None without texts."""
        try:
            return self.shared.embeddings(TokenizerConfig(source="text"), prepared)
        except ValueError:
            return None

    def _model_report(self, name: str, trials: Ended, chosen: int | None, refits: Ended) -> ModelReport:
        model = self.plan.models[name]
        rows = [
            TrialReport(
                tables=model.grid[place] if model.grid else {},
                status=result.status,
                value=self.measure(job, result),
                num_epochs=result.num_epochs,
                cpu_s=result.cpu_s,
                num_parameters=result.num_parameters,
                reason=result.reason,
            )
            for place, (job, result) in enumerate(trials)
        ]
        return ModelReport(
            name=name,
            kind=model.kind,
            trials=rows,
            chosen=chosen,
            search_cpu_s=sum(result.cpu_s for _, result in trials),
            refit_cpu_s=sum(result.cpu_s for _, result in refits),
            num_parameters=refits[0][1].num_parameters if refits else 0,
            num_seeds=len(refits),
        )

    def _job(self, phase: str, name: str, place: int, seed: int, num_epochs: int | None) -> Job:
        model = self.plan.models[name]
        data, split = (self.train, "valid") if phase == "search" else (self.final, TEST)
        tables = model.trial(place)
        resolved = plan_recipe(self.plan.recipe, tables, seed=seed).resolved()
        lists: EvaluateConfig = self.recipe.evaluate
        made_from = {
            "kind": model.kind,
            "tables": {table: resolved.get(table, tables.get(table)) for table in kind_of(model.kind).tables},
            "seed": seed,
            "num_epochs": num_epochs,
            "data": data_digest(data.prepared),
            "lists": [lists.max_item_examples, lists.max_slate_examples, lists.seed, max(lists.ks)],
        }
        return Job(
            folder=self.out / phase / name / f"{place}-seed{seed}-{digest(made_from)}",
            model=name,
            place=place,
            kind=model.kind,
            recipe=self.plan.recipe,
            tables=tables,
            seed=seed,
            num_epochs=num_epochs,
            prepared=data.folder,
            split=split,
            evaluate=self.recipe.evaluate,
            shared=self.shared.folder,
            truth=None if self.simulation is None else self.simulation.truth_folder,
        )

    def _run(self, what: str, jobs: list[Job], max_cpu_hours: float | None) -> dict[str, Ended]:
        """Runs jobs and gives their results by model, in the jobs' order."""
        results: dict[Path, Result] = {}
        self.progress.say(f"{what}: {len(jobs)}, {self.num_jobs} at a time")
        with self.progress.task(what, len(jobs)) as task:

            def on_end(job: Job, result: Result) -> None:
                results[job.folder] = result
                note = f"{job.label}: {result.status}, {result.cpu_s:.0f} CPU-s {result.reason}"
                task.advance(1, note)

            Crew(num_jobs=self.num_jobs, max_cpu_hours=max_cpu_hours, on_end=on_end).run(jobs)
        found: dict[str, Ended] = {}
        for job in jobs:
            found.setdefault(job.model, []).append((job, results[job.folder]))
        return found
