"""Recipes: what loads, what is refused and in which words, and what the digest tells apart."""

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from model_export.recipe import RECIPES, Recipe, RecipeError, load_recipe

SHIPPED = sorted(file.stem for file in RECIPES.glob("*.toml"))


def write(folder: Path, **texts: str) -> Path:
    """Writes `<name>.toml` for each text; returns the path of the last."""
    path = folder
    for name, text in texts.items():
        path = folder / f"{name}.toml"
        path.write_text(text)
    return path


@pytest.mark.parametrize("name", SHIPPED)
def test_every_shipped_recipe_loads_and_says_what_it_is_for(name: str) -> None:
    recipe = load_recipe(name)
    assert recipe.name == name
    assert recipe.purpose
    assert json.loads(json.dumps(recipe.resolved())) == recipe.resolved()


def test_a_recipe_without_anything_is_the_defaults(tmp_path: Path) -> None:
    recipe = load_recipe(str(write(tmp_path, empty="")))
    assert dataclasses.replace(recipe, name="default") == Recipe()


def test_extends_goes_along_a_chain_and_the_nearer_file_wins(tmp_path: Path) -> None:
    path = write(
        tmp_path,
        far="[train]\nseed = 1\nmax_epochs = 2\nbatch_size = 3\n[model]\nwidth = 8",
        middle='extends = "far"\n[train]\nseed = 4\nmax_epochs = 5',
        near='extends = "middle"\n[train]\nseed = 6',
    )
    recipe = load_recipe(str(path))
    assert (recipe.train.seed, recipe.train.max_epochs, recipe.train.batch_size) == (6, 5, 3)
    assert recipe.model.width == 8
    assert recipe.name == "near"


def test_a_recipe_of_ones_own_extends_a_shipped_one_and_a_file_beside_it_comes_first(tmp_path: Path) -> None:
    mine = write(tmp_path, mine='extends = "industrial"\n[train]\nseed = 9')
    assert load_recipe(str(mine)).model == load_recipe("industrial").model
    write(tmp_path, industrial="[model]\nwidth = 8")
    assert load_recipe(str(mine)).model.width == 8


@pytest.mark.parametrize("count", [1, 2, 3])
def test_a_cycle_of_extends_is_an_error(tmp_path: Path, count: int) -> None:
    texts = {f"r{number}": f'extends = "r{(number + 1) % count}"' for number in range(count)}
    with pytest.raises(RecipeError, match="extends itself"):
        load_recipe(str(write(tmp_path, **texts)))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[train]\nmax_epoch = 3", r"mine\.toml: train: unknown key 'max_epoch'; did you mean 'max_epochs'\?"),
        ("[trian]\nmax_epochs = 3", r"mine\.toml: unknown key 'trian'; did you mean 'train'\?"),
        ("[train]\nqqqq = 3", r"unknown key 'qqqq'; there are batch_size, .*weight_decay"),
        ("[model]\nwidht = 3", r"did you mean 'width'"),
        ("max_epochs = 3", r"mine\.toml: unknown key 'max_epochs'"),
        ("train = 3", r"mine\.toml: train must be a table, not 3"),
        ("[train]\nmax_epochs = '3'", r"train: max_epochs must be a whole number, not '3'"),
        ("[train]\nmax_epochs = 3.0", r"max_epochs must be a whole number, not 3\.0"),
        ("[train]\nmax_epochs = true", r"max_epochs must be a whole number, not True"),
        ("[train]\nlearning_rate = 'high'", r"learning_rate must be a number, not 'high'"),
        ("[prepare]\nformat = 3", r"format must be a text, not 3"),
        ("[prepare]\nkeep_actions = 'like'", r"keep_actions must be a list, each a text, not 'like'"),
        ("[prepare]\nkeep_actions = ['like', 3]", r"keep_actions: a value of the list must be a text, not 3"),
        ("[evaluate]\nks = [5, 'ten']", r"ks: a value of the list must be a whole number, not 'ten'"),
        ("[train]\nlearning_rate = [1e-3]", r"learning_rate must be a number"),
        ("[train]\nlearning_rate = 1979-05-27", r"learning_rate must be a number"),
        ("[tokenize]\ncodebook_size = 'big'", r"codebook_size must be a whole number or a list, each a whole number"),
        ("[model]\nscore_mode = 3", r"score_mode must be one of full_softmax, legal_softmax"),
        ("[model]\nscore_mode = 'softmax'", r"score_mode must be full_softmax or legal_softmax"),
        ("[train]\nbatch_size = 0", r"mine\.toml: train: .*batch_size must be at least 1, not 0"),
        ("[train]\nlearning_rate = nan", r"learning_rate must be positive"),
        ("extends = 3", r"mine\.toml: extends must name a recipe, not 3"),
        ("extends = 'nowhere'", r"nowhere\.toml: no such recipe; there are default, demo"),
        ("[train]\nseed = 1 2", r"mine\.toml: cannot be read: .*line 2"),
    ],
)
def test_a_mistake_in_a_file_is_one_error_that_names_it(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(RecipeError, match=message) as caught:
        load_recipe(str(write(tmp_path, mine=text)))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("train.max_epoch=3", r"^--set train\.max_epoch=3: train: unknown key .* did you mean 'max_epochs'\?"),
        ("trian.max_epochs=3", r"^--set .*did you mean 'train'\?"),
        ("train.max_epochs=many", r"^--set .*max_epochs must be a whole number, not 'many'"),
        ("train.max_epochs", r"^--set train\.max_epochs: must read section\.key=value"),
        ("=3", r"must read section\.key=value"),
        ("train..seed=3", r"must read section\.key=value"),
        ("train.seed.deep=3", r"seed must be a whole number"),
        ("train.max_epochs.deep=3", r"max_epochs is no section"),
        ("train=3", r"train must be a table"),
    ],
)
def test_a_mistake_in_a_setting_is_blamed_on_the_setting(setting: str, message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        load_recipe("industrial", [setting])


def test_a_recipe_that_is_not_there_names_those_that_are(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="no such recipe; there are default, demo, industrial"):
        load_recipe("industrail")
    (tmp_path / "folder.toml").mkdir()
    with pytest.raises(RecipeError, match=r"folder\.toml: cannot be read"):
        load_recipe(str(tmp_path / "folder.toml"))
    (tmp_path / "latin.toml").write_bytes(b'purpose = "caf\xe9"')
    with pytest.raises(RecipeError, match=r"latin\.toml: cannot be read"):
        load_recipe(str(tmp_path / "latin.toml"))


@pytest.mark.parametrize(
    ("setting", "expected"),
    [
        ("train.max_epochs=3", 3),
        ("train.learning_rate=1", 1.0),
        ("train.learning_rate=2e-3", 2e-3),
        ("prepare.format=movielens", "movielens"),
        ('prepare.format="movielens"', "movielens"),
        ('prepare.items="a=b.csv"', "a=b.csv"),
        ("prepare.items=a=b.csv", "a=b.csv"),
        ("prepare.items=", ""),
        ("prepare.min_value=4", 4.0),
        ("evaluate.ks=[1, 10]", (1, 10)),
        ("prepare.keep_actions=['like', 'view']", ("like", "view")),
        ("tokenize.codebook_size=[8, 4, 2]", (8, 4, 2)),
        ("tokenize.codebook_size=16", 16),
    ],
)
def test_settings_are_typed_as_in_toml_and_win_over_the_file(setting: str, expected: object) -> None:
    recipe = load_recipe("default", [setting, "evaluate.headline_k=10"])
    section, _, key = setting.partition("=")[0].partition(".")
    found = getattr(getattr(recipe, section), key)
    assert found == expected
    assert type(found) is type(expected)


def test_the_last_setting_and_the_format_asked_for_win() -> None:
    recipe = load_recipe("industrial", ["train.seed=1", "train.seed=2", "prepare.format=table"], format="sessions")
    assert recipe.train.seed == 2
    assert recipe.prepare.format == "sessions"
    assert recipe.prepare.slate_size == load_recipe("industrial").prepare.slate_size


def changed(value: Any) -> Any:
    if isinstance(value, bool):
        return not value
    if isinstance(value, int | float):
        return value + 1
    if isinstance(value, str):
        return value + "x"
    if isinstance(value, tuple | list):
        return [*value, "x"]
    return "x"


def test_the_digest_changes_with_any_value() -> None:
    recipe = Recipe()
    digests = {recipe.digest()}
    leaves = 0
    for name, section in recipe.resolved().items():
        keys = list(section) if isinstance(section, dict) else [None]
        for key in keys:
            object_ = getattr(recipe, name)
            if key is None:
                other = dataclasses.replace(recipe, **{name: changed(object_)})
            else:
                # Past the checks of __post_init__: the digest is what is tested.
                copy = object.__new__(type(object_))
                copy.__dict__.update(vars(object_) | {key: changed(vars(object_)[key])})
                other = dataclasses.replace(recipe, **{name: copy})
            digests.add(other.digest())
            leaves += 1
    digests |= {recipe.digest("a"), recipe.digest("b"), recipe.digest("a", "b")}
    assert leaves > 60
    assert len(digests) == 1 + leaves + 3


@given(st.text(max_size=30), st.text(max_size=30))
def test_no_setting_whatever_raises_anything_but_a_recipe_error(key: str, value: str) -> None:
    for setting in (f"train.{key}={value}", f"{key}={value}", f"train.seed={value}", f"prepare.format={value}"):
        try:
            recipe = load_recipe("default", [setting])
        except RecipeError:
            continue
        assert isinstance(recipe.train.seed, int)


def test_recipes_can_be_copied_out_of_the_package(tmp_path: Path) -> None:
    for name in SHIPPED:
        shutil.copy(RECIPES / f"{name}.toml", tmp_path)
        assert load_recipe(str(tmp_path / f"{name}.toml")) == load_recipe(name)
