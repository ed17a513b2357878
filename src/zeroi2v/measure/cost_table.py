"""What does `zeroi2v cost` show? The costs of a model, or a table of the paper with our counts."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, TypeAlias

import torch

from zeroi2v.config import Recipe, ViewsConfig
from zeroi2v.errors import ConfigError, MergeError, how_many
from zeroi2v.measure.cost import cost
from zeroi2v.measure.memory import TrainingMode, inference_memory, training_memory
from zeroi2v.measure.paper_tables import COSTS, TABLES, Row, counted
from zeroi2v.models.build import build_model
from zeroi2v.models.loading import load
from zeroi2v.models.spec import numbered_labels
from zeroi2v.models.video import VideoClassifier
from zeroi2v.recipes import full_name, override

Shown: TypeAlias = tuple[dict[str, Any], Iterable[str]]  # one JSON value, and lines of text
CLASSES: Final = 400  # of a model that is not saved, unless the user names a number: Kinetics-400's
UNITS: Final = {  # figure -> its name in the text, what the figure is divided by, its unit
    "params": ("parameters", 1e6, "M"),
    "trainable_params": ("that train", 1e6, "M"),
    "new_params": ("beyond tower and classifier", 1e6, "M"),
    "gmacs_per_view": ("multiply-adds of a view", 1, "G"),
    "gmacs": ("of all views", 1, "G"),
    "extra_gmacs": ("beyond tower and classifier", 1, "G"),
    "inference_memory": ("peak memory, inference", 2**20, "MiB"),
    "training_memory": ("peak memory, training", 2**20, "MiB"),
}


def model_costs(
    saved: str | None,
    settings: Mapping[str, object],
    assignments: Sequence[str],
    *,
    num_classes: int | None,
    training_mode: TrainingMode,
) -> Shown:
    """The costs of a saved model, or of a model that settings describe: adapted, and merged.

    `settings` have values, `assignments` are `--set key=value` texts. A training step is estimated
    in `training_mode`. ConfigError names a setting that changes nothing of what is counted.
    """
    recipe = override(Recipe(), assignments, settings)
    keys = (assignment.partition("=")[0].strip() for assignment in assignments)
    names = [*settings, *map(full_name, keys)]
    if saved is None:
        model, views = _described_model(recipe, names, num_classes)
    else:
        model, views = _saved_model(saved, recipe, names, num_classes)
    models, reason = {"merged" if model.spec.merged else "adapted": model}, ""
    if not model.spec.merged:
        try:
            models["merged"] = model.eval().merge()
        except MergeError as error:
            reason = str(error)
    count = views.clips * views.crops
    value: dict[str, Any] = {
        "tower": model.spec.model.tower,
        "strategy": model.spec.model.strategy,
        "views": f"{model.frames}x{views.crops}x{views.clips}",
        "image_size": model.image_size,
        "classes": len(model.labels),
    }
    for form in models:
        value[form] = _figures(models[form], count, training_mode)
    return value, _model_lines(value, list(models), count, reason)


def _described_model(
    recipe: Recipe, names: Sequence[str], num_classes: int | None
) -> tuple[VideoClassifier, ViewsConfig]:
    """A model without storage, made as the recipe says, and its views.

    `names` are those of the settings that are given.
    """
    for name in names:
        if not name.startswith(("model.", "clip.", "views.")):
            raise ConfigError(
                f"--set {name}: only settings of [model], [clip] and [views] change the counts; "
                "leave the other settings out"
            )
    # The values of the weights change no cost: none are fetched.
    config = dataclasses.replace(recipe.model, pretrained=False, weights=None)
    labels = numbered_labels(num_classes or CLASSES)
    with torch.device("meta"):
        return build_model(config, labels=labels, clip=recipe.clip), recipe.views


def _saved_model(
    saved: str, recipe: Recipe, names: Sequence[str], num_classes: int | None
) -> tuple[VideoClassifier, ViewsConfig]:
    """A saved model, and its views with the values that `recipe` has for the settings `names`."""
    if num_classes is not None or not all(name.startswith("views.") for name in names):
        raise ConfigError(
            f"{Path(saved)}: the settings of a saved model cannot be changed, apart from "
            "views.clips and views.crops; leave the other options out"
        )
    model = load(saved)
    fields = [name.removeprefix("views.") for name in names]
    given = {field: getattr(recipe.views, field) for field in fields}
    return model, dataclasses.replace(model.views, **given)


def _figures(model: VideoClassifier, views: int, training_mode: TrainingMode) -> dict[str, float]:
    """The figures of a model. A merged model is not trained, so it has no training figures."""
    costs = cost(model)
    figures = {
        "params": costs.params,
        "new_params": costs.new_params,
        "gmacs_per_view": costs.gmacs,
        "gmacs": views * costs.gmacs,
        "extra_gmacs": views * costs.extra_gmacs,
        "inference_memory": inference_memory(model),
    }
    if not model.spec.merged:
        figures["trainable_params"] = costs.trainable_params
        figures["training_memory"] = training_memory(model, training_mode)
    return figures


def _model_lines(
    value: Mapping[str, Any], forms: Sequence[str], views: int, reason: str
) -> Iterator[str]:
    """A line for each figure, with a column for each form of the model: adapted, merged."""
    yield (
        f"{value['tower']}, strategy {value['strategy']}, {value['image_size']} pixels, "
        f"{how_many(value['classes'], 'class', 'classes')}"
    )
    yield f"{value['views']} (frames x crops x clips): {how_many(views, 'view')}"
    yield " " * 30 + "".join(f"{form:>16}" for form in forms)
    for name, (text, divisor, unit) in UNITS.items():
        figures = [value[form].get(name) for form in forms]
        cells = ["-" if figure is None else f"{figure / divisor:.2f} {unit}" for figure in figures]
        yield f"{text:30}" + "".join(f"{cell:>16}" for cell in cells)
    yield "Memory is estimated, for one clip and beyond the weights: docs/costs.md."
    if reason:
        yield reason


def compare_table(number: int) -> Shown:
    """A table of the paper by its number. A column that we count has two figures: printed, ours."""
    table = TABLES[number]
    entries = [_table_entry(row, table.columns) for row in table.rows]
    value = {"table": number, "title": table.title, "rows": entries}
    return value, _table_lines(number, entries)


def _table_entry(row: Row, columns: Sequence[str]) -> dict[str, Any]:
    ours = counted(row)
    return {
        "method": row.method,
        "views": row.views,
        "printed": dict(zip(columns, row.printed, strict=True)),
        "counted": {column: ours[column] for column in columns if column in ours} or None,
        "exceptions": dict(row.exceptions),
        "note": row.note,
    }


def _table_lines(number: int, entries: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    table = TABLES[number]
    heads = [f"{column}{' / ours' if column in COSTS else ''}" for column in table.columns]
    cells = [
        [_cell(column, figure, entry["counted"]) for column, figure in entry["printed"].items()]
        for entry in entries
    ]
    widths = [max(map(len, column)) for column in zip(heads, *cells, strict=True)]

    def columns(texts: Sequence[str]) -> str:
        return "".join(f"  {text:>{width}}" for text, width in zip(texts, widths, strict=True))

    yield f"Table {number}: {table.title}"
    yield f"{'':20} {'views':8}{columns(heads)}"
    for row, line in zip(table.rows, cells, strict=True):
        yield f"{row.method:20} {row.views:8}{columns(line)}"
        for text in filter(None, (*map(": ".join, row.exceptions.items()), row.note)):
            yield f"    {text}"
    yield "A row without our figures is quoted from the paper."


def _cell(column: str, printed: float | None, ours: Mapping[str, float] | None) -> str:
    text = "-" if printed is None else f"{printed:g}"
    return f"{text} / {ours[column]:.1f}" if ours and column in ours else text
