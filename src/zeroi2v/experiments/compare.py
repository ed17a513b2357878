"""Which settings are best on these videos? Rows of settings, trained under one budget.

The budget is the recipe that all rows share. A row is a name and the settings that the row changes
in the budget. A trial is one training: a row with a seed.

OUT/compare.json, OUT/compare.html   the table so far, beside the files of trial_folder.py
"""

from __future__ import annotations

import json
import re
import statistics
from collections.abc import Mapping, Sequence
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
from zeroi2v.models.peers import settings_to_reset
from zeroi2v.pages.compare import compare_page
from zeroi2v.recipes import changed, override, to_dict

DEFAULT_STRATEGIES: Final = ("zeroi2v", "lora", "linear_probe")


@dataclass(frozen=True)
class Row:
    """A row of the table: a name, and the settings that the row changes in the budget."""

    name: str
    settings: tuple[str, ...]  # key=value, as --set takes them


def strategy_row(name: str, budget: Recipe) -> Row:
    """The row of a strategy.

    Some settings mean nothing for a peer, such as the layout of temporal heads. Where the budget
    changes such a setting, the row of the peer sets it to its default again.
    """
    resets = settings_to_reset(budget.model, name).items()
    assignments = [f"{key}={'none' if value is None else value}" for key, value in resets]
    return Row(name, (f"strategy={name}", *assignments))


def rows_asked(
    strategies: Sequence[str], own_rows: Sequence[Sequence[str]], budget: Recipe
) -> list[Row]:
    """The rows of strategies, then the user's own rows: of each the name and its settings.

    If the user names neither, the rows are those of `DEFAULT_STRATEGIES`.
    """
    names = strategies or (() if own_rows else DEFAULT_STRATEGIES)
    rows = [strategy_row(name, budget) for name in names]
    return [*rows, *(Row(name, tuple(settings)) for name, *settings in own_rows)]


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
    """The budget with the settings of a row."""
    if not re.fullmatch(r"\w[\w.-]*", row.name):
        raise ConfigError(f"row {row.name!r}: choose a name of letters, digits, '_', '-' and '.'")
    try:
        recipe = override(budget, row.settings)
    except ConfigError as error:
        raise ConfigError(f"row {row.name}: {error}") from error
    if recipe.train.seed != budget.train.seed:
        raise ConfigError(
            f"row {row.name}: train.seed is the same for all rows; set it with --seeds"
        )
    if recipe.data != budget.data:
        raise ConfigError(f"row {row.name}: [data] is the same for all rows; set it with --set")
    return recipe


def summarise_rows(
    rows: Sequence[Row], entries: Sequence[Mapping[str, Any]]
) -> list[dict[str, Any]]:
    """For each row that has an entry: the score of each seed, and means and medians of the rest."""
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
