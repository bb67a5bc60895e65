"""All offline stages in one run folder: what is done is not done again.

The way: prepare -> tokenize -> train -> evaluate -> export. Each stage reads what the ones before it wrote.
"""

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from model_export.data import PreparedData, prepare
from model_export.evaluate import Recommender, Report, evaluate
from model_export.evaluate.baselines.cooccurrence import Cooccurrence
from model_export.evaluate.baselines.popularity import Popularity
from model_export.evaluate.baselines.sasrec import SasRec
from model_export.evaluate.generative import GenerativeRecommender
from model_export.onnx.export import ModelRecord, export
from model_export.progress import Progress
from model_export.recipe import Recipe
from model_export.tokenizer import Tokenization, tokenize
from model_export.train import TrainedGenerator, train
from service.errors import OneSlateError


class StageError(OneSlateError, ValueError):
    """A stage was asked for before the one it needs."""


class Run:
    """One recipe on one data set in one folder."""

    def __init__(self, recipe: Recipe, folder: Path, progress: Progress | None = None) -> None:
        self.recipe = recipe
        self.folder = folder
        self.progress = progress or Progress()

    @classmethod
    def for_build(
        cls, recipe: Recipe, data: Path, root: Path = Path("runs"), progress: Progress | None = None
    ) -> "Run":
        """The folder `runs/<recipe>/<hash>`: the hash covers every value of the recipe and the files' state."""
        return cls(recipe, root / recipe.name / recipe.digest(_state_of(data)), progress)

    def build(self, data: Path, bundle: Path | None = None) -> Path:
        """Runs every stage that is not done yet, and puts the bundle at `bundle` (default: into the run folder)."""
        self.prepare(data)
        self.tokenize()
        self.train()
        self.evaluate()
        return self.export(bundle)

    def prepare(self, data: Path) -> PreparedData:
        """Reads the log."""
        with self._stage("prepare") as out:
            if out is not None:
                prepared = prepare(self.recipe.prepare, data, out)
                self.progress.say(_indented(prepared.summary()))
        return self._prepared()

    def tokenize(self) -> Tokenization:
        """Gives every item its semantic ID."""
        self._require("prepare")
        with self._stage("tokenize") as out:
            if out is not None:
                tokenize(self.recipe.tokenize, self._prepared(), out)
                self.progress.say(f"  report: {out / 'report.md'}")
        return self._tokenization()

    def train(self) -> TrainedGenerator:
        """Trains the generator; goes on from a checkpoint."""
        self._require("prepare", "tokenize")
        tokenization = self._tokenization()
        with self._stage("train", resumes=True) as out:
            if out is not None:
                train(
                    self.recipe.train,
                    self.recipe.model,
                    self._prepared(),
                    tokenization.sids_NL,
                    tokenization.codebook_sizes,
                    out,
                    self.progress,
                )
                self.progress.say(f"  learning curves: {out / 'curves.png'}")
        return self._trained()

    def evaluate(self) -> Report:
        """Compares the generator with popularity, co-occurrence and SASRec."""
        self._require("prepare", "tokenize", "train")
        with self._stage("evaluate") as out:
            if out is not None:
                prepared, embeddings = self._prepared(), self._tokenization().embeddings_ND
                recommenders: list[Recommender] = [
                    GenerativeRecommender(self._trained(), prepared, beam_width=self.recipe.export.beam_width),
                    Popularity(prepared),
                    Cooccurrence(prepared),
                    SasRec(prepared, self.recipe.sasrec, feature_ND=embeddings).fit(self.progress.console),
                ]
                evaluate(
                    self.recipe.evaluate,
                    prepared,
                    recommenders,
                    out,
                    embedding_ND=embeddings,
                    progress=lambda text: self.progress.say(f"  {text}"),
                )
                self.progress.say(f"  report: {out / 'report.md'}")
        return Report.load(self.folder / "evaluate")

    def export(self, bundle: Path | None = None) -> Path:
        """Writes the bundle."""
        self._require("prepare", "tokenize", "train")
        with self._stage("export") as out:
            if out is not None:
                record = ModelRecord(
                    name=self.recipe.name,
                    recipe=self.recipe.resolved(),
                    metrics=self._metrics(),
                    seed=self.recipe.train.seed,
                )
                parity = export(
                    self.recipe.export,
                    self._trained(),
                    self._prepared(),
                    self.folder / "tokenize",
                    record,
                    out,
                    self.progress,
                )
                self.progress.say(
                    f"  graph against model on {parity.num_requests} histories: {parity.num_identical} identical "
                    f"slates, logprobs within {parity.max_logprob_difference:.1g}"
                )
        made = self.folder / "export"
        if bundle is None:
            return made
        _copy(made, bundle)
        return bundle

    @contextmanager
    def _stage(self, name: str, *, resumes: bool = False) -> Iterator[Path | None]:
        """Gives the stage's folder, or None if the stage is done; what a broken attempt left is removed first."""
        out, marker = self.folder / name, self.folder / f"{name}.done"
        if marker.exists():
            self.progress.say(f"{name}: done already, in {out}")
            yield None
            return
        self.progress.say(f"{name}: {out}")
        if out.exists() and not resumes:
            shutil.rmtree(out)
        out.parent.mkdir(parents=True, exist_ok=True)
        yield out
        marker.write_text(json.dumps(self.recipe.resolved(), indent=2) + "\n")

    def _require(self, *stages: str) -> None:
        for stage in stages:
            if not (self.folder / f"{stage}.done").exists():
                raise StageError(f"{self.folder}: run `oneslate {stage}` with this --out first")

    def _prepared(self) -> PreparedData:
        return PreparedData.load(self.folder / "prepare")

    def _tokenization(self) -> Tokenization:
        return Tokenization.load(self.folder / "tokenize")

    def _trained(self) -> TrainedGenerator:
        return TrainedGenerator.load(self.folder / "train", self._prepared(), self._tokenization().sids_NL)

    def _metrics(self) -> dict[str, float]:
        """The generator's figures of the last split reported; empty if it was not evaluated."""
        if not (self.folder / "evaluate.done").exists():
            return {}
        report = Report.load(self.folder / "evaluate")
        ours = next(one for one in report.splits[-1].recommenders if one.name == report.subject)
        levels = {"item": ours.item, "slate": ours.slate}
        return {f"{level}/{name}": one.mean for level, values in levels.items() for name, one in values.items()}


def _copy(source: Path, target: Path) -> None:
    """Puts a copy of the bundle at `target` in one rename; whatever bundle was there is replaced."""
    if target.exists() and not (target / "manifest.json").exists():
        raise StageError(f"{target}: is there already and is no bundle; name another --out")
    staging = target.with_name(f".{target.name}.copying")
    shutil.rmtree(staging, ignore_errors=True)
    staging.parent.mkdir(parents=True, exist_ok=True)
    shutil.copytree(source, staging)
    if target.exists():
        shutil.rmtree(target)
    staging.rename(target)


def _state_of(data: Path) -> str:
    """Names, sizes and times of the data's files: cheap to read, and different once anything changed."""
    if not data.exists():
        return f"missing {data}"
    files = sorted(data.rglob("*")) if data.is_dir() else [data]
    rows = [(str(file), file.stat().st_size, file.stat().st_mtime_ns) for file in files if file.is_file()]
    return json.dumps(rows)


def _indented(text: str) -> str:
    return "\n".join(f"  {line}" for line in text.splitlines())
