"""What does `zeroi2v compare` find on the motion videos, and in what time? The commands of docs/compare.md, with a clock.

    python benchmarks/compare.py --work FOLDER    # about a quarter of an hour on two free cores
    python benchmarks/compare.py --docs           # only writes the table of docs/compare.md anew

Writes results/compare-motion.json: what compare.json holds, and the seconds that the whole of the second command took.
"""

from __future__ import annotations

import argparse
import json
import re
import shlex
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

RESULT = Path(__file__).parent / "results" / "compare-motion.json"
PAGE = Path(__file__).parents[1] / "docs" / "compare.md"
START, END = "<!-- compare-motion -->\n", "<!-- end of compare-motion -->"


def commands() -> list[list[str]]:
    """The page's last block of commands: one that writes the videos, one that compares."""
    block = re.findall(
        r"^```sh\n(.*?)^```", PAGE.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE
    )[-1]
    return [shlex.split(line) for line in block.replace("\\\n", " ").splitlines()]


def measure(work: Path) -> dict[str, Any]:
    """Run the commands in an empty folder."""
    work.mkdir()
    for _, *arguments in commands():
        began = time.monotonic()
        subprocess.run([sys.executable, "-m", "zeroi2v", *arguments], cwd=work, check=True)
        seconds = time.monotonic() - began
    (page,) = work.glob("*/compare.json")
    return {**json.loads(page.read_text(encoding="utf-8")), "wall_seconds": round(seconds)}


def table(result: Mapping[str, Any]) -> str:
    """The result as Markdown, the best row first."""
    machine, version, count = (
        result["machine"],
        result["versions"]["torch"],
        result["trainings"]["finished"],
    )
    lines = [
        f"{machine['processor']}, {machine['threads']} threads, torch {version}, {result['date']}: {count} trainings in",
        f"{result['wall_seconds'] / 60:.0f} minutes ([`compare-motion.json`](../benchmarks/results/compare-motion.json)).",
        "",
        "| | top-1, seed by seed | trainable | training, s | peak memory, MiB | times the tower, as trained | merged |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for row in sorted(result["rows"], key=lambda one: -one["mean_score"]):
        merged = row["merged_over_tower"]
        cells = [
            f"`{row['row']}`",
            ", ".join(f"{100 * score:.1f}" for score in row["scores"]),
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
        RESULT.write_text(json.dumps(measure(arguments.work), indent=1) + "\n", encoding="utf-8")
    before, rest = PAGE.read_text(encoding="utf-8").split(START)
    found = (
        table(json.loads(RESULT.read_text(encoding="utf-8")))
        if RESULT.exists()
        else "Not measured yet."
    )
    PAGE.write_text(f"{before}{START}{found}\n{END}{rest.split(END)[1]}", encoding="utf-8")


if __name__ == "__main__":
    main()
