"""Do temporal heads pay on real videos, with a real image transformer? The confirmatory trainings.

    python -m benchmarks.evidence pack FOLDER/gestures FOLDER/signs --work WORK
    python -m benchmarks.evidence confirm --work WORK --tower FILE --device cuda --workers 6
    python -m benchmarks.evidence confirm --work WORK --tower FILE --blocks 4 --size 84 --epochs 12
    python -m benchmarks.evidence report

`pack` decodes the clips of data sets once (evidence_clips.py). `confirm` trains, and appends every
finished training as a line to results/evidence.jsonl. The script can be stopped at any time: the
next call goes on where the last call stopped. `--minutes` stops it in time. `report` writes
docs/evidence.md from the lines, at any time.

The plan, written before the first training:

Tests. `gestures`: the label of a clip. `gestures-direction`: every clip as it is and backwards,
judged within pairs.
Contrasts, on each test: HR KV (STDHA) against no time, against HR V, and against shift KV at the
same share of channels, 1/3 (of 64 channels a shift moves 20, because both directions are rounded
down). So there are six comparisons, corrected by Holm's method.
Folds. Five, over recordings (`evidence_clips.FOLDS`). Three seeds.
Rates. A rate is chosen for each tested fold, row and test, from the grid `RATES` of
evidence_plan.py. Each rate is trained on three folds. The loss on a fourth fold, the judge,
chooses; within pairs the loss is that of the two directions. The tested fold has no part in the
choice. One training serves two tested folds, each of which is the judge of the other. Where the
best rate lies at an end of the grid, the next rate beyond that end is tried, up to `FURTHER`. Every
trial is a line of the results.
Test of a contrast. For each clip the mean over seeds of right (1) or wrong (0); differences summed
by recording; the exact two-sided test by all flips of the signs of the nine sums. A contrast is
tested only when both rows have all folds and seeds. With p below 0.05 after Holm's correction the
contrast is confirmed if HR KV is ahead, and refuted if HR KV is behind; else it is undecided. The
least p of nine recordings is 2/512; each recording whose sum is zero doubles it. The least p of the
six is taken six times: 0.023, and 0.094 where two recordings tie.
Everything else that the results hold is exploratory.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

import torch

from benchmarks.evidence_clips import groups_of, pack, shortcuts, tests_of, unpack
from benchmarks.evidence_plan import SEEDS, Job, jobs
from benchmarks.evidence_training import Inputs, Regime, train
from benchmarks.job_queue import JobQueue, work_off
from zeroi2v.engine.optim import autocast_dtype
from zeroi2v.files import append_json, read_json_lines, write_json
from zeroi2v.machine import provenance

RESULTS: Final = Path(__file__).parent / "results"
LINES: Final = RESULTS / "evidence.jsonl"
SHORTCUTS: Final = RESULTS / "evidence-shortcuts.json"


def work(queue: JobQueue[Job], arguments: argparse.Namespace) -> None:
    """Do the trainings of a queue. Every worker is a process of its own."""
    torch.set_num_threads(arguments.threads)
    regime, name = regime_of(arguments)
    inputs: dict[str, Inputs] = {}
    tests = tests_of([unpack(arguments.work / "gestures.npz")])
    while job := queue.next():
        if job.test not in inputs:
            inputs[job.test] = Inputs(tests[job.test], regime)
        result = train(job.row, inputs[job.test], job.held_out, rate=job.rate, seed=job.seed)
        with queue.lock:
            append_json(LINES, {"job": asdict(job), **result, **provenance()})
        right = [fold["right"] for fold in result["folds"].values()]
        shares = ", ".join(f"{text.count('1') / len(text):.1%}" for text in right)
        print(f"{job.test}, {job.row}, {job.rate:g}, seed {job.seed}: {shares} {name}", flush=True)


def finished() -> list[dict[str, Any]]:
    """The lines of the finished trainings."""
    return read_json_lines(LINES)


def regime_of(arguments: argparse.Namespace) -> tuple[Regime, str]:
    """The regime of a call, and its name in the results."""
    device = torch.device(arguments.device)
    regime = Regime(arguments.tower, arguments.blocks, arguments.size, arguments.epochs, device)
    part = "whole" if regime.is_whole else f"upper {arguments.blocks} blocks"
    dtype = str(autocast_dtype("auto", device) or torch.float32).removeprefix("torch.")
    digest = hashlib.sha256(arguments.tower.read_bytes()).hexdigest()[:8]
    name = f"{part}, {arguments.size} pixels, {arguments.epochs} epochs, {device.type} {dtype}"
    return regime, f"{name}, tower {digest}"


def confirm(arguments: argparse.Namespace) -> None:
    """Train until the plan is done or the minutes are over."""
    end = time.time() + 60 * arguments.minutes
    work_off(waiting, work, arguments, workers=arguments.workers, end=end)
    print(f"{len(waiting(arguments))} trainings of the plan can begin now", flush=True)


def waiting(arguments: argparse.Namespace) -> list[Job]:
    """The trainings of the plan that can begin now."""
    return jobs(regime_of(arguments)[1], range(arguments.seeds), finished())


def report() -> None:
    """Write the page and its pictures from the finished trainings."""
    from benchmarks.evidence_page import DOCS, write  # a machine without PyAV trains

    if not SHORTCUTS.exists():
        raise SystemExit(f"{SHORTCUTS}: missing; call pack first")
    write(DOCS, finished(), json.loads(SHORTCUTS.read_text(encoding="utf-8")), plan())


def plan() -> str:
    """The text of the plan."""
    return (__doc__ or "").partition("first training:\n\n")[2]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    packing = commands.add_parser("pack", help="decode data sets once")
    packing.add_argument("folders", type=Path, nargs="+", help="each with an index.csv")
    confirming = commands.add_parser("confirm", help="train what the plan says")
    confirming.add_argument("--tower", type=Path, required=True, help="weights in timm's layout")
    confirming.add_argument("--device", default="cpu")
    confirming.add_argument("--workers", type=int, default=1, help="trainings at a time")
    confirming.add_argument("--threads", type=int, default=1, help="CPU threads of a training")
    confirming.add_argument("--blocks", type=int, default=12, help="upper blocks that train")
    confirming.add_argument("--size", type=int, default=140, help="pixels a side")
    confirming.add_argument("--epochs", type=int, default=30)
    confirming.add_argument("--seeds", type=int, default=SEEDS)
    confirming.add_argument("--minutes", type=float, default=1e6)
    commands.add_parser("report", help="write docs/evidence.md and its pictures")
    for command in (packing, confirming):
        command.add_argument("--work", type=Path, required=True, help="folder of packed data sets")
    arguments = parser.parse_args()
    if arguments.command == "confirm":
        confirm(arguments)
        return
    if arguments.command == "report":
        report()
        return
    arguments.work.mkdir(parents=True, exist_ok=True)
    found = {}
    for folder in arguments.folders:
        pack(folder, arguments.work)
        clips = unpack(arguments.work / f"{folder.name}.npz")
        for test in tests_of([clips]).values():
            found[test.name] = {
                "samples": len(test.labels),
                "shortcuts": shortcuts(test),
                "groups": groups_of(test),
            }
    write_json(SHORTCUTS, {**provenance(), "seeds": [0], "tests": found})


if __name__ == "__main__":
    main()
