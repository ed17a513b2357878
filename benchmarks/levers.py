"""What do the settings that make a training step cheaper cost in accuracy?

    python benchmarks/levers.py --work FOLDER         # about 15 minutes on two free cores

Each row is a training like the quickstart's but with 8 frames: first unchanged, then with one
setting changed. Two trainings run at a time, each on a thread of its own. The script writes
benchmarks/results/levers.json. After an interruption, call the script again with the same FOLDER to
go on. The seconds are those of two trainings side by side, decoding included;
benchmarks/training_step.py measures a single step.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from zeroi2v.data.datasets import open_dataset
from zeroi2v.data.synthetic import write_motion_videos
from zeroi2v.experiments.compare import Row, plan_trials
from zeroi2v.experiments.quickstart import recipe
from zeroi2v.experiments.trials import run_trials
from zeroi2v.files import write_json
from zeroi2v.log import Log
from zeroi2v.machine import provenance
from zeroi2v.recipes import override

BUDGET = (  # settings that change the recipe of the quickstart, for all rows
    'heads=[[], "-3*6, 3*6", [], [], [], "-3*6, 3*6"]',
    "adapter_ratio=none",
    "clip.frames=8",
    "train.epochs=4",
    "train.batch_size=32",
    "train.learning_rate=2e-3",
    "train.workers=0",
    "train.save_every_minutes=0",
)

RESULT = Path(__file__).parent / "results" / "levers.json"
VIDEOS = {"train": 1200, "val": 800}
ROWS = (
    Row("as-it-is", ()),
    Row("half-of-the-patches", ("train.token_share=0.5",)),
    Row("upper-three-blocks", ("model.adapted_blocks=3",)),
    Row(
        "upper-three-blocks-heads-too",
        ("model.adapted_blocks=3", 'heads=[[], [], [], "-3*6, 3*6", [], "-3*6, 3*6"]'),
    ),
    Row("few-frames-first", ("train.few_frames=4", "train.few_frames_epochs=2")),
)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--seeds",
        type=int,
        nargs="+",
        default=[0, 1],
        help="seeds of the trainings; the videos are the same",
    )
    parser.add_argument("--work", type=Path, required=True, help="folder for videos and runs")
    arguments = parser.parse_args()
    videos = arguments.work / "videos"
    if not videos.exists():
        for _ in write_motion_videos(videos, VIDEOS, seed=0, workers=1):
            pass
    budget = override(recipe(0), BUDGET)
    trials = plan_trials(ROWS, budget, arguments.seeds)
    entries, failed = run_trials(
        trials,
        open_dataset(videos),
        arguments.work / "runs",
        at_once=2,
        threads=1,
        latency=False,
        log=Log(),
    )
    if failed:
        raise SystemExit("; ".join(failed.values()))
    rows = {
        row.name: {
            "settings": row.settings,
            "top1": [entry["score"] for entry in entries if entry["row"] == row.name],
            "seconds": [entry["seconds"] for entry in entries if entry["row"] == row.name],
        }
        for row in ROWS
    }
    result = {
        **provenance(),
        "seeds": arguments.seeds,
        "videos": VIDEOS,
        "epochs": budget.train.epochs,
        "rows": rows,
    }
    write_json(RESULT, result)


if __name__ == "__main__":
    main()
