"""Recipes: one TOML file per kind of run, `extends` included, and single values set from the command line."""

import dataclasses
import difflib
import hashlib
import json
import tomllib
import types
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from model_export.align.config import AlignConfig
from model_export.data.config import PrepareConfig
from model_export.evaluate.baselines.sasrec_config import SasRecConfig
from model_export.evaluate.config import EvaluateConfig
from model_export.model.config import ModelConfig
from model_export.onnx.config import ExportConfig
from model_export.reward.config import RewardConfig
from model_export.tokenizer.config import TokenizerConfig
from model_export.train.config import TrainConfig
from service.errors import OneSlateError

RECIPES = Path(__file__).parent / "recipes"
_WORDS = {int: "a whole number", float: "a number", str: "a text", bool: "true or false"}

Config = TypeVar("Config")


class RecipeError(OneSlateError, ValueError):
    """A recipe cannot be read, or says what does not exist."""


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """One section for each stage. A table of the TOML file fills the section of its name."""

    name: str = "default"
    """Of the file."""
    purpose: str = ""
    """What the recipe is for, in a line."""
    prepare: PrepareConfig = field(default_factory=PrepareConfig)
    """`[prepare]`"""
    tokenize: TokenizerConfig = field(default_factory=TokenizerConfig)
    """`[tokenize]`"""
    model: ModelConfig = field(default_factory=ModelConfig)
    """`[model]`"""
    train: TrainConfig = field(default_factory=TrainConfig)
    """`[train]`"""
    reward: RewardConfig = field(default_factory=RewardConfig)
    """`[reward]`: the session reward model, for data that tell what was shown."""
    align: AlignConfig = field(default_factory=AlignConfig)
    """`[align]`"""
    evaluate: EvaluateConfig = field(default_factory=EvaluateConfig)
    """`[evaluate]`"""
    sasrec: SasRecConfig = field(default_factory=SasRecConfig)
    """`[sasrec]`: the baseline that is trained in the same harness."""
    export: ExportConfig = field(default_factory=ExportConfig)
    """`[export]`"""

    def resolved(self) -> dict[str, Any]:
        """Every value, as plain JSON types."""
        plain: dict[str, Any] = json.loads(json.dumps(dataclasses.asdict(self)))
        return plain

    def digest(self, *extra: str) -> str:
        """Twelve hex digits over every value and `extra`: the run folder's name."""
        return hashlib.sha256(json.dumps([self.resolved(), *extra], sort_keys=True).encode()).hexdigest()[:12]


def load_recipe(name: str, settings: Sequence[str] = (), **prepare: Any) -> Recipe:
    """Reads a recipe by its name in `recipes/` or by its path.

    Args:
        name: `industrial`, or a path that ends in `.toml`.
        settings: `section.key=value` each, the value as in TOML; bare words are strings. They win over the file.
        prepare: Values of `[prepare]` that win over everything (the data's format).

    Raises:
        RecipeError: no such file or key (the nearest one is named), or a value that cannot be.
    """
    path = Path(name) if name.endswith(".toml") else RECIPES / f"{name}.toml"
    values = _read(path, ())
    values["name"] = path.stem
    recipe = _fill(Recipe, values, str(path))
    if not settings and not prepare:
        return recipe
    # Filled again, so that a mistake on the command line is not blamed on the file.
    for setting in settings:
        _set(values, setting)
    values.setdefault("prepare", {}).update(prepare)
    return _fill(Recipe, values, " ".join(f"--set {setting}" for setting in settings) or str(path))


def _read(path: Path, seen: tuple[Path, ...]) -> dict[str, Any]:
    if path in seen:
        raise RecipeError(f"{path}: extends itself by way of {' -> '.join(str(step) for step in seen)}")
    try:
        values = tomllib.loads(path.read_text())
    except FileNotFoundError:
        known = ", ".join(sorted(file.stem for file in RECIPES.glob("*.toml")))
        raise RecipeError(f"{path}: no such recipe; there are {known}, or give the path of a .toml file") from None
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise RecipeError(f"{path}: cannot be read: {error}") from error
    base_name = values.pop("extends", None)
    if base_name is None:
        return values
    return _merged(_read(_base_path(path, base_name), (*seen, path)), values)


def _base_path(path: Path, name: Any) -> Path:
    """A recipe named in `extends`: beside the one that extends it, else one of those that come with OneSlate."""
    if not isinstance(name, str) or not name:
        raise RecipeError(f"{path}: extends must name a recipe, not {name!r}")
    beside = path.parent / (name if name.endswith(".toml") else f"{name}.toml")
    shipped = RECIPES / f"{name}.toml"
    return shipped if shipped.exists() and not beside.exists() else beside


def _merged(base: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for key, value in over.items():
        both = isinstance(value, dict) and isinstance(merged.get(key), dict)
        merged[key] = _merged(merged[key], value) if both else value
    return merged


def _set(values: dict[str, Any], setting: str) -> None:
    path, equals, text = setting.partition("=")
    keys = path.strip().split(".")
    if not equals or not all(keys):
        raise RecipeError(f"--set {setting}: must read section.key=value")
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        value = text.strip()
    for key in keys[:-1]:
        values = values.setdefault(key, {})
        if not isinstance(values, dict):
            raise RecipeError(f"--set {setting}: {key} is no section")
    values[keys[-1]] = value


def _fill(kind: type[Config], values: Mapping[str, Any], where: str) -> Config:
    assert dataclasses.is_dataclass(kind)
    known = typing.get_type_hints(kind)
    arguments = {}
    for key, value in values.items():
        if key not in known:
            near = difflib.get_close_matches(key, known, n=1, cutoff=0.5)
            hint = f"did you mean {near[0]!r}?" if near else f"there are {', '.join(sorted(known))}"
            raise RecipeError(f"{where}: unknown key {key!r}; {hint}")
        arguments[key] = _value(known[key], value, f"{where}: {key}")
    try:
        return kind(**arguments)
    except (TypeError, ValueError) as error:
        raise RecipeError(f"{where}: {error}") from error


def _value(kind: Any, value: Any, where: str) -> Any:
    if dataclasses.is_dataclass(kind) and isinstance(kind, type):
        if not isinstance(value, dict):
            raise RecipeError(f"{where} must be a table, not {value!r}")
        return _fill(kind, value, where)
    if isinstance(value, list):
        value = tuple(_element(kind, one, where) for one in value)
    if isinstance(value, int) and not isinstance(value, bool) and _takes(kind, float) and not _takes(kind, int):
        value = float(value)
    if not _takes(kind, type(value)):
        raise RecipeError(f"{where} must be {_words(kind)}, not {value!r}")
    return value


def _element(kind: Any, value: Any, where: str) -> Any:
    """A value of a list, checked against the tuple among what the field takes."""
    for option in (kind, *typing.get_args(kind)):
        if typing.get_origin(option) is tuple:
            return _value(typing.get_args(option)[0], value, f"{where}: a value of the list")
    return value  # the field takes no list at all, as its caller says


def _takes(kind: Any, plain: type) -> bool:
    """Whether a field of type `kind` takes a value of type `plain`."""
    origin = typing.get_origin(kind)
    if origin in (typing.Union, types.UnionType):
        return any(_takes(option, plain) for option in typing.get_args(kind))
    if origin is typing.Literal:
        return any(type(option) is plain for option in typing.get_args(kind))
    return (origin or kind) is plain


def _words(kind: Any) -> str:
    if typing.get_origin(kind) is typing.Literal:
        return "one of " + ", ".join(map(str, typing.get_args(kind)))
    if typing.get_origin(kind) is tuple:
        return f"a list, each {_words(typing.get_args(kind)[0])}"
    if typing.get_origin(kind) in (typing.Union, types.UnionType):
        return " or ".join(_words(option) for option in typing.get_args(kind) if option is not types.NoneType)
    return _WORDS[kind]
