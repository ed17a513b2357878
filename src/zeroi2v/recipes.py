"""How does a recipe, a TOML file, become settings, and how do settings become a recipe?

A recipe has one table for each dataclass of `config.py` that `Recipe` holds. `read_recipe` reads a
file, and `read_run_recipe` the file of a run; `changed` gives settings other values; `override`
does the same with `key=value` texts. `to_dict` and `from_dict` convert any dataclass to plain
values and back.
"""

from __future__ import annotations

import copy
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

from zeroi2v.config import CHANGED_STRATEGIES, DataConfig, Recipe
from zeroi2v.errors import ConfigError, nearest
from zeroi2v.files import write_text

Config = TypeVar("Config")
RECIPE_FILE: Final = "recipe.toml"  # in a run folder: every setting that the run was trained with


def read_recipe(path: Path) -> Recipe:
    """The recipe in a TOML file. ConfigError names the file, and the setting that is wrong."""
    return _recipe_of(path, _read_tables(path))


def read_run_recipe(folder: Path) -> Recipe:
    """The recipe that a run of any version was trained with, from the folder of the run.

    ConfigError if the folder holds no run.
    """
    path = folder / RECIPE_FILE
    if not os.path.lexists(path):
        raise ConfigError(
            f"{folder}: holds no run, because there is no {RECIPE_FILE} in it; "
            "give the folder that `zeroi2v train` wrote, or begin a run there without --resume"
        )
    return _recipe_of(path, saved_tables(_read_tables(path)))


def names_in(path: Path) -> set[str]:
    """The `table.name` of every setting that a recipe file names."""
    tables = _read_tables(path)
    return {f"{table}.{name}" for table in tables for name in tables[table]}


def saved_tables(tables: Mapping[str, Any]) -> dict[str, Any]:
    """The tables of a recipe that a run of any version wrote, as this version reads them."""
    model = tables.get("model")
    return (
        {**tables, "model": saved_model_settings(model)} if isinstance(model, dict) else {**tables}
    )


def saved_model_settings(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of [model] that any version wrote, as this version reads them.

    Older recipes have no `strategy_rules`: their models keep the rules that they were trained with.
    """
    is_old = "strategy_rules" not in settings and settings.get("strategy") in CHANGED_STRATEGIES
    return {**settings, "strategy_rules": "0.1.0"} if is_old else dict(settings)


def _read_tables(path: Path) -> dict[str, Any]:
    """The content of a TOML file. ConfigError if the file cannot be read, or is no TOML."""
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{path}: cannot read the recipe: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: not a TOML file: {error}") from error


def _recipe_of(path: Path, tables: Mapping[str, Any]) -> Recipe:
    """The recipe of the tables in a file. ConfigError names the file."""
    try:
        return from_dict(Recipe, tables)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from error


def write_recipe(recipe: Recipe, path: Path) -> None:
    """Write every setting of a recipe to a TOML file, which `read_recipe` can read."""
    lines = []
    for table, settings in to_dict(recipe).items():
        lines.append(f"[{table}]")
        lines += [f"{key} = {_toml(value)}" for key, value in settings.items() if value is not None]
        lines.append("")
    write_text(path, "\n".join(lines))


def absolute_paths(recipe: Recipe) -> Recipe:
    """The recipe with every path made absolute, so that it means the same in any working folder.

    `train.start_from` may be a name on the Hub instead of a path. So this setting, and likewise
    `model.weights`, changes only if a file or folder of that path exists.
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
    """A plain value as TOML."""
    if isinstance(value, Mapping):
        items = ", ".join(f"{json.dumps(key)} = {_toml(item)}" for key, item in value.items())
        return "{" + items + "}"
    if value is None:  # the heads of a block, or a tower option: TOML has no null
        return '"none"'
    if isinstance(value, list):
        return "[" + ", ".join(map(_toml, value)) + "]"
    # JSON leaves the control character DEL as it is, and TOML forbids it.
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")


def changed(recipe: Recipe, settings: Mapping[str, object]) -> Recipe:
    """The recipe with other values of some settings: `{"train.epochs": 3}`.

    ConfigError names a setting that is unknown, or has a value of the wrong type or range.
    """
    tables = to_dict(recipe)
    for name, value in settings.items():
        _put(tables, full_name(name), value)
    return from_dict(Recipe, tables)


def override(
    recipe: Recipe, assignments: Sequence[str], flags: Mapping[str, object] | None = None
) -> Recipe:
    """The recipe, changed by `--set key=value` texts. Each value is written in TOML.

    A key is `table.name`, or only the name: then the setting belongs to the first table that has a
    setting of this name. The key may go on with keys inside a setting, such as
    `tower_options.img_size`. `flags` are the values of other options by `table.name`; each option
    has the name of its setting. ConfigError names a text that is wrong, and two texts or options
    that give a setting different values.
    """
    flags = flags or {}
    tables = to_dict(changed(recipe, flags))
    given = {f"{_flag(name)} {value}": (name, value) for name, value in flags.items()}
    for assignment in assignments:
        key, equals, text = assignment.partition("=")
        if not equals:
            raise ConfigError(f"--set {assignment}: expected key=value")
        try:
            name, value = full_name(key.strip()), _value(text.strip())
            _put(tables, name, value)
        except ConfigError as error:
            raise ConfigError(f"--set {error}") from error
        for earlier, (earlier_name, earlier_value) in given.items():
            if not _holds(tables, earlier_name.split("."), earlier_value):
                raise ConfigError(
                    f"--set {assignment} contradicts {earlier}; give only one of them"
                )
        given[f"--set {assignment}"] = name, value
    return from_dict(Recipe, tables)


def _flag(name: str) -> str:
    """The option of a command that gives the setting `table.name`."""
    return "--" + name.rpartition(".")[2].replace("_", "-")


def _holds(value: object, path: Sequence[str], wanted: object) -> bool:
    """Whether plain values hold `wanted` at a path of keys; a table may hold further keys."""
    if path:
        return isinstance(value, dict) and _holds(value.get(path[0]), path[1:], wanted)
    if isinstance(wanted, dict) and isinstance(value, dict):
        return all(_holds(value, [key], item) for key, item in wanted.items())
    return value == wanted


def assigned_names(assignments: Sequence[str]) -> set[str]:
    """The `table.name` of every setting that `key=value` texts assign."""
    names = [full_name(text.partition("=")[0].strip()).split(".") for text in assignments]
    return {".".join(name[:2]) for name in names}


def absent_classes(assignments: Sequence[str]) -> Literal["stop", "skip"]:
    """How `open_dataset` judges a class of `data.leave_out` that the data set lacks.

    The class is an error if `--set` texts name the classes, and is passed over if a run does.
    """
    return "stop" if "data.leave_out" in assigned_names(assignments) else "skip"


def full_name(key: str) -> str:
    """The `table.name` of a setting. `key` is this name, or the name without the table.

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
        known = [*owners, *(f"{table}.{setting}" for table in tables for setting in tables[table])]
        if rest in owners:  # a setting of another table
            raise ConfigError(f"{key}: unknown setting, did you mean '{owners[rest][0]}.{rest}'?")
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
    table[last] = copy.deepcopy(value)


def as_assignment(name: str, value: str) -> str:
    """The `key=value` text that makes `override` set the setting `name` to the text `value`."""
    return f"{name}={value if _value(value.strip()) == value else _toml(value)}"


def data_settings(assignments: Sequence[str], *, run: str | None = None) -> DataConfig:
    """The settings of [data] where no recipe is read: defaults, changed by `--set` texts.

    If the folder `run` is a run, the defaults of `data.split` and `data.leave_out` are those with
    which the run was trained. ConfigError for a setting of another table.
    """
    recipe = Recipe()
    if run is not None and (Path(run) / RECIPE_FILE).is_file():
        trained = read_recipe(Path(run) / RECIPE_FILE)
        trained_data = DataConfig(split=trained.data.split, leave_out=trained.data.leave_out)
        recipe = Recipe(data=trained_data)
    recipe = override(recipe, assignments)
    if recipe != Recipe(data=recipe.data):
        names = {text: full_name(text.partition("=")[0].strip()) for text in assignments}
        wrong = next(text for text, name in names.items() if not name.startswith("data."))
        raise ConfigError(
            f"--set {wrong}: this command takes only settings of [data], such as data.split"
        )
    return recipe.data


def _value(text: str) -> object:
    """The value that a TOML text stands for. A bare word is text; the bare word none is None."""
    try:
        table = tomllib.loads(f"value = {text}")
    except tomllib.TOMLDecodeError:
        return None if text == "none" else text
    return table["value"] if len(table) == 1 else text  # further lines may hold further keys


def to_dict(config: Any) -> dict[str, Any]:
    """The fields of a dataclass as plain dictionaries and lists, ready for JSON or TOML."""
    plain: dict[str, Any] = json.loads(json.dumps(dataclasses.asdict(config)))
    return plain


def from_dict(kind: type[Config], values: Mapping[str, Any], where: str = "") -> Config:
    """Make a dataclass of class `kind` from plain values. `where` comes before keys in messages.

    ConfigError names a key that is unknown, or a value of the wrong type.
    """
    hints = typing.get_type_hints(kind)
    fields: dict[str, dataclasses.Field[Any]] = getattr(kind, "__dataclass_fields__", {})
    arguments = {}
    for key, value in values.items():
        if key not in hints:
            raise ConfigError(f"unknown setting {where + key!r}{nearest(key, hints)}")
        try:
            arguments[key] = _convert(hints[key], value, where + key)
        except ConfigError as error:
            words = fields[key].metadata.get("type")
            if words is None:
                raise
            raise ConfigError(f"{where + key} must be {words}, got {value!r}") from error
    return kind(**arguments)


def _convert(hint: Any, value: Any, where: str) -> Any:
    """A plain value, converted to the type `hint`. ConfigError if the value does not fit."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if value == "none" and types.NoneType in arguments:
        return None
    if dataclasses.is_dataclass(hint) and isinstance(hint, type) and isinstance(value, Mapping):
        return from_dict(hint, value, where + ".")
    if origin is Literal:
        if value not in arguments or isinstance(value, bool):
            choices = ", ".join(map(repr, arguments))
            suggestion = nearest(str(value), map(str, arguments))
            raise ConfigError(f"{where} must be one of {choices}, got {value!r}{suggestion}")
        return value
    if origin in (types.UnionType, typing.Union):
        for option in arguments:
            try:
                return _convert(option, value, where)
            except ConfigError:
                continue
    elif origin is tuple and isinstance(value, Sequence) and not isinstance(value, str):
        if arguments[-1] is Ellipsis:
            return tuple(_convert(arguments[0], item, where) for item in value)
        if len(value) == len(arguments):
            pairs = zip(arguments, value, strict=True)
            return tuple(_convert(item_hint, item, where) for item_hint, item in pairs)
    elif (
        hint is float
        and isinstance(value, int | float)
        and not isinstance(value, bool)
        and math.isfinite(value)
    ):
        return float(value)
    elif origin is dict and arguments[1] is float and isinstance(value, Mapping):
        return {key: _convert(float, item, f"{where}.{key}") for key, item in value.items()}
    elif origin is dict and isinstance(value, Mapping):
        if not _is_plain(value):
            raise ConfigError(
                f"{where} must hold nothing but numbers, text, true or false, lists and tables, "
                f"got {value!r}"
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
    """Whether JSON can store a value and give the same value back; tuples come back as lists."""
    if isinstance(value, Mapping):
        return all(isinstance(key, str) and _is_plain(item) for key, item in value.items())
    if isinstance(value, list | tuple):
        return all(map(_is_plain, value))
    return (
        value is None
        or isinstance(value, str | int)
        or (isinstance(value, float) and math.isfinite(value))
    )


def _in_words(hint: Any, *, plural: bool = False) -> str:
    """The words of a message for a type, such as "a whole number", or "whole numbers"."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (types.UnionType, typing.Union):
        return " or ".join(dict.fromkeys(_in_words(option, plural=plural) for option in arguments))
    if origin is tuple:
        items = f"{len(arguments)} values"
        if arguments[-1] is Ellipsis:
            items = _in_words(arguments[0], plural=True)
        return f"{'lists' if plural else 'a list'} of {items}"
    plain = {
        int: ("a whole number", "whole numbers"),
        float: ("a number", "numbers"),
        str: ("text", "texts"),
        bool: ("true or false", "true or false"),
        types.NoneType: ("none", "none"),
    }
    return plain.get(hint, ("a table", "tables"))[plural]
