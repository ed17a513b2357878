"""What do the settings that make a training step cheaper cost in accuracy? On the motion videos, with the embedded tower.

    python benchmarks/levers.py --seeds 0 1 2 --work FOLDER         # about 25 minutes on two free cores

The quickstart's training on half of its videos, as it is and with one setting changed. Every seed draws new videos and a new training.
Writes benchmarks/results/levers.json after each run; what is in it already is not run again. Seconds are of the training steps, with
decoding beside them; they come from runs one after the other, so benchmarks/training_step.py says more of time.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from zeroi2v.analysis.benchmark import provenance
from zeroi2v.config import override
from zeroi2v.data.datasets import open_dataset
from zeroi2v.data.synthetic import write_motion_videos
from zeroi2v.engine.log import Log, read_json_lines
from zeroi2v.engine.train import LOG_FILE, train, worker_count
from zeroi2v.quickstart import recipe

RESULT = Path(__file__).parent / "results" / "levers.json"
VIDEOS = {"train": 1600, "val": 800}
ROWS = {  # name -> what is set beside the quickstart's recipe
    "nothing": [],
    "half of the patches": ["train.token_share=0.5"],
    "adapters in the upper three of six blocks": ["model.adapted_blocks=3"],
    "the same, with their temporal heads in these": [
        "model.adapted_blocks=3",
        'model.heads=[[], [], [], "-3*6, 3*6", [], "-3*6, 3*6"]',
    ],
    "half of the frames in the first half of the epochs": ["train.few_frames=4", "train.few_frames_epochs=2"],
}


def one_run(name: str, seed: int, work: Path, log: Log) -> dict[str, Any]:
    """Top-1 after the last epoch, and the seconds of all epochs' steps."""
    videos = work / f"videos-{seed}"
    if not videos.exists():
        for _ in write_motion_videos(videos, VIDEOS, seed=seed, workers=worker_count(-1)):
            pass
    settings = override(recipe(seed), [*ROWS[name], "train.validate_every=4"])
    run = train(settings, open_dataset(videos), work / f"{seed}-{list(ROWS).index(name)}", log=log)
    entries = read_json_lines(run.folder / LOG_FILE)
    return {"seed": seed, "top1": entries[-1]["top1"], "seconds": round(sum(one["seconds"] for one in entries), 1)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument(
        "--work", type=Path, required=True, help="folder for videos and runs, which must not be there yet"
    )
    arguments = parser.parse_args()
    rows: dict[str, list[dict[str, Any]]] = {}
    if RESULT.exists():
        rows = json.loads(RESULT.read_text(encoding="utf-8"))["rows"]
    for seed in arguments.seeds:
        for name in ROWS:
            done = rows.setdefault(name, [])
            if any(one["seed"] == seed for one in done):
                continue
            done.append(one_run(name, seed, arguments.work, Log()))
            seeds = sorted({one["seed"] for every in rows.values() for one in every})
            result = {**provenance(), "seeds": seeds, "videos": VIDEOS, "settings": ROWS, "rows": rows}
            RESULT.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
