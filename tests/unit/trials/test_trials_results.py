"""A plan's report as a recorded run, and its place on the page of results."""

from pathlib import Path

import pytest
from trial_plans import ENOUGH, write_plan

from loadtests.bench.evaluation import trials_result
from loadtests.bench.results_page import render
from model_export.trials.report import TrialsReport
from model_export.trials.run import run_trials


@pytest.fixture(scope="module")
def simulated(tmp_path_factory) -> tuple[Path, TrialsReport]:
    """A plan at slate level on a simulated log, with its truth."""
    folder = tmp_path_factory.mktemp("simulated")
    plan = write_plan(folder / "tiny.toml", **ENOUGH)
    return folder / "out", run_trials(plan, None, folder / "out")


def test_a_plan_with_a_simulator_chooses_by_true_reward_and_knows_the_oracle(simulated):
    _, report = simulated
    (split,) = report.test.splits
    rewards = {row.name: row.slate["true_reward"].mean for row in split.recommenders}
    assert set(rewards) == {"popularity", "cooccurrence", "oracle"}
    assert rewards["oracle"] > 1.2 * max(rewards["popularity"], rewards["cooccurrence"])
    shares = {row.other: row.share_of_oracle_gap for row in split.comparisons if row.metric == "true_reward"}
    expected = (rewards["cooccurrence"] - rewards["popularity"]) / (rewards["oracle"] - rewards["popularity"])
    assert shares["popularity"].mean == pytest.approx(expected)
    assert shares["oracle"] is None


def test_the_simulated_log_is_made_once_and_with_one_setting(simulated, tmp_path):
    out, report = simulated
    log = out / "simulator" / "log" / "events.parquet"
    made = log.stat().st_mtime_ns
    assert run_trials(write_plan(tmp_path / "tiny.toml", **ENOUGH), None, out).models == report.models
    assert log.stat().st_mtime_ns == made
    other = write_plan(tmp_path / "tiny.toml", **{**ENOUGH, "simulator": {"num_items": 30}})
    with pytest.raises(ValueError, match="other settings"):
        run_trials(other, None, out)


def test_the_page_shows_means_intervals_and_costs(simulated, tmp_path):
    _, report = simulated
    result = trials_result(report)
    result.append_to(tmp_path)
    page = render(tmp_path)
    assert result.bench == "trials-tiny"
    reward = next(row for row in report.test.splits[0].recommenders if row.name == "cooccurrence").slate["true_reward"]
    line = next(
        line for line in page.splitlines() if line.startswith("| cooccurrence |") and f"{reward.mean:.4g}" in line
    )
    assert f"{reward.mean:.4g} [{reward.low:.4g}, {reward.high:.4g}]" in line
    assert "| cost | trials | CPU-s of trials | CPU-s of final fits | parameters | seeds |" in page
    assert "| cooccurrence over | " in page
    assert "share of the oracle gap, %" in page
    assert "Chosen: cooccurrence: cooccurrence.window=" in page
    assert "plan " + report.plan_digest in page
    assert len(report.log_sha256) == 64
    assert f"Simulated log {report.log_sha256}." in page
