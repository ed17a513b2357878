"""What does `zeroi2v compare` find on the motion videos, and in what time?

    python benchmarks/compare.py --work FOLDER    # about a quarter of an hour on two free cores
    python benchmarks/compare.py --docs           # only writes the table of docs/compare.md anew

Runs the commands of docs/compare.md. Writes results/compare-motion.json: what compare.json holds,
the seconds that the second command took as a whole, and for each row its score within pairs. A
class of a pair is the other class played backwards. Within pairs, only the two answers of a pair
are allowed, and guessing gives 50 %.
"""

from __future__ import annotations

import argparse
import json
import re
import shlex
import statistics
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from zeroi2v import load
from zeroi2v.data.datasets import VideoDataset, open_dataset
from zeroi2v.errors import how_many
from zeroi2v.experiments.quickstart import accuracy
from zeroi2v.files import write_json, write_text
from zeroi2v.inference.evaluate import evaluate

RESULT = Path(__file__).parent / "results" / "compare-motion.json"
PAGE = Path(__file__).parents[1] / "docs" / "compare.md"
START, END = "<!-- compare-motion -->\n", "<!-- end of compare-motion -->"
WITHIN = "within pairs, seed by seed"
COLUMNS = (
    "",
    "top-1, seed by seed",
    WITHIN,
    "trainable",
    "training, s",
    "peak memory, MiB",
    "time / tower's time, adapted",
    "time / tower's time, merged",
)


def commands() -> list[list[str]]:
    """The last block of commands of the page: a command that writes the videos, and `compare`."""
    blocks = re.findall(
        r"^```sh\n(.*?)^```", PAGE.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE
    )
    return [shlex.split(line) for line in blocks[-1].replace("\\\n", " ").splitlines()]


def measure(work: Path) -> dict[str, Any]:
    """Run the commands in an empty folder, which then holds the folder `videos`."""
    work.mkdir()
    seconds = 0.0
    for _, *arguments in commands():
        began = time.monotonic()
        subprocess.run([sys.executable, "-m", "zeroi2v", *arguments], cwd=work, check=True)
        seconds = time.monotonic() - began
    (path,) = work.glob("*/compare.json")
    result = json.loads(path.read_text(encoding="utf-8"))
    dataset = open_dataset(work / "videos")
    for row in result["rows"]:
        runs = path.parent / "runs" / row["row"]
        row["within_pairs"] = [
            within_pairs(runs / f"seed-{seed}", dataset) for seed in row["seeds"]
        ]
    return {**result, "wall_seconds": round(seconds)}


def within_pairs(run: Path, dataset: VideoDataset) -> float:
    """The mean over the pairs of how often the right one of a pair's two answers wins."""
    evaluation = evaluate(load(run), dataset.val)
    shares: dict[str, float] = accuracy(evaluation, dataset.classes)["within_pairs"]
    return statistics.mean(shares.values())


def table(result: Mapping[str, Any]) -> str:
    """The result as Markdown, the best row first."""
    machine, minutes = result["machine"], result["wall_seconds"] / 60
    has_pairs = all("within_pairs" in row for row in result["rows"])  # an older result has not
    columns = [name for name in COLUMNS if has_pairs or name != WITHIN]
    lines = [
        f"{machine['processor']}, {how_many(machine['threads'], 'thread')}, torch "
        f"{result['versions']['torch']}, {result['date']}: "
        f"{how_many(result['trainings']['finished'], 'training')} in",
        f"{how_many(round(minutes), 'minute')} "
        "([`compare-motion.json`](../benchmarks/results/compare-motion.json)).",
        "",
        f"| {' | '.join(columns)} |".replace("|  |", "| |"),
        f"| {' | '.join('---' for _ in columns)} |",
    ]
    for row in sorted(result["rows"], key=lambda row: -row["mean_score"]):
        merged = row["merged_over_tower"]
        within = [row["within_pairs"]] if has_pairs else []
        cells = [
            f"`{row['row']}`",
            *(
                ", ".join(f"{100 * score:.1f}" for score in scores)
                for scores in (row["scores"], *within)
            ),
            f"{row['trainable_params']:,}",
            f"{row['seconds']:.0f}",
            f"{row['peak_memory'] / 2**20:.0f}",
            f"{row['adapted_over_tower']:.2f}",
            "does not merge" if merged is None else f"{merged:.2f}",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--work", type=Path, help="folder for videos and runs; must not exist")
    parser.add_argument("--docs", action="store_true", help="only write docs/compare.md")
    arguments = parser.parse_args()
    if not arguments.docs:
        if arguments.work is None:
            parser.error("--work is missing")
        write_json(RESULT, measure(arguments.work))
    text = "Not measured yet."
    if RESULT.exists():
        text = table(json.loads(RESULT.read_text(encoding="utf-8")))
    before, rest = PAGE.read_text(encoding="utf-8").split(START)
    write_text(PAGE, f"{before}{START}{text}\n{END}{rest.split(END)[1]}")


if __name__ == "__main__":
    main()
