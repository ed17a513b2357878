"""What do temporal heads add? The quickstart, beside the same training with every head spatial.

    python benchmarks/motion.py --seeds 0 1 2 --work FOLDER

A seed draws new videos and a new training. After each seed the script writes
benchmarks/results/motion.json, where the new run of a seed replaces an earlier run of that seed.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
from operator import itemgetter
from pathlib import Path
from typing import Any

from zeroi2v.data.datasets import open_dataset
from zeroi2v.engine.run import train
from zeroi2v.experiments import quickstart
from zeroi2v.files import write_json
from zeroi2v.inference.evaluate import evaluate
from zeroi2v.log import Log
from zeroi2v.machine import provenance, worker_count
from zeroi2v.models.loading import load

RESULT = Path(__file__).parent / "results" / "motion.json"


def run_seed(seed: int, work: Path, log: Log) -> dict[str, Any]:
    """The figures of the quickstart with a seed, and of its training with every head spatial."""
    result = quickstart.run(work / f"seed-{seed}", seed=seed, log=log)
    dataset = open_dataset(work / f"seed-{seed}" / "videos")
    recipe = quickstart.recipe(seed)
    spatial = dataclasses.replace(recipe, model=dataclasses.replace(recipe.model, heads=()))
    train(spatial, dataset, work / f"seed-{seed}" / "spatial", log=log)
    evaluation = evaluate(
        load(work / f"seed-{seed}" / "spatial"),
        dataset.splits["test"],
        workers=worker_count(-1),
        log=log,
    )
    kept = ("videos", "seconds", "merge", "cost", "latency")
    return {
        "seed": seed,
        "probe": result["probe"],
        "spatial_heads_only": quickstart.accuracy(evaluation, dataset.classes),
        "zeroi2v": result["adapted"],
        **{key: result[key] for key in kept},
        **provenance(),
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--work", type=Path, required=True, help="folder for videos and runs")
    arguments = parser.parse_args()
    log = Log()
    for seed in arguments.seeds:
        run = run_seed(seed, arguments.work, log)
        others = json.loads(RESULT.read_text(encoding="utf-8"))["runs"] if RESULT.exists() else []
        runs = sorted(
            [run, *(other for other in others if other["seed"] != seed)], key=itemgetter("seed")
        )
        seeds = [run["seed"] for run in runs]
        write_json(RESULT, {**provenance(), "seeds": seeds, "runs": runs})
        for name in ("probe", "spatial_heads_only", "zeroi2v"):
            log.say(f"seed {seed}: {name} {run[name]['top1']:.1%}")


if __name__ == "__main__":
    main()
