"""Plans: what they may say, and that a mistake is named before hours of work."""

import pytest
from trial_plans import SASREC, write_plan

from model_export.trials.plan import PLANS, PlanError, load_plan
from model_export.trials.registry import check_models
from model_export.trials.run import run_trials


@pytest.mark.parametrize("name", sorted(path.stem for path in PLANS.glob("*.toml")))
def test_the_plans_that_come_with_oneslate_can_be_run(name):
    plan = load_plan(name)
    check_models(plan)
    assert plan.name == name
    assert plan.purpose
    assert len(plan.seeds) == (1 if name == "beauty-gate" else 3)


def test_a_trial_is_the_settings_with_its_entry_of_the_grid_over_them(tmp_path):
    models = {
        "popularity": {"kind": "popularity"},
        "cooccurrence": {
            "kind": "sasrec",
            "settings": SASREC,
            "grid": [{"sasrec": {"width": 8}}, {"tokenize": {"text_dim": 4}}],
        },
    }
    model = load_plan(write_plan(tmp_path / "plan.toml", models=models)).models["cooccurrence"]
    assert model.trial(0) == {"sasrec": {**SASREC["sasrec"], "width": 8}}
    assert model.trial(1) == {**SASREC, "tokenize": {"text_dim": 4}}
    assert model.num_trials == 2


ONE = {"cooccurrence": {"kind": "cooccurrence", "grid": [{}, {}]}}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"subject": "nobody"}, "subject 'nobody' is none of the models popularity, cooccurrence"),
        ({"num_trials": 9}, "num_trials"),
        ({"num_trials": 3}, "models.cooccurrence.grid has 2 settings, not num_trials = 3"),
        ({"max_cpu_hours": 0}, "max_cpu_hours"),
        ({"seeds": [0, 0]}, "seeds must differ"),
        ({"measure": "ndcg@10"}, "measure"),
        ({"measure": "slate/true_reward"}, "measure slate/true_reward: .* one of hit, recall, precision, ndcg"),
        ({"measure": "item/ndcg@7"}, "measure item/ndcg@7: .*ndcg@5, ndcg@10"),
        ({"measures": "item/ndcg@10"}, "measures: Extra inputs"),
        ({"evaluate": {"splits": ["valid"]}}, "evaluate.splits"),
        ({"models": {**ONE, "oracle": {"kind": "popularity"}}}, "'oracle' is the name"),
        (
            {"models": {**ONE, "b": {"kind": "sasrek", "grid": [{}, {}]}}},
            "unknown kind 'sasrek'; did you mean 'sasrec'",
        ),
        ({"models": {**ONE, "b": {"kind": "sasrec"}}}, "models.b: 1 trials; every model with settings gets 2"),
        (
            {"models": {**ONE, "b": {"kind": "sasrec", "grid": [{}, {"model": {}}]}}},
            r"models.b, trial 1: \[model\] is none of the tables that this kind reads: sasrec",
        ),
        (
            {"models": {**ONE, "b": {"kind": "sasrec", "grid": [{}, {"sasrec": {"widht": 8}}]}}},
            "models.b, trial 1: .*unknown key 'widht'; did you mean 'width'",
        ),
        (
            {"models": {**ONE, "b": {"kind": "sasrec", "grid": [{}, {"sasrec": {"width": 0}}]}}},
            "models.b, trial 1: .*width must be at least 1",
        ),
        (
            {"models": {"cooccurrence": {"kind": "cooccurrence", "grid": [{}, {"cooccurrence": {"widow": 3}}]}}},
            r"\[cooccurrence\]: unknown key 'widow'; did you mean 'window'",
        ),
        ({"prepare": {"slate_sise": 3}}, "unknown key 'slate_sise'"),
    ],
)
def test_what_a_plan_may_not_say(tmp_path, tiny_log, changes, message):
    path = write_plan(tmp_path / "plan.toml", **changes)
    with pytest.raises(PlanError, match=message) as caught:
        run_trials(path, tiny_log, tmp_path / "out")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists(), "refused before anything was done"


def test_a_plan_that_is_none_is_refused(tmp_path, tiny_log):
    with pytest.raises(PlanError, match="no such plan; there are"):
        load_plan("no-such")
    (tmp_path / "broken.toml").write_text("models = [")
    with pytest.raises(PlanError, match=r"broken\.toml: cannot be read"):
        load_plan(tmp_path / "broken.toml")
    path = write_plan(tmp_path / "plan.toml")
    with pytest.raises(PlanError, match="name the data"):
        run_trials(path, None, tmp_path / "out")
    with pytest.raises(PlanError, match="jobs"):
        run_trials(path, tiny_log, tmp_path / "out", jobs=0)
    with pytest.raises(PlanError, match="takes no data"):
        run_trials(write_plan(path, simulator={}), tiny_log, tmp_path / "out")
