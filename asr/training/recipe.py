"""Recipes: a training run from data to a measured model, as a TOML file.

A recipe is a configuration (:mod:`asr.training.train_config`) with two more tables. ``[recipe]`` says what belongs to
it: data, language model, expected time and error (:class:`Recipe`). ``[[stages]]`` are the parts of the run: each is
the configuration with changes, and starts from the model of the one before. Without them there is one stage.
The recipes that come with the package lie in ``asr/recipes``.
"""

from __future__ import annotations

import dataclasses
import difflib
import re
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from asr.config import from_dict, require
from asr.errors import ConfigError, UsageError
from asr.training.train_config import TrainConfig, model_config, read_toml

PATHS = ("noise", "rooms", "lexicon", "words", "cache")
"""Keys of a configuration that are paths."""
_FOLDER = Path(__file__).resolve().parent.parent / "recipes"
_NAME = re.compile(r"[a-z0-9][a-z0-9-]*")
_KINDS = ("measured", "estimate")


@dataclass(frozen=True)
class Recipe:
    """What a recipe states and brings beside its configuration.

    ``data``, ``dev``, ``test``: manifests, or none (then `--data` and `--dev` are needed). ``tables``: keys of PATHS
    that its figures were made with and that the user has to give. ``language_model``: ``librispeech`` (OpenSLR's pruned
    trigram), the name or folder of a model that has one, or none; ``recurrent``: the name or folder of a model whose
    recurrent language model the search asks, too, or none; ``pronunciation_hours``: in how much of the training speech
    the pronunciations of the lexicon are counted (:mod:`asr.training.pronunciations`; 0: not at all); ``tune``:
    utterances of each dev table on which the weights of the search are found, 0: it keeps its defaults. ``disk``,
    ``time`` and ``error``: what to expect; the last two begin with "measured" or "estimate".
    """

    about: str = ""
    data: tuple[str, ...] = ()
    dev: tuple[str, ...] = ()
    test: tuple[str, ...] = ()
    tables: tuple[str, ...] = ()
    language_model: str = ""
    recurrent: str = ""
    pronunciation_hours: float = 0.0
    tune: int = 0
    disk: str = ""
    time: str = ""
    error: str = ""

    def __post_init__(self) -> None:
        require(all(name in PATHS for name in self.tables), f"recipe.tables: choose from {', '.join(PATHS)}")
        require(self.pronunciation_hours >= 0, "recipe.pronunciation_hours must not be negative")
        require(self.tune >= 0, "recipe.tune must not be negative")
        require(bool(self.language_model) or not self.recurrent, "recipe.recurrent needs recipe.language_model")
        for name in ("time", "error"):
            value = getattr(self, name)
            require(
                not value or value.startswith(_KINDS),
                f"recipe.{name} must begin with 'measured' or 'estimate': {value!r}",
            )


@dataclass(frozen=True)
class Stage:
    """A part of a run. Its name is that of its folder within the run's; "" is the whole run."""

    name: str
    config: TrainConfig


@dataclass(frozen=True)
class Plan:
    """What a file asks for."""

    path: Path
    recipe: Recipe
    stages: tuple[Stage, ...]

    @property
    def steps(self) -> int:
        """Steps of all stages."""
        return sum(stage.config.optimizer.steps for stage in self.stages)

    @property
    def missing_tables(self) -> list[str]:
        """What the recipe was measured with and the user has not given."""
        return [name for name in self.recipe.tables if not getattr(self.stages[0].config, name)]


def recipes() -> dict[str, Path]:
    """The recipes of the package by name."""
    return {path.stem: path for path in sorted(_FOLDER.glob("*.toml"))}


def find_recipe(name: str) -> Path:
    """The file of a recipe of the package. Raises UsageError naming those that there are."""
    known = recipes()
    if name not in known:
        raise UsageError(f"there is no recipe '{name}': choose one of {', '.join(known)}, or give a file by --config")
    return known[name]


def read_plan(path: Path, changes: Sequence[str] = ()) -> Plan:
    """Read a configuration or recipe. Raises ConfigError.

    ``changes``: ``KEY=VALUE``, in all stages, or ``STAGE:KEY=VALUE``; a value is TOML or else a string. Relative paths
    are relative to the file, those of ``changes`` to the working folder.
    """
    values = read_toml(path)
    try:
        recipe = from_dict(Recipe, values.pop("recipe", {}), "recipe")
        tables = _stage_tables(values.pop("stages", None))
        parsed = [read_change(text, list(tables)) for text in changes]
        for table in (values, *tables.values()):
            absolute(table, path.parent)
        stages = [Stage(name, _stage(name, merged(values, table), parsed)) for name, table in tables.items()]
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from None
    return Plan(path, recipe, tuple(stages))


def merged(base: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """``base`` with ``changes``, table by table."""
    result = dict(base)
    for key, value in changes.items():
        old = result.get(key)
        result[key] = merged(old, value) if isinstance(old, Mapping) and isinstance(value, Mapping) else value
    return result


def config_of(values: Mapping[str, Any]) -> TrainConfig:
    """A configuration whose model table makes sense. Raises ConfigError."""
    config = from_dict(TrainConfig, values)
    model_config(config, {name: 2 for name in config.heads})  # so that a bad model table is found before any work
    return config


def _stage_tables(values: Any) -> dict[str, dict[str, Any]]:
    if values is None:
        return {"": {}}
    require(
        isinstance(values, list) and len(values) > 0 and all(isinstance(v, dict) for v in values),
        "stages must be tables: write each as [[stages]]",
    )
    tables: dict[str, dict[str, Any]] = {}
    for number, value in enumerate(values, start=1):
        name = value.pop("name", None)
        require(isinstance(name, str), f"stage {number} needs a name")
        require(_NAME.fullmatch(name) is not None, f"the stage {name!r} needs a name of a to z, 0 to 9 and -")
        require(name not in tables, f"two stages are named '{name}'")
        require(
            name not in ("model", "cache", "eval", "deepened"),
            f"no stage can be named '{name}': the run has a folder so named",
        )
        tables[name] = value
    return tables


def read_change(text: str, stages: Sequence[str]) -> tuple[str, dict[str, Any]]:
    """(stage or "" for all, values) of ``[STAGE:]KEY=VALUE``."""
    key, equals, raw = text.partition("=")
    require(bool(equals) and bool(key.strip()), f"'{text}' is no change of a setting: write KEY=VALUE")
    stage, colon, rest = key.strip().partition(":")
    if colon:
        near = difflib.get_close_matches(stage, stages, n=1, cutoff=0.0)
        require(stage in stages, f"there is no stage '{stage}': did you mean '{near[0] if near else ''}'?")
    else:
        stage, rest = "", stage
    try:
        value = tomllib.loads(f"value = {raw}")["value"]
    except tomllib.TOMLDecodeError:
        value = raw
    values: dict[str, Any] = {}
    table = values
    *outer, last = rest.split(".")
    for name in outer:
        table = table.setdefault(name, {})
    table[last] = value
    absolute(values, Path.cwd())
    return stage, values


def absolute(values: dict[str, Any], folder: Path) -> None:
    for name in PATHS:
        if isinstance(values.get(name), str) and values[name]:
            values[name] = str((folder / values[name]).resolve())


def _stage(name: str, values: dict[str, Any], changes: Sequence[tuple[str, dict[str, Any]]]) -> TrainConfig:
    for stage, change in changes:
        if stage in ("", name):
            values = merged(values, change)
    try:
        return config_of(values)
    except ConfigError as error:
        raise ConfigError(f"stage '{name}': {error}" if name else str(error)) from None


def with_data_of(plan: Plan, data: Sequence[str], dev: Sequence[str]) -> tuple[list[str], list[str], list[str]]:
    """What to train on, measure on and test on: as given, else the recipe's. Raises UsageError where there is none.

    With other dev tables than the recipe's the test tables are these.
    """
    recipe = plan.recipe
    found = list(data or recipe.data), list(dev or recipe.dev), list(dev or recipe.test or recipe.dev)
    missing = [f"--{name}" for name, tables in zip(("data", "dev"), found[:2], strict=True) if not tables]
    if missing:
        raise UsageError(f"{plan.path.stem} names no data of its own: give {' and '.join(missing)}")
    return found


def after_another(config: TrainConfig) -> TrainConfig:
    """The configuration of a stage that starts from the model of another: words and pronunciations are that model's."""
    return dataclasses.replace(config, lexicon="", words="")
