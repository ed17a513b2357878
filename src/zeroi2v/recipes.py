"""How does a recipe, a TOML file, become settings? How do settings become plain values, and back?

A recipe has one table per dataclass of `config.py`. `read_recipe` reads a file; `changed` gives
settings other values; `override` does the same with `key=value` texts.
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
import tomllib
import types
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final, Literal, TypeVar

from zeroi2v.config import DataConfig, Recipe
from zeroi2v.errors import ConfigError, nearest
from zeroi2v.files import write_text

Config = TypeVar("Config")
RECIPE_FILE: Final = "recipe.toml"  # in a run folder: every setting that the run was trained with


def read_recipe(path: Path) -> Recipe:
    """The recipe in a TOML file. ConfigError names the file, and the table and key that is wrong."""
    try:
        tables = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{path}: cannot read the recipe: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: not a TOML file: {error}") from error
    try:
        return from_dict(Recipe, tables)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from error


def write_recipe(recipe: Recipe, path: Path) -> None:
    """Write the recipe as TOML, every setting included, so that `read_recipe` gives it back."""
    lines = []
    for table, settings in to_dict(recipe).items():
        lines.append(f"[{table}]")
        lines += [f"{key} = {_toml(value)}" for key, value in settings.items() if value is not None]
        lines.append("")
    write_text(path, "\n".join(lines))


def absolute_paths(recipe: Recipe) -> Recipe:
    """The recipe with every path absolute, so that the recipe means the same in another working folder.

    `model.weights` and `train.start_from` may be no paths but names on the Hub: they change only where the path exists.
    """

    def absolute(value: str | None, *, may_be_name: bool = False) -> str | None:
        is_name = value is None or (may_be_name and not Path(value).exists())
        return value if is_name else os.path.abspath(str(value))

    model, data, train = recipe.model, recipe.data, recipe.train
    return dataclasses.replace(
        recipe,
        model=dataclasses.replace(model, weights=absolute(model.weights, may_be_name=True)),
        data=dataclasses.replace(
            data, videos=absolute(data.videos), classes=absolute(data.classes)
        ),
        train=dataclasses.replace(
            train,
            start_from=absolute(train.start_from, may_be_name=True),
            exclude=absolute(train.exclude),
        ),
    )


def _toml(value: Any) -> str:
    if isinstance(value, Mapping):
        return (
            "{"
            + ", ".join(f"{json.dumps(key)} = {_toml(item)}" for key, item in value.items())
            + "}"
        )
    if value is None:  # a block's heads, or an option of the tower: TOML has no word for none
        return '"none"'
    if isinstance(value, list):
        return "[" + ", ".join(map(_toml, value)) + "]"
    return json.dumps(value, ensure_ascii=False).replace(
        "\x7f", "\\u007f"
    )  # which TOML does not take as it is


def changed(recipe: Recipe, settings: Mapping[str, object]) -> Recipe:
    """The recipe with other values of some settings: `{"train.epochs": 3}`.

    ConfigError names a setting that is unknown, or has a value of the wrong type or range.
    """
    tables = to_dict(recipe)
    for name, value in settings.items():
        _put(tables, full_name(name), value)
    return from_dict(Recipe, tables)


def override(recipe: Recipe, assignments: Sequence[str]) -> Recipe:
    """The recipe with the settings that `--set key=value` texts give other values.

    A key is `table.name`, or the name alone where only one table has that name. The value is TOML;
    text that is no TOML is taken as it is. ConfigError as `changed`, and for a text without "=".
    """
    tables = to_dict(recipe)
    for assignment in assignments:
        key, equals, text = assignment.partition("=")
        if not equals:
            raise ConfigError(f"--set {assignment}: expected key=value")
        try:
            _put(tables, full_name(key.strip()), _value(text.strip()))
        except ConfigError as error:
            raise ConfigError(f"--set {error}") from error
    return from_dict(Recipe, tables)


def full_name(key: str) -> str:
    """The `table.name` of a setting that is named so, or by its name alone.

    ConfigError for an unknown setting names the nearest known settings.
    """
    tables = to_dict(Recipe())
    owners: dict[str, list[str]] = {}
    for table, settings in tables.items():
        for name in settings:
            owners.setdefault(name, []).append(table)
    head, _, rest = key.partition(".")
    table, name = (head, rest) if head in tables else (owners.get(head, [""])[0], key)
    if name.partition(".")[0] not in tables.get(table, {}):
        known = [*owners, *(f"{table}.{name}" for table in tables for name in tables[table])]
        raise ConfigError(f"{key}: unknown setting{nearest(key, known)}")
    return f"{table}.{name}"


def _put(tables: dict[str, Any], name: str, value: object) -> None:
    """Set the value of `table.name` in plain tables, or of `table.name.key`, a key in a setting."""
    *path, last = name.split(".")
    table = tables
    for step in path:
        inner = table.setdefault(step, {})
        if not isinstance(inner, dict):
            raise ConfigError(f"{name}: {step} has no settings of its own")
        table = inner
    table[last] = value


def as_assignment(name: str, value: str) -> str:
    """The `key=value` text by which `override` gives a setting this text as its value."""
    return f"{name}={value if _value(value.strip()) == value else _toml(value)}"


def data_settings(assignments: Sequence[str], *, run: str | None = None) -> DataConfig:
    """The defaults of [data], changed by `--set key=value` texts, where no recipe is read.

    If the folder `run` is a run, the default of `data.split` is the split that the run was trained
    on. ConfigError for a setting of another table.
    """
    recipe = Recipe()
    if run is not None and (Path(run) / RECIPE_FILE).is_file():
        trained = read_recipe(Path(run) / RECIPE_FILE)
        recipe = Recipe(data=DataConfig(split=trained.data.split))
    recipe = override(recipe, assignments)
    if recipe != Recipe(data=recipe.data):
        raise ConfigError(f"--set {' '.join(assignments)}: only settings of [data] are known here")
    return recipe.data


def _value(text: str) -> object:
    """The value that a text stands for: TOML, "none", or the text itself."""
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return None if text == "none" else text


def to_dict(config: Any) -> dict[str, Any]:
    """A dataclass as plain dictionaries and lists, ready for JSON or TOML."""
    plain: dict[str, Any] = json.loads(json.dumps(dataclasses.asdict(config)))
    return plain


def from_dict(kind: type[Config], values: Mapping[str, Any], where: str = "") -> Config:
    """Build a dataclass from plain values. ConfigError names a key that is unknown, or a value of the wrong type."""
    hints = typing.get_type_hints(kind)
    arguments = {}
    for key, value in values.items():
        if key not in hints:
            raise ConfigError(f"unknown setting {where + key!r}{nearest(key, hints)}")
        arguments[key] = _convert(hints[key], value, where + key)
    return kind(**arguments)


def _convert(hint: Any, value: Any, where: str) -> Any:
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if value == "none" and types.NoneType in inner:
        return None
    if dataclasses.is_dataclass(hint) and isinstance(hint, type) and isinstance(value, Mapping):
        return from_dict(hint, value, where + ".")
    if origin is Literal:
        if value not in inner or isinstance(value, bool):
            choices = ", ".join(map(repr, inner))
            raise ConfigError(
                f"{where} must be one of {choices}, got {value!r}{nearest(str(value), map(str, inner))}"
            )
        return value
    if origin in (types.UnionType, typing.Union):
        for option in inner:
            try:
                return _convert(option, value, where)
            except ConfigError:
                continue
    elif origin is tuple and isinstance(value, Sequence) and not isinstance(value, str):
        if inner[-1] is Ellipsis:
            return tuple(_convert(inner[0], item, where) for item in value)
        if len(value) == len(inner):
            return tuple(_convert(one, item, where) for one, item in zip(inner, value, strict=True))
    elif (
        hint is float
        and isinstance(value, int | float)
        and not isinstance(value, bool)
        and math.isfinite(value)
    ):
        return float(value)
    elif origin is dict and isinstance(value, Mapping):
        if not _is_plain(value):
            raise ConfigError(
                f"{where} must hold numbers, text, true or false, lists and tables alone, got {value!r}"
            )
        return {key: None if item == "none" else item for key, item in value.items()}
    elif (
        hint is not float
        and isinstance(hint, type)
        and isinstance(value, hint)
        and (hint is bool or not isinstance(value, bool))
    ):
        return value
    raise ConfigError(f"{where} must be {_in_words(hint)}, got {value!r}")


def _is_plain(value: Any) -> bool:
    """Whether a value comes back from JSON as it was, but for tuples."""
    if isinstance(value, Mapping):
        return all(isinstance(key, str) and _is_plain(item) for key, item in value.items())
    if isinstance(value, list | tuple):
        return all(map(_is_plain, value))
    return (
        value is None
        or isinstance(value, str | int)
        or (isinstance(value, float) and math.isfinite(value))
    )


def _in_words(hint: Any) -> str:
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    plain = {
        int: "a whole number",
        float: "a number",
        str: "text",
        bool: "true or false",
        types.NoneType: "none",
    }
    if origin in (types.UnionType, typing.Union):
        return " or ".join(dict.fromkeys(map(_in_words, inner)))
    if origin is tuple:
        return (
            f"a list of {_in_words(inner[0])}"
            if inner[-1] is Ellipsis
            else f"a list of {len(inner)}"
        )
    return plain.get(hint, "a table")
