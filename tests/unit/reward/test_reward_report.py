"""The report: the session model wins where items matter to each other, and loses its lead on shuffled sessions."""

import json
from pathlib import Path

import numpy as np
import pytest

from model_export.data.prepared import PreparedData
from model_export.reward.ranking import Ranking
from model_export.reward.report import SHUFFLED, RewardReport, reward_report, shuffled_sessions
from model_export.reward.stage import TrainedReward


@pytest.fixture(scope="module")
def report(bored: PreparedData, trained: dict[str, TrainedReward], folder: Path) -> RewardReport:
    return reward_report(
        {name: [run] for name, run in trained.items()}, bored, folder / "report", num_samples=200, seed=1
    )


def difference(report: RewardReport, other: str) -> dict[str, float]:
    (found,) = [row["auc_difference"] for row in report.differences if row["other"] == other and row["subset"] == "all"]
    return dict(found)


def auc(report: RewardReport, model: str) -> float:
    return next(float(row["auc"]["mean"]) for row in report.figures if row["model"] == model)


def test_the_session_model_is_ahead_of_item_and_position_models(report: RewardReport) -> None:
    for other, least in (("item", 0.02), ("position", 0.05)):
        found = difference(report, other)
        assert found["low"] > least
        assert found["low"] < found["mean"] < found["high"]
    assert auc(report, "item") > auc(report, "position") + 0.03 > 0.6


def test_company_on_top_of_single_items_is_ahead_of_them_and_falls_below_on_shuffled_sessions(
    bored: PreparedData, trained: dict[str, TrainedReward], tmp_path: Path
) -> None:
    models = {"session": [trained["residual"]], "item": [trained["item"]]}
    report = reward_report(models, bored, tmp_path, num_samples=200)
    assert difference(report, "item")["low"] > 0
    assert difference(report, f"session{SHUFFLED}")["low"] > 0
    assert auc(report, f"session{SHUFFLED}") < auc(report, "item") + 0.01


def test_on_shuffled_sessions_it_falls_to_the_item_model_or_below(report: RewardReport) -> None:
    assert difference(report, f"session{SHUFFLED}")["low"] > 0.05
    assert auc(report, f"session{SHUFFLED}") < auc(report, "item") + 0.01


def test_what_matters_here_comes_earlier_so_the_causal_model_keeps_up(report: RewardReport) -> None:
    assert abs(difference(report, "causal")["mean"]) < 0.03


def test_calibrated_chances_mean_what_they_say_until_sessions_are_shuffled(report: RewardReport) -> None:
    rows = {row["model"]: row for row in report.figures if row["subset"] == "all"}
    assert rows["session"]["ece"] < 0.08
    assert rows["session"]["log_loss"] <= rows["session"]["log_loss_uncalibrated"] + 0.005
    assert rows[f"session{SHUFFLED}"]["ece"] > rows["session"]["ece"] + 0.03


def test_it_is_written_for_people_and_machines(report: RewardReport, folder: Path) -> None:
    written = json.loads((folder / "report" / "report.json").read_text())
    assert written["differences"] == report.differences
    assert written["counts"] == {
        "visits": 300, "impressions": 1200, "impressions_of_two_or_more": 1200, "users": 300
    }  # fmt: skip
    text = (folder / "report" / "report.md").read_text()
    assert f"session{SHUFFLED}" in text
    for name in ("reliability.png", "differences.png"):
        assert (folder / "report" / name).stat().st_size > 1000
        assert name in text


def test_several_seeds_widen_nothing_but_are_averaged(
    bored: PreparedData, trained: dict[str, TrainedReward], tmp_path: Path
) -> None:
    """Twice the same run is the same mean and the same interval."""
    once = reward_report({"a": [trained["session"]], "b": [trained["item"]]}, bored, tmp_path / "1", num_samples=50)
    twice = reward_report(
        {"a": [trained["session"]] * 2, "b": [trained["item"]] * 2}, bored, tmp_path / "2", num_samples=50
    )
    assert twice.runs == {"a": 2, "b": 2}
    for left, right in zip(once.differences, twice.differences, strict=True):
        assert left["auc_difference"] == pytest.approx(right["auc_difference"])


def test_shuffled_sessions_keep_the_item_the_places_and_the_length() -> None:
    rng = np.random.default_rng(0)
    item_MK = np.where(np.arange(4) < rng.integers(1, 5, 60)[:, None], rng.integers(1000, size=(60, 4)), -1)
    shuffled_MKK = shuffled_sessions(item_MK.astype(np.int32), rng)
    assert shuffled_MKK.shape == (60, 4, 4)
    for kept in range(4):
        assert (shuffled_MKK[:, kept, kept] == item_MK[:, kept]).all()
        assert ((shuffled_MKK[:, kept] >= 0) == (item_MK >= 0)).all()
        for place in range(4):
            assert set(shuffled_MKK[:, kept, place]) <= set(item_MK[:, place])
    others = shuffled_MKK[:, 0, 1:][item_MK[:, 1:] >= 0]
    assert (others != item_MK[:, 1:][item_MK[:, 1:] >= 0]).mean() > 0.8


def test_models_with_other_signals_or_no_visits_are_refused(
    bored: PreparedData, trained: dict[str, TrainedReward], tmp_path: Path
) -> None:
    other = TrainedReward(model=trained["item"].model, items=trained["item"].items, signals=("follow",))
    with pytest.raises(ValueError, match="different signals"):
        reward_report({"a": [trained["session"]], "b": [other]}, bored, tmp_path)
    with pytest.raises(ValueError, match="no visit of the test part"):
        reward_report({"a": [trained["session"]]}, without_test(bored), tmp_path)


def without_test(prepared: PreparedData) -> PreparedData:
    feedback = prepared.feedback
    assert feedback is not None
    part_M = np.minimum(feedback.part_M, 1).astype(np.int8)
    changed = type(feedback)(**{**vars(feedback), "part_M": part_M})
    return type(prepared)(**{**vars(prepared), "feedback": changed})


def test_auc_of_nothing_to_rank_is_nan() -> None:
    assert np.isnan(Ranking(np.array([0.1, 0.2]), np.array([1.0, 1.0])).auc())
