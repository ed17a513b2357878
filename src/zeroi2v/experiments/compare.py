"""Which settings are best on these videos? Rows of settings, trained under one budget.

The budget is the recipe that all rows share. A row is a name and the settings that the row changes
in the budget. A trial is one training: a row with a seed.

OUT/compare.json, OUT/compare.html   the table so far, beside the files of trial_folder.py
"""

from __future__ import annotations

import json
import re
import statistics
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from zeroi2v.config import Recipe
from zeroi2v.data.datasets import VideoDataset
from zeroi2v.errors import ConfigError, ZeroI2VError
from zeroi2v.experiments.trial import Trial
from zeroi2v.experiments.trials import run_trials
from zeroi2v.files import write_json, write_text
from zeroi2v.inference.evaluate import FIGURE_NAMES
from zeroi2v.log import Log
from zeroi2v.machine import provenance
from zeroi2v.method.strategies import STRATEGIES, Strategy, strategy_with
from zeroi2v.models.peers import settings_to_reset
from zeroi2v.pages.compare import compare_page
from zeroi2v.recipes import assigned_names, changed, override, to_dict

DEFAULT_STRATEGIES: Final = ("zeroi2v", "lora", "linear_probe")


@dataclass(frozen=True)
class Row:
    """A row of the table: a name, and the settings that the row changes in the budget."""

    name: str
    settings: tuple[str, ...]  # key=value, as --set takes them


def strategy_row(name: str, budget: Recipe, given: Collection[str] = ()) -> Row:
    """The row of a strategy, with the settings that belong to it (`completed`)."""
    return completed(Row(name, (f"strategy={name}",)), budget, given)


def completed(row: Row, budget: Recipe, given: Collection[str] = ()) -> Row:
    """The row, with more settings where its strategy needs them.

    - A setting of the budget that means nothing for the strategy, such as the layout of temporal
      heads for a peer, gets its default again.
    - A strategy that needs a temporal embedding to tell the order of frames trains the embedding.
    - A peer trains as its authors train: learning rate in proportion to the batch, weight decay,
      warm-up, dropout and drop path. Where the budget gives such a setting, the value of the budget
      counts. `given` holds the `table.name` of the settings that a user gave; a setting with
      another value than its default counts as given too.
    - The row of a peer repeats the settings of adapters that the budget gives, because the authors
      have others.
    """
    recipe = _changed_budget(row, budget)
    model = recipe.model
    if model.strategy not in STRATEGIES:
        return row
    strategy = strategy_with(model.strategy, model.strategy_rules)
    own = assigned_names(row.settings)
    resets = settings_to_reset(model, model.strategy)
    needed: dict[str, Any] = {f"model.{name}": value for name, value in resets.items()}
    if strategy.needs_temporal_embedding and model.temporal_embedding == "zero":
        needed["model.temporal_embedding"] = "trained"
    if strategy.peer is not None:
        for name in ("adapter_ratio", "adapter_scale", "adapter_dropout"):
            value = getattr(model, name)
            if value is not None and name not in resets:
                needed[f"model.{name}"] = value
    plain, defaults = to_dict(recipe), to_dict(Recipe())
    for name, value in _authors_settings(strategy, recipe.train.batch_size).items():
        table, _, setting = name.partition(".")
        value_here = plain[table][setting]
        is_given = name in given or value_here != defaults[table][setting]
        needed[name] = value_here if is_given and value_here is not None else value
    return Row(row.name, (*row.settings, *_assignments(needed, own)))


def _authors_settings(strategy: Strategy, batch_size: int) -> dict[str, float]:
    """The settings with which the authors of a peer train on batches of this size, by full name."""
    training = strategy.training
    if training is None:
        return {}
    rate = training.learning_rate * batch_size / training.clips
    settings = {
        "train.learning_rate": float(f"{rate:.6g}"),
        "train.weight_decay": training.weight_decay,
        "train.warmup_epochs": training.warmup_epochs,
        "train.warmup_start": training.warmup_start,
        "model.classifier_dropout": strategy.classifier_dropout,
        "model.adapter_dropout": strategy.adapter_dropout or None,
        "model.drop_path": strategy.drop_path,
    }
    return {name: value for name, value in settings.items() if value is not None}


def _assignments(settings: Mapping[str, Any], own: Collection[str]) -> list[str]:
    """The settings as `key=value` texts, without those that a row sets itself."""
    return [
        f"{name.partition('.')[2]}={'none' if value is None else value}"
        for name, value in settings.items()
        if name not in own
    ]


def rows_asked(
    strategies: Sequence[str],
    own_rows: Sequence[Sequence[str]],
    budget: Recipe,
    given: Collection[str] = (),
) -> list[Row]:
    """The rows of `strategies`, then the rows of `own_rows`, each given as a name and settings.

    If the user names neither strategies nor rows, the rows are those of `DEFAULT_STRATEGIES`. All
    rows are `completed`.
    """
    names = strategies or (() if own_rows else DEFAULT_STRATEGIES)
    rows = [strategy_row(name, budget, given) for name in names]
    own = [Row(name, tuple(settings)) for name, *settings in own_rows]
    return [*rows, *(completed(row, budget, given) for row in own)]


def compare(
    rows: Sequence[Row],
    budget: Recipe,
    seeds: Sequence[int],
    dataset: VideoDataset,
    out: Path,
    *,
    log: Log,
) -> dict[str, Any]:
    """Train every row with every seed, one training after the other.

    Returns the content of compare.json. A finished training in `out` is not repeated. ConfigError
    or DatasetError comes before anything is trained. A training that fails costs no other training.
    ZeroI2VError if no training finishes.
    """
    trials = plan_trials(rows, budget, seeds)

    def write(entries: Sequence[Mapping[str, Any]], failed: Mapping[str, str]) -> dict[str, Any]:
        result = {
            **provenance(),
            "machines": _machines(entries),
            "seeds": list(seeds),
            "trainings": {"finished": len(entries), "planned": len(trials)},
            **_figure(budget),
            "failed": dict(failed),
            "left_out": {
                path: reason for entry in entries for path, reason in entry["left_out"].items()
            },
            "videos": {
                "train": len(dataset.train),
                "val": len(dataset.val),
                "judged": min(entry["judged"] for entry in entries),
            },
            "classes": len(dataset.classes),
            "budget": to_dict(budget),
            "rows": summarise_rows(rows, entries),
        }
        write_json(out / "compare.json", result)
        write_text(out / "compare.html", compare_page(result))
        return result

    entries, failed = run_trials(trials, dataset, out, on_progress=write, log=log)
    if not entries:
        raise ZeroI2VError(f"no training finished: {'; '.join(failed.values())}")
    return write(entries, failed)


def _machines(entries: Sequence[Mapping[str, Any]]) -> list[Any]:
    """Every machine that trained an entry, once."""
    texts = dict.fromkeys(json.dumps(entry["machine"]) for entry in entries)
    return [json.loads(text) for text in texts]


def _figure(budget: Recipe) -> dict[str, str]:
    """The figure that judges the rows, and its name for people."""
    figure = "mAP" if budget.data.multi_label else "top1"
    return {"figure": figure, "figure_name": FIGURE_NAMES[figure]}


def plan_trials(rows: Sequence[Row], budget: Recipe, seeds: Sequence[int]) -> list[Trial]:
    """Every row with every seed: all rows with the first seed, then all with the second ...

    A row is judged by its last epoch, and only this epoch is validated: no row may choose its best
    epoch on the videos that judge the rows. ConfigError names a row that is impossible.
    """
    if budget.train.patience:
        raise ConfigError(
            f"train.patience must be 0 in a comparison, got {budget.train.patience}: "
            "all rows train equally long"
        )
    for kind, given in (("row", [row.name for row in rows]), ("seed", list(map(str, seeds)))):
        if not given or len(given) != len(set(given)):
            raise ConfigError(
                f"a comparison needs at least one {kind} and no {kind} twice, "
                f"got {', '.join(given) or 'none'}"
            )
    recipes = {row.name: _recipe_of(row, budget) for row in rows}
    return [
        Trial(
            name,
            seed,
            changed(recipe, {"train.seed": seed, "train.validate_every": recipe.train.epochs}),
        )
        for seed in seeds
        for name, recipe in recipes.items()
    ]


def _recipe_of(row: Row, budget: Recipe) -> Recipe:
    """The budget with the settings of a row. ConfigError if a comparison forbids such settings."""
    recipe = _changed_budget(row, budget)
    if recipe.train.seed != budget.train.seed:
        raise ConfigError(
            f"row {row.name}: train.seed is the same for all rows; set it with --seeds"
        )
    if recipe.data != budget.data:
        raise ConfigError(f"row {row.name}: [data] is the same for all rows; set it with --set")
    model = recipe.model
    strategy = STRATEGIES.get(model.strategy)
    if strategy and strategy.needs_temporal_embedding and model.temporal_embedding == "zero":
        raise ConfigError(
            f"row {row.name}: without a temporal embedding, strategy {model.strategy} is blind to "
            "the order of frames; give the row temporal_embedding=trained"
        )
    return recipe


def _changed_budget(row: Row, budget: Recipe) -> Recipe:
    """The budget with the settings of a row. ConfigError names the row whose settings are wrong."""
    if not re.fullmatch(r"\w[\w.-]*", row.name):
        raise ConfigError(f"row {row.name!r}: choose a name of letters, digits, '_', '-' and '.'")
    try:
        return override(budget, row.settings)
    except ConfigError as error:
        raise ConfigError(f"row {row.name}: {error}") from error


def summarise_rows(
    rows: Sequence[Row], entries: Sequence[Mapping[str, Any]]
) -> list[dict[str, Any]]:
    """For each row with an entry: the score of each seed, and one value for each other figure."""
    summaries = []
    for row in rows:
        own = [entry for entry in entries if entry["row"] == row.name]
        if not own:
            continue
        scores = [entry["score"] for entry in own]
        summary: dict[str, Any] = {
            "row": row.name,
            "settings": list(row.settings),
            "seeds": [entry["seed"] for entry in own],
            "scores": scores,
            "mean_score": statistics.mean(scores),
            "trainable_params": own[0]["trainable_params"],
            "seconds": statistics.mean(entry["seconds"] for entry in own),
            "peak_memory": max(entry["peak_memory"] for entry in own),
        }
        latencies = [entry["latency"] for entry in own if "latency" in entry]
        if latencies:
            for key in ("adapted_ms", "merged_ms", "adapted_over_tower", "merged_over_tower"):
                values = [latency[key] for latency in latencies]
                summary[key] = None if None in values else statistics.median(values)
        summaries.append(summary)
    return summaries
