"""What do temporal heads add? The quickstart with several seeds, beside the same training with every head spatial.

    python benchmarks/motion.py --seeds 0 1 2 --work FOLDER

Writes benchmarks/results/motion.json after each seed, in place of an earlier run of that seed. A seed draws new videos and a new
training.
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
from zeroi2v.inference.evaluate import evaluate
from zeroi2v.log import Log
from zeroi2v.machine import provenance, worker_count
from zeroi2v.models.loading import load

RESULT = Path(__file__).parent / "results" / "motion.json"


def one_seed(seed: int, work: Path, log: Log) -> dict[str, Any]:
    """The quickstart of a seed, and its control."""
    result = quickstart.run(work / f"seed-{seed}", seed=seed, log=log)
    dataset = open_dataset(work / f"seed-{seed}" / "videos")
    recipe = quickstart.recipe(seed)
    spatial = dataclasses.replace(recipe, model=dataclasses.replace(recipe.model, heads=()))
    train(spatial, dataset, work / f"seed-{seed}" / "spatial", log=log)
    found = evaluate(
        load(work / f"seed-{seed}" / "spatial"),
        dataset.splits["test"],
        workers=worker_count(-1),
        log=log,
    )
    kept = ("videos", "seconds", "merge", "cost", "latency")
    return {
        "seed": seed,
        "probe": result["probe"],
        "spatial_heads_only": quickstart.accuracy(found, dataset.classes),
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
        run = one_seed(seed, arguments.work, log)
        others = json.loads(RESULT.read_text(encoding="utf-8"))["runs"] if RESULT.exists() else []
        runs = sorted(
            [run, *(other for other in others if other["seed"] != seed)], key=itemgetter("seed")
        )
        RESULT.write_text(
            json.dumps(
                {**provenance(), "seeds": [one["seed"] for one in runs], "runs": runs}, indent=1
            )
            + "\n",
            encoding="utf-8",
        )
        for name in ("probe", "spatial_heads_only", "zeroi2v"):
            log.say(f"seed {seed}: {name} {run[name]['top1']:.1%}")


if __name__ == "__main__":
    main()
