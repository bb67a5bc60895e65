"""All offline stages in one run folder: what is done is not done again.

The way: prepare -> tokenize -> train -> reward -> align -> evaluate -> export. Each stage reads what the ones before it
wrote. A recipe that neither aligns nor chooses slates by reward leaves the reward model out, which needs data that tell
what was shown.

A stage imports what it runs when it runs: whoever mistypes a file is told so before torch is there.
"""

import hashlib
import json
import math
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from model_export.data.inputs import Inputs
from model_export.data.prepared import PreparedData
from model_export.evaluate.report import Report
from model_export.progress import Progress
from model_export.recipe import Recipe
from service.bundle.manifest import FORMAT_VERSION
from service.bundle.writer import write_json
from service.errors import OneSlateError

if TYPE_CHECKING:
    from model_export.evaluate.recommender import Recommender
    from model_export.reward.stage import TrainedReward
    from model_export.tokenizer.tokenization import Tokenization
    from model_export.train.stage import TrainedGenerator

_SECTIONS = {
    "prepare": ("prepare",),
    "tokenize": ("tokenize",),
    "train": ("model", "train"),
    "reward": ("reward",),
    "align": ("align",),
    "evaluate": ("evaluate", "sasrec"),
    "export": ("export",),
}
"""The stages in their order, and the tables of the recipe that each one reads."""
_MADE_FROM = {
    "tokenize": ("prepare",),
    "train": ("prepare", "tokenize"),
    "reward": ("prepare", "tokenize"),
    "align": ("train", "reward"),
    "evaluate": ("train", "align"),
    "export": ("train", "reward", "align", "evaluate"),
}
"""What each stage reads of the ones before it."""


class StageError(OneSlateError, ValueError):
    """A stage cannot run: one before it is missing, it was run with other settings, or its output has no place."""


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
        return cls(recipe, root / recipe.name / recipe.digest(_state_of(data, recipe.prepare.items)), progress)

    def build(self, data: Path, bundle: Path | None = None) -> Path:
        """Runs every stage that is not done yet, and puts the bundle at `bundle` (default: into the run folder)."""
        if bundle is not None:
            _check_place(bundle)  # before hours of work, not after
        self.prepare(data)
        self.tokenize()
        self.train()
        if self._needs_reward:
            self.reward()
        if self.recipe.align.num_iterations > 0:
            self.align()
        self.evaluate()
        return self.export(bundle)

    def prepare(self, data: Path) -> None:
        """Reads the log."""
        Inputs(data)  # is it there? before a folder is begun for it
        state = hashlib.sha256(_state_of(data, self.recipe.prepare.items).encode()).hexdigest()
        with self._stage("prepare", data=state) as out:
            if out is not None:
                from model_export.data.preparation import prepare

                prepare(self.recipe.prepare, data, out, lambda text: self.progress.say(_indented(text)))

    def tokenize(self) -> None:
        """Gives every item its semantic ID."""
        self._require("prepare")
        with self._stage("tokenize") as out:
            if out is not None:
                from model_export.tokenizer.stage import tokenize

                tokenize(self.recipe.tokenize, self.prepared(), out)
                self.progress.say(f"  report: {out / 'report.md'}")

    def train(self) -> None:
        """Trains the generator; goes on from a checkpoint."""
        self._require("prepare", "tokenize")
        with self._stage("train", resumes=True) as out:
            if out is not None:
                from model_export.train.stage import train

                tokenization = self.tokenization()
                train(
                    self.recipe.train,
                    self.recipe.model,
                    self.prepared(),
                    tokenization.sids_NL,
                    tokenization.codebook_sizes,
                    out,
                    self.progress,
                    tokenization.embeddings_ND,
                )
                self.progress.say(f"  learning curves: {out / 'curves.png'}")

    def reward(self) -> None:
        """Trains the session reward model, and beside it the two that it is measured against."""
        self._require("prepare", "tokenize")
        with self._stage("reward", resumes=True) as out:
            if out is not None:
                from model_export.reward.rivals import reward_with_rivals
                from model_export.reward.visits import RewardItems

                items = RewardItems.of(self.tokenization())
                reward_with_rivals(self.recipe.reward, self.prepared(), items, out, self.progress)
                self.progress.say(f"  report: {out / 'report.md'}")

    def align(self) -> None:
        """Aligns the generator to the reward model."""
        self._require("train", "reward")
        with self._stage("align", resumes=True) as out:
            if out is not None:
                from model_export.align.stage import align
                from model_export.reward.reward_scorer import RewardScorer

                prepared = self.prepared()
                scorer = RewardScorer(self.reward_model(), prepared)
                align(self.recipe.align, self._generator("train"), scorer, prepared, out, self.progress)
                self.progress.say(f"  curves: {out / 'curves.png'}")

    def evaluate(self) -> None:
        """Compares the generator with popularity, co-occurrence and SASRec."""
        self._require("prepare", "tokenize", "train")
        with self._stage("evaluate") as out:
            if out is not None:
                from model_export.evaluate.baselines.cooccurrence import Cooccurrence
                from model_export.evaluate.baselines.popularity import Popularity
                from model_export.evaluate.baselines.sasrec import SasRec
                from model_export.evaluate.evaluation import evaluate
                from model_export.evaluate.generative import GenerativeRecommender

                prepared, embeddings = self.prepared(), self.tokenization().embeddings_ND
                recommenders: list[Recommender] = [
                    GenerativeRecommender(self.generator(), prepared, beam_width=self.recipe.export.beam_width),
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

    def export(self, bundle: Path | None = None) -> Path:
        """Writes the bundle, and a copy of it to `bundle`."""
        if bundle is not None:
            _check_place(bundle)
        self._require("prepare", "tokenize", "train", *(("reward",) if self._needs_reward else ()))
        self._forget_a_bundle_of_another_format()
        with self._stage("export") as out:
            if out is not None:
                from model_export.onnx.export import ModelRecord, export

                recipe = self._made_with()
                record = ModelRecord(
                    name=self.recipe.name, recipe=recipe, metrics=self._metrics(), seed=recipe["train"]["seed"]
                )
                parity = export(
                    self.recipe.export,
                    self.generator(),
                    self.prepared(),
                    self.folder / "tokenize",
                    record,
                    out,
                    self.progress,
                    self.reward_model() if self._needs_reward else None,
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

    def prepared(self) -> PreparedData:
        """What `prepare` made of the log. This and the next ones: StageError where the stage has not been run."""
        self._require("prepare")
        return PreparedData.load(self.folder / "prepare")

    def tokenization(self) -> "Tokenization":
        """Every item's semantic ID, as `tokenize` gave them."""
        from model_export.tokenizer.tokenization import Tokenization

        self._require("tokenize")
        return Tokenization.load(self.folder / "tokenize")

    def reward_model(self) -> "TrainedReward":
        """The session reward model."""
        from model_export.reward.stage import TrainedReward
        from model_export.reward.visits import RewardItems

        self._require("reward")
        return TrainedReward.load(self.folder / "reward", RewardItems.of(self.tokenization()))

    def generator(self) -> "TrainedGenerator":
        """The generator: aligned, where the recipe aligns."""
        if self.recipe.align.num_iterations == 0:
            return self._generator("train")
        return self._generator("align")

    def report(self) -> Report:
        """What `evaluate` found."""
        self._require("evaluate")
        return Report.load(self.folder / "evaluate")

    @property
    def _needs_reward(self) -> bool:
        return self.recipe.align.num_iterations > 0 or self.recipe.export.choice == "reward"

    @contextmanager
    def _stage(self, name: str, *, resumes: bool = False, data: str = "") -> Iterator[Path | None]:
        """Gives the stage's folder, or None if the stage is done; what a broken attempt left is removed first.

        Raises:
            StageError: it was done, or begun and would go on, with other settings or (`prepare`) from other data.
        """
        out, begun, done = (self.folder / f"{name}{end}" for end in ("", ".begun", ".done"))
        if done.exists() or (resumes and begun.exists()):
            self._refuse_other_settings(name, done if done.exists() else begun, data)
        if done.exists():
            self.progress.say(f"{name}: done already, in {out}")
            yield None
            return
        self.progress.say(f"{name}: {out}")
        if out.exists() and not (resumes and begun.exists()):
            shutil.rmtree(out)
        self.folder.mkdir(parents=True, exist_ok=True)
        self._forget_what_was_made_from(name)
        write_json(begun, {**self.recipe.resolved(), "data": data})
        yield out
        begun.rename(done)

    def _forget_what_was_made_from(self, replaced: str) -> None:
        for stage, sources in _MADE_FROM.items():
            if stage == "export" and replaced == "reward" and not self._needs_reward:
                continue
            markers = [self.folder / f"{stage}.{end}" for end in ("done", "begun")]
            if replaced in sources and any(marker.exists() for marker in markers):
                for marker in markers:
                    marker.unlink(missing_ok=True)
                self._forget_what_was_made_from(stage)

    def _forget_a_bundle_of_another_format(self) -> None:
        """Another version of OneSlate made it, and this one could not serve it."""
        done = self.folder / "export.done"
        if done.exists():
            found = json.loads((self.folder / "export" / "manifest.json").read_text())["format_version"]
            if found != FORMAT_VERSION:
                self.progress.say(
                    f"export: the bundle is of format {found}, this version writes {FORMAT_VERSION}: again"
                )
                done.unlink()

    def _refuse_other_settings(self, stage: str, marker: Path, data: str) -> None:
        made, asked = json.loads(marker.read_text()), self.recipe.resolved()
        change = f"use the same settings, or another --out, or remove {marker}"
        if made.get("data", data) != data:
            raise StageError(f"{marker}: {stage} read other data, or they have changed since; {change}")
        for section in _SECTIONS[stage]:
            for key, value in asked[section].items():
                if made[section].get(key) != value:
                    was = json.dumps(made[section].get(key))
                    raise StageError(
                        f"{marker}: was run with {section}.{key} = {was}, not {json.dumps(value)}; {change}"
                    )

    def _made_with(self) -> dict[str, Any]:
        """The resolved recipe as the stages ran, which may each have been given its own settings."""
        recipe = self.recipe.resolved()
        for stage, sections in _SECTIONS.items():
            marker = self.folder / f"{stage}.done"
            if marker.exists():
                made = json.loads(marker.read_text())
                recipe |= {section: made[section] for section in sections}
        return recipe

    def _require(self, *stages: str) -> None:
        for stage in stages:
            if not (self.folder / f"{stage}.done").exists():
                raise StageError(f"{self.folder}: run `oneslate {stage}` with this --out first")

    def _generator(self, stage: str) -> "TrainedGenerator":
        from model_export.train.stage import TrainedGenerator

        self._require(stage)
        return TrainedGenerator.load(self.folder / stage, self.prepared(), self.tokenization().sids_NL)

    def _metrics(self) -> dict[str, float]:
        """The generator's figures of the last split reported; empty if it was not evaluated."""
        if not (self.folder / "evaluate.done").exists():
            return {}
        report = self.report()
        ours = next(one for one in report.splits[-1].recommenders if one.name == report.subject)
        levels = {"item": ours.item, "slate": ours.slate}
        return {
            f"{level}/{name}": one.mean
            for level, values in levels.items()
            for name, one in values.items()
            if math.isfinite(one.mean)
        }


def _check_place(target: Path) -> None:
    """StageError where a bundle cannot be put."""
    if target.exists() and not (target / "manifest.json").exists() and not _is_empty_folder(target):
        raise StageError(f"{target}: is there already and is no bundle; name another place for the bundle")
    parent = target.resolve().parent
    while not parent.exists():
        parent = parent.parent
    if not parent.is_dir() or not os.access(parent, os.W_OK | os.X_OK):
        raise StageError(f"{target}: cannot be written, because {parent} is no folder that you may write to")


def _is_empty_folder(path: Path) -> bool:
    return path.is_dir() and not any(path.iterdir())


def _copy(source: Path, target: Path) -> None:
    """Puts a copy of the bundle at `target`; a reader finds the old one or the new one there, never half of either."""
    _check_place(target)
    target = target.resolve()
    staging, old = (target.with_name(f".{target.name}.{end}") for end in ("copying", "old"))
    for left_over in (staging, old):
        shutil.rmtree(left_over, ignore_errors=True)
    staging.parent.mkdir(parents=True, exist_ok=True)
    shutil.copytree(source, staging)
    if target.exists():
        target.rename(old)
    staging.rename(target)
    shutil.rmtree(old, ignore_errors=True)


def _state_of(data: Path, items: str = "") -> str:
    """Names, sizes and times of the data's files: cheap to read, and different once anything changed.

    Names are relative, so that it does not matter from where the data are named.
    """
    rows = []
    for root in (data, *([Path(items)] if items else [])):
        files = sorted(root.rglob("*")) if root.is_dir() else [root]
        rows += [
            (file.name if file == root else str(file.relative_to(root)), file.stat().st_size, file.stat().st_mtime_ns)
            for file in files
            if file.is_file()
        ]
    return json.dumps(rows)


def _indented(text: str) -> str:
    return "\n".join(f"  {line}" for line in text.splitlines())
