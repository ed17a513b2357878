"""What does the folder of the trials hold, and do the trials fit it?

OUT/rows.jsonl   one entry for each trial that is finished     OUT/runs/ROW/seed-N   the run folders
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import torch

from zeroi2v.config import Recipe
from zeroi2v.data.datasets import VideoDataset
from zeroi2v.engine.spare import check_spared
from zeroi2v.errors import ConfigError, DatasetError, ZeroI2VError
from zeroi2v.experiments.trial import Trial, data_facts
from zeroi2v.files import keep_json_lines, read_json_lines, require_no_file
from zeroi2v.method.strategies import STRATEGIES, strategy_with
from zeroi2v.models.build import build_model
from zeroi2v.recipes import RECIPE_FILE, from_dict, read_run_recipe, saved_tables, to_dict

ROWS_FILE: Final = "rows.jsonl"


def open_folder(out: Path) -> list[dict[str, Any]]:
    """The entries of the finished trials. A line that a crash cut short is removed."""
    rows = out / ROWS_FILE
    entries = read_json_lines(rows)
    rows.touch()
    keep_json_lines(rows, len(entries))
    return entries


def check_trials(trials: Sequence[Trial], dataset: VideoDataset, out: Path) -> None:
    """Check that the trials can be trained, and that they fit the folder. Nothing is written.

    ConfigError or DatasetError names the trial or setting that does not fit.
    """
    if not dataset.val:
        raise DatasetError(
            f"{dataset.source}: a comparison needs videos to validate on; add a split val"
        )
    require_no_file(out)
    is_own = (out / ROWS_FILE).is_file()
    if out.exists() and not is_own and any(out.iterdir()):
        raise ConfigError(f"{out}: already there and not from a comparison; choose another --out")
    entries = read_json_lines(out / ROWS_FILE)
    facts = data_facts(dataset)
    if any(entry["data"] != facts for entry in entries):
        raise ConfigError(f"{out}: its rows were trained on other videos; choose another --out")
    _check_settings(trials, entries, out)
    for trial in {trial.row: trial for trial in trials}.values():
        _check_row(trial, dataset)


def _check_settings(
    trials: Sequence[Trial], entries: Sequence[Mapping[str, Any]], out: Path
) -> None:
    """ConfigError names a trial that is finished, or begun, with other settings."""
    recipes = {(entry["row"], entry["seed"]): entry["recipe"] for entry in entries}
    for trial in trials:
        tables = recipes.get((trial.row, trial.seed))
        before = from_dict(Recipe, saved_tables(tables)) if tables else None
        begun = out / trial.folder
        if before is None and (begun / RECIPE_FILE).is_file():
            before = read_run_recipe(begun)
        if before and (changed := _difference(_meant(before), _meant(trial.recipe))):
            raise ConfigError(
                f"{out}: {trial} was begun with {changed}; "
                "use the earlier settings, or choose another --out"
            )


def _check_row(trial: Trial, dataset: VideoDataset) -> None:
    """ConfigError names the row whose model cannot be built, or cannot be trained as it says."""
    config = dataclasses.replace(trial.recipe.model, pretrained=False, weights=None)
    try:
        with torch.device("meta"):
            model = build_model(config, labels=dataset.classes, clip=trial.recipe.clip)
        check_spared(model.plan, trial.recipe.train)
    except ZeroI2VError as error:
        raise ConfigError(f"row {trial.row}: {error}") from error


def _meant(recipe: Recipe) -> dict[str, Any]:
    """The tables of a recipe, with the dropouts that its strategy has where the recipe says none.

    So it does not matter whether a dropout is the default of the strategy or set to this default.
    """
    tables, model = to_dict(recipe), recipe.model
    if model.strategy in STRATEGIES:
        strategy = strategy_with(model.strategy, model.strategy_rules)
        for name in ("adapter_dropout", "classifier_dropout", "drop_path"):
            if tables["model"][name] is None:
                tables["model"][name] = getattr(strategy, name)
    return tables


def _difference(
    before: Mapping[str, Mapping[str, Any]], now: Mapping[str, Mapping[str, Any]]
) -> str:
    """The settings that differ, as text; '' if none."""
    return ", ".join(
        f"{table}.{name} = {value!r}, not {now[table][name]!r}"
        for table, settings in before.items()
        for name, value in settings.items()
        if value != now[table][name]
    )
