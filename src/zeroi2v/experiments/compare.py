"""Which settings are best on these videos? Rows of settings, trained under one budget, in one table.

OUT/compare.json, OUT/compare.html   the table of what is finished; beside what analysis/trials.py writes
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
from zeroi2v.experiments.trials import Trial, run_trials
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
    """A line of the table: its name, and what it sets beside the budget, as `--set` takes it."""

    name: str
    settings: tuple[str, ...]


def strategy_row(name: str, budget: Recipe) -> Row:
    """The row of a strategy. That of a peer takes back what the budget says of temporal heads and more that has no meaning for it."""
    back = settings_to_reset(budget.model, name)
    words = [f"{setting}={'none' if value is None else value}" for setting, value in back.items()]
    return Row(name, (f"strategy={name}", *words))


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
    """Train every row with every seed into `out`, one after the other, and return what compare.json holds.

    What is finished there already is taken as it is. ConfigError or DatasetError before anything is trained; a training that fails
    costs no other, and ZeroI2VError is raised if none finishes.
    """
    trials = plan(rows, budget, seeds)
    figure = "mAP" if budget.data.multi_label else "top1"

    def write(entries: Sequence[Mapping[str, Any]], failed: Mapping[str, str]) -> dict[str, Any]:
        result = {
            **provenance(),
            "machines": [
                json.loads(one)
                for one in dict.fromkeys(json.dumps(entry["machine"]) for entry in entries)
            ],
            "seeds": list(seeds),
            "trainings": {"finished": len(entries), "planned": len(trials)},
            "figure": figure,
            "figure_name": FIGURE_NAMES[figure],
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
            "rows": table(rows, entries),
        }
        write_json(out / "compare.json", result)
        write_text(out / "compare.html", compare_page(result))
        return result

    entries, failed = run_trials(trials, dataset, out, each=write, log=log)
    if not entries:
        raise ZeroI2VError(f"no training finished: {'; '.join(failed.values())}")
    return write(entries, failed)


def plan(rows: Sequence[Row], budget: Recipe, seeds: Sequence[int]) -> list[Trial]:
    """Every row with every seed, all rows of the first seed first. ConfigError names a row that cannot be.

    A row is judged by its last epoch, the only one that is validated: none may choose its best on the videos that judge it.
    """
    if budget.train.patience:
        raise ConfigError(
            f"train.patience must be 0 in a comparison, got {budget.train.patience}: all rows train as long"
        )
    for kind, given in (("row", [row.name for row in rows]), ("seed", list(map(str, seeds)))):
        if not given or len(given) != len(set(given)):
            raise ConfigError(
                f"a comparison needs at least one {kind}, each once, got {', '.join(given) or 'none'}"
            )
    recipes = {}
    for row in rows:
        if not re.fullmatch(r"\w[\w.-]*", row.name):
            raise ConfigError(f"row {row.name!r}: a name is of letters, digits, '_', '-' and '.'")
        try:
            recipes[row.name] = override(budget, row.settings)
        except ConfigError as error:
            raise ConfigError(f"row {row.name}: {error}") from error
        if recipes[row.name].train.seed != budget.train.seed:
            raise ConfigError(
                f"row {row.name}: train.seed is for --seeds to say, the same for all rows"
            )
        if recipes[row.name].data != budget.data:
            raise ConfigError(f"row {row.name}: [data] is the same for all rows; set it with --set")
    return [
        Trial(
            name,
            seed,
            changed(recipe, {"train.seed": seed, "train.validate_every": recipe.train.epochs}),
        )
        for seed in seeds
        for name, recipe in recipes.items()
    ]


def table(rows: Sequence[Row], entries: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """One line for each row that has an entry: the score of each seed, means and medians of the rest."""
    lines = []
    for row in rows:
        own = [entry for entry in entries if entry["row"] == row.name]
        if not own:
            continue
        scores = [entry["score"] for entry in own]
        line: dict[str, Any] = {
            "row": row.name,
            "settings": list(row.settings),
            "seeds": [entry["seed"] for entry in own],
            "scores": scores,
            "mean_score": statistics.mean(scores),
            "trainable_params": own[0]["trainable_params"],
            "seconds": statistics.mean(entry["seconds"] for entry in own),
            "peak_memory": max(entry["peak_memory"] for entry in own),
        }
        series = [entry["latency"] for entry in own if "latency" in entry]
        for key in (
            ("adapted_ms", "merged_ms", "adapted_over_tower", "merged_over_tower") if series else ()
        ):
            values = [one[key] for one in series]
            line[key] = None if None in values else statistics.median(values)
        lines.append(line)
    return lines
