"""What does `zeroi2v cost` show? A model's costs, or a table of the paper with ours beside it: one JSON value, and lines of text."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import torch

from zeroi2v.config import Recipe
from zeroi2v.errors import ConfigError, MergeError
from zeroi2v.measure.cost import cost
from zeroi2v.measure.memory import activation_memory
from zeroi2v.measure.paper_tables import COSTS, TABLES, Row, counted
from zeroi2v.models.build import build_model
from zeroi2v.models.loading import load
from zeroi2v.models.spec import numbered_labels
from zeroi2v.models.video import VideoClassifier
from zeroi2v.recipes import changed, full_name, override

Shown = tuple[Any, Iterable[str]]
CLASSES: Final = 400  # of a model that is not saved, where none are named: Kinetics-400's


def model_costs(
    saved: str | None,
    settings: Mapping[str, object],
    assignments: Sequence[str],
    *,
    num_classes: int | None,
) -> Shown:
    """The costs of a saved model, or of a model that settings describe: adapted, and merged.

    `settings` have values, `assignments` are `--set key=value` texts. The costs of the merged model
    are left out for a model that cannot be merged.
    """
    recipe = override(changed(Recipe(), settings), assignments)
    keys = (assignment.partition("=")[0].strip() for assignment in assignments)
    given = [*settings, *map(full_name, keys)]
    if saved is None:
        for name in given:
            if not name.startswith(("model.", "clip.", "views.")):
                raise ConfigError(
                    f"--set {name}: only settings of [model], [clip] and [views] change what is counted"
                )
        config = dataclasses.replace(
            recipe.model, pretrained=False, weights=None
        )  # weights cost alike, whatever they are
        with torch.device("meta"):
            labels = numbered_labels(num_classes or CLASSES)
            model = build_model(config, labels=labels, clip=recipe.clip)
        views = recipe.views
    else:
        if num_classes is not None or not all(name.startswith("views.") for name in given):
            raise ConfigError(
                f"{Path(saved)}: a saved model says itself what it is; give clips and crops alone"
            )
        model = load(saved)
        names = [name.removeprefix("views.") for name in given]
        own_views = {name: getattr(recipe.views, name) for name in names}
        views = dataclasses.replace(model.views, **own_views)
    kinds, reason = {"merged" if model.spec.merged else "adapted": model}, ""
    if not model.spec.merged:
        try:
            kinds["merged"] = model.eval().merge()
        except MergeError as error:
            reason = str(error)
    views_count = views.clips * views.crops
    value: dict[str, Any] = {
        "tower": model.spec.model.tower,
        "strategy": model.spec.model.strategy,
        "views": f"{model.frames}x{views.crops}x{views.clips}",
        "image_size": model.image_size,
        "classes": len(model.labels),
        **{kind: _figures(one, views_count) for kind, one in kinds.items()},
    }
    return value, _model_lines(value, list(kinds), views_count, reason)


def _figures(model: VideoClassifier, views: int) -> dict[str, float]:
    """The figures of one model. A merged model is not trained any more."""
    found, memory = cost(model), activation_memory(model)
    figures = {
        "params": found.params,
        "new_params": found.new_params,
        "gmacs_per_view": found.gmacs,
        "gmacs": views * found.gmacs,
        "extra_gmacs": views * found.extra_gmacs,
        "inference_memory": memory.inference,
    }
    if not model.spec.merged:
        figures |= {"trainable_params": found.trainable_params, "training_memory": memory.training}
    return figures


UNITS = {  # figure -> how it is called, what it is divided by, its unit
    "params": ("parameters", 1e6, "M"),
    "trainable_params": ("that train", 1e6, "M"),
    "new_params": ("beyond tower and classifier", 1e6, "M"),
    "gmacs_per_view": ("multiply-adds of a view", 1, "G"),
    "gmacs": ("of all views", 1, "G"),
    "extra_gmacs": ("beyond the tower", 1, "G"),
    "inference_memory": ("peak memory, inference", 2**20, "MiB"),
    "training_memory": ("peak memory, training", 2**20, "MiB"),
}


def _model_lines(value: dict[str, Any], kinds: list[str], views: int, reason: str) -> Iterator[str]:
    yield f"{value['tower']}, strategy {value['strategy']}, {value['image_size']} pixels, {value['classes']} classes"
    yield f"{value['views']} (frames x crops x clips): {views} view{'s' if views > 1 else ''}"
    yield " " * 30 + "".join(f"{kind:>16}" for kind in kinds)
    for name, (text, unit, sign) in UNITS.items():
        cells = [
            f"{value[kind][name] / unit:.2f} {sign}" if name in value[kind] else "-"
            for kind in kinds
        ]
        yield f"{text:30}" + "".join(f"{cell:>16}" for cell in cells)
    yield "Memory is of one clip, beyond the weights, estimated: docs/costs.md."
    if reason:
        yield reason


def compare_table(number: int) -> Shown:
    """A table of the paper, each column that we count twice: as printed, and ours."""
    table = TABLES[number]
    rows = [_entry(row, table.columns) for row in table.rows]
    wide = [f"{column}{' / ours' if column in COSTS else ''}" for column in table.columns]

    def lines() -> Iterator[str]:
        yield f"Table {number}: {table.title}"
        cells = [
            [_cell(name, figure, row["counted"]) for name, figure in row["printed"].items()]
            for row in rows
        ]
        widths = [max(map(len, column)) for column in zip(wide, *cells, strict=True)]
        yield f"{'':20} {'views':8}" + "".join(
            f"  {name:>{width}}" for name, width in zip(wide, widths, strict=True)
        )
        for row, line in zip(table.rows, cells, strict=True):
            figures = (f"  {cell:>{width}}" for cell, width in zip(line, widths, strict=True))
            yield f"{row.method:20} {row.views:8}" + "".join(figures)
            for text in filter(None, (*map(": ".join, row.exceptions.items()), row.note)):
                yield f"    {text}"
        yield "Without ours: quoted from the paper."

    return {"table": number, "title": table.title, "rows": rows}, lines()


def _entry(row: Row, columns: tuple[str, ...]) -> dict[str, Any]:
    found = counted(row)
    return {
        "method": row.method,
        "views": row.views,
        "printed": dict(zip(columns, row.printed, strict=True)),
        "counted": {column: found[column] for column in columns if column in found} or None,
        "exceptions": dict(row.exceptions),
        "note": row.note,
    }


def _cell(column: str, printed: float | None, found: dict[str, float] | None) -> str:
    text = "-" if printed is None else f"{printed:g}"
    return f"{text} / {found[column]:.1f}" if found and column in found else text
