"""What the reward model knows that a model of single items does not: measured on held-out visits.

Shapes: M visits, W slates, K slate size, F impressions, S signals, R runs (seeds) of one model.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.special import expit

from model_export.data.feedback import Feedback
from model_export.data.prepared import PreparedData
from model_export.data.splits import PARTS, TEST
from model_export.reward.calibration import calibration_error, log_loss
from model_export.reward.ranking import Float, Interval, Ranking, Resamples, interval
from model_export.reward.report_pages import write_pages
from model_export.reward.stage import TrainedReward, visit_logits
from model_export.reward.visits import Int64

Row = dict[str, Any]
SHUFFLED = " on shuffled sessions"
SUBSETS = {"all": 1, "of two or more": 2}
"""Visits that count: all; those in which an item has company."""


@dataclass(frozen=True, kw_only=True)
class Scored:
    """Every run of one model on the impressions of one part."""

    chance_RFS: Float
    """Calibrated."""
    raw_RFS: Float
    """Before calibration."""


@dataclass(frozen=True, kw_only=True)
class HeldOut:
    """The impressions that are scored."""

    signal_FS: Float
    user_F: Int64
    length_F: Int64
    """Items of the impression's visit."""


@dataclass(frozen=True, kw_only=True)
class RewardReport:
    """The content of `report.json`."""

    part: str
    counts: dict[str, int]
    """Visits, impressions and users scored, and impressions of visits with two or more."""
    runs: dict[str, int]
    """Seeds per model."""
    subject: str
    figures: list[Row]
    """One per model, subset and signal: AUC with interval, log-loss, calibration error before and after."""
    differences: list[Row]
    """AUC of the subject minus AUC of another, on the same impressions and the same resampled users."""

    @classmethod
    def load(cls, folder: Path) -> "RewardReport":
        """Reads `report.json`."""
        return cls(**json.loads((folder / "report.json").read_text(encoding="utf-8")))


def reward_report(
    models: Mapping[str, Sequence[TrainedReward]],
    prepared: PreparedData,
    out: Path,
    *,
    part: int = TEST,
    num_samples: int = 1000,
    seed: int = 0,
) -> RewardReport:
    """Measures models on the visits of a part and writes `report.json`, `report.md` and plots to `out`.

    Models of scope `session` are measured on shuffled sessions, too: each item keeps its user, place and visit length
    while the other items come from random visits of the part, from the same places.

    Args:
        models: Runs (seeds) by name, all with the same signals; the first one is the subject of the comparisons.
        prepared: The data set that they were trained on.
        out: Folder.
        part: 1 valid, 2 test.
        num_samples: Bootstrap samples; users are drawn with replacement, and seeds too.
        seed: Of shuffles and samples.

    Raises:
        ValueError: the part holds no visit, or models differ in their signals.
    """
    feedback = prepared.feedback
    signals = next(iter(models.values()))[0].signals
    if any(run.signals != signals for runs in models.values() for run in runs):
        raise ValueError("models with different signals cannot be compared")
    if feedback is None or len(feedback.visits(part)) == 0:
        raise ValueError(f"no visit of the {PARTS[part]} part: nothing to measure")
    held_out = _held_out(feedback, feedback.visits(part), signals, prepared.slate_size)
    scored = _score_all(models, prepared, feedback, part, seed)
    figures, differences = _compare(scored, held_out, signals, num_samples, seed)
    report = RewardReport(
        part=PARTS[part],
        counts={
            "visits": len(feedback.visits(part)),
            "impressions": len(held_out.user_F),
            "impressions_of_two_or_more": int((held_out.length_F >= 2).sum()),
            "users": len(np.unique(held_out.user_F)),
        },
        runs={name: len(runs) for name, runs in models.items()},
        subject=next(iter(models)),
        figures=figures,
        differences=differences,
    )
    out.mkdir(parents=True, exist_ok=True)
    (out / "report.json").write_text(json.dumps(asdict(report), indent=2) + "\n")
    write_pages(report, scored[report.subject], held_out, signals, out)
    return report


def _held_out(feedback: Feedback, visits: Int64, signals: tuple[str, ...], slate_size: int) -> HeldOut:
    item_MK, signal_MKS = feedback.slates(visits, slate_size)
    is_shown_MK = item_MK >= 0
    places = [feedback.signals.index(name) for name in signals]
    # Users without events have no segment: each of their visits counts as a user.
    segment_M = feedback.segment_M[visits].astype(np.int64)
    user_M = np.where(segment_M >= 0, segment_M, -1 - visits)
    return HeldOut(
        signal_FS=signal_MKS[is_shown_MK][:, places].astype(np.float64),
        user_F=np.broadcast_to(user_M[:, None], item_MK.shape)[is_shown_MK],
        length_F=np.broadcast_to(is_shown_MK.sum(1)[:, None], item_MK.shape)[is_shown_MK],
    )


def _score_all(
    models: Mapping[str, Sequence[TrainedReward]], prepared: PreparedData, feedback: Feedback, part: int, seed: int
) -> dict[str, Scored]:
    visits = feedback.visits(part)
    item_MK, _ = feedback.slates(visits, prepared.slate_size)
    shuffled_MKK = shuffled_sessions(item_MK, np.random.default_rng([seed, 1]))
    scored = {}
    for name, runs in models.items():
        scored[name] = _score(runs, prepared, feedback, visits, item_MK[:, None])
        if runs[0].model.config.scope == "session":
            scored[name + SHUFFLED] = _score(runs, prepared, feedback, visits, shuffled_MKK)
    return scored


def _score(
    runs: Sequence[TrainedReward],
    prepared: PreparedData,
    feedback: Feedback,
    visits: Int64,
    item_MWK: npt.NDArray[np.int32],
) -> Scored:
    """With K slates a visit, item k is read from slate k."""
    raw, chance = [], []
    for run in runs:
        logit_MWKS = visit_logits(run.model, run.collator(prepared), feedback, visits, item_MWK)
        logit_MKS = logit_MWKS[:, 0] if item_MWK.shape[1] == 1 else np.einsum("mkks->mks", logit_MWKS)
        is_shown_MK = (item_MWK[:, 0] if item_MWK.shape[1] == 1 else np.einsum("mkk->mk", item_MWK)) >= 0
        logit_FS = logit_MKS[is_shown_MK]
        raw.append(expit(logit_FS))
        chance.append(expit(logit_FS * run.model.scale_S.numpy() + run.model.shift_S.numpy()))
    return Scored(chance_RFS=np.stack(chance), raw_RFS=np.stack(raw))


def shuffled_sessions(item_MK: npt.NDArray[np.int32], rng: np.random.Generator) -> npt.NDArray[np.int32]:
    """Slates [M, K, K]: slate k of a visit keeps item k; the others come from random visits, from the same places."""
    num_visits, slate_size = item_MK.shape
    shuffled_MKK = np.repeat(item_MK[:, None], slate_size, axis=1)
    for place in range(slate_size):
        shown = np.flatnonzero(item_MK[:, place] >= 0)
        for kept in range(slate_size):
            if kept != place and len(shown):
                others = item_MK[rng.choice(shown, num_visits), place]
                shuffled_MKK[:, kept, place] = np.where(item_MK[:, place] >= 0, others, -1)
    return shuffled_MKK


def _compare(
    scored: Mapping[str, Scored], held_out: HeldOut, signals: tuple[str, ...], num_samples: int, seed: int
) -> tuple[list[Row], list[Row]]:
    """Figures of every model, and differences of the first to every other, by subset and signal."""
    figures: list[Row] = []
    differences: list[Row] = []
    for subset, least in SUBSETS.items():
        kept_F = held_out.length_F >= least
        if not kept_F.any():
            continue
        resamples = Resamples(held_out.user_F[kept_F], num_samples, seed)
        for place, signal in enumerate(signals):
            signal_F = held_out.signal_FS[kept_F, place]
            sampled: dict[str, tuple[float, Float]] = {}
            for name, one in scored.items():
                raw_RF, chance_RF = one.raw_RFS[:, kept_F, place], one.chance_RFS[:, kept_F, place]
                rankings = [Ranking(raw_F, signal_F) for raw_F in raw_RF]
                mean = float(np.mean([ranking.auc() for ranking in rankings]))
                sampled[name] = (mean, resamples.aucs(rankings))
                about = {"model": name, "subset": subset, "signal": signal, "auc": _plain(interval(*sampled[name]))}
                figures.append(about | _calibration(raw_RF, chance_RF, signal_F))
            differences += _differences(sampled, subset, signal)
    return figures, differences


def _calibration(raw_RF: Float, chance_RF: Float, signal_F: Float) -> Row:
    """Means over the runs, before and after calibration."""
    return {
        "log_loss": float(np.mean([log_loss(chance_F, signal_F) for chance_F in chance_RF])),
        "log_loss_uncalibrated": float(np.mean([log_loss(raw_F, signal_F) for raw_F in raw_RF])),
        "ece": float(np.mean([calibration_error(chance_F, signal_F) for chance_F in chance_RF])),
        "ece_uncalibrated": float(np.mean([calibration_error(raw_F, signal_F) for raw_F in raw_RF])),
    }


def _differences(sampled: Mapping[str, tuple[float, Float]], subset: str, signal: str) -> list[Row]:
    (subject, (mean, sample_S)), *others = sampled.items()
    return [
        {
            "subject": subject,
            "other": name,
            "subset": subset,
            "signal": signal,
            "auc_difference": _plain(interval(mean - other, sample_S - other_S)),
        }
        for name, (other, other_S) in others
    ]


def _plain(found: Interval) -> dict[str, float | None]:
    return {name: None if np.isnan(value) else value for name, value in found._asdict().items()}
