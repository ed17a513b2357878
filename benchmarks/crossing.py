"""Do operators at a fixed place fail when objects move far, or the camera moves? A crossing curve.

    python -m benchmarks.crossing run --tower FILE     # DINOv2 ViT-S/14, weights in timm's layout
    python -m benchmarks.crossing run                  # the embedded tower
    python -m benchmarks.crossing report               # docs/crossing.md and its figures

`run` trains on the clips of crossing_clips.py, and appends every finished training as a line to
results/crossing.jsonl. The script can be stopped at any time: the next call goes on where the last
call stopped. `--minutes` stops it in time. `report` writes the page and the figures from the lines.

The hypothesis, written before the first training. Channel shift and HR V give a place the values
that the same place had in the frame before, so they see a difference at a fixed place. HR KV
(STDHA) moves keys too: a place can look for its object in the other frame. So channel shift leads
while an object stays within its own patches, and HR KV overtakes when the displacement per frame is
large or the camera moves. Everything here is exploratory: one rate, one budget, drawn clips.
"""

from __future__ import annotations

import argparse
import math
import os
import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import torch

from benchmarks.ablations import interval, same_sign, wrapped
from benchmarks.crossing_clips import FRAMES, GRID, crossing_test, name_of
from benchmarks.evidence_training import TOWER, Inputs, Regime, train
from benchmarks.job_queue import JobQueue, work_off
from zeroi2v.files import append_json, read_json_lines, write_text
from zeroi2v.machine import provenance
from zeroi2v.models.towers import TINY_FILE
from zeroi2v.pages.charts import Series, lines_plot

LINES: Final = Path(__file__).parent / "results" / "crossing.jsonl"
PAGE: Final = Path(__file__).parents[1] / "docs" / "crossing.md"
PICTURES: Final = PAGE.parent / "pictures"
DISPLACEMENTS: Final = (0.25, 1.0, 4.0)  # patches a frame
CAMERA: Final = (False, True)
OPERATORS: Final = ("HR KV", "HR V", "shift KV", "no time")
TESTED: Final = 1  # the fold of the clips that no training sees


@dataclass(frozen=True)
class Budget:
    """How a tower is trained on every set of clips. All rows share everything here."""

    name: str  # of the tower
    words: str  # the name of the tower on the page
    depth: int  # the number of blocks of the tower
    blocks: int  # the upper blocks, which train; the tokens below are computed once
    patch: int  # pixels
    rows: Mapping[str, str]  # operator -> row of evidence_training.ROWS
    share: str  # of the channels that an operator moves
    training: int  # clips, each of which also counts backwards
    testing: int
    epochs: int
    batch: int
    rate: float

    def regime(self, weights: Path, device: torch.device) -> Regime:
        """The budget as the regime of a training."""
        return Regime(
            weights,
            self.blocks,
            GRID * self.patch,
            self.epochs,
            device,
            tower_name=self.name,
            depth=self.depth,
            frames=FRAMES,
            batch=self.batch,
            draws=0,
            probed=True,
            checked=False,
        )

    @property
    def steps(self) -> int:
        """The steps of a training."""
        return self.epochs * (2 * self.training // self.batch)


BUDGETS: Final = (
    Budget(
        name=TOWER,
        words="DINOv2 ViT-S/14",
        depth=12,
        blocks=4,
        patch=14,
        rows={name: name for name in OPERATORS},
        share="1/3",
        training=360,
        testing=200,
        epochs=1,
        batch=16,
        rate=5e-4,
    ),
    Budget(
        name="zeroi2v_tiny",
        words="the embedded tower",
        depth=6,
        blocks=4,
        patch=8,
        rows={name: name if name == "no time" else f"{name} 1/4" for name in OPERATORS},
        share="1/4",
        training=500,
        testing=200,
        epochs=6,
        batch=8,
        rate=1e-3,
    ),
)


@dataclass(frozen=True)
class Job:
    """One training."""

    tower: str
    displacement: float
    camera: bool
    operator: str
    seed: int
    budget: tuple[int, int, int, int, int, float]  # blocks, clips, clips, epochs, batch, rate

    @classmethod
    def of(cls, line: Mapping[str, Any]) -> Job:
        """The training that a line of the results describes."""
        job = line["job"]
        return cls(**{**job, "budget": tuple(job["budget"])})


def jobs(budget: Budget, seeds: Sequence[int]) -> list[Job]:
    """All trainings of a tower: all sets of clips and rows with one seed before another seed."""
    numbers = (budget.blocks, budget.training, budget.testing, budget.epochs, budget.batch)
    return [
        Job(budget.name, displacement, camera, operator, seed, (*numbers, budget.rate))
        for seed in seeds
        for displacement in DISPLACEMENTS
        for camera in CAMERA
        for operator in OPERATORS
    ]


def work(queue: JobQueue[Job], arguments: argparse.Namespace) -> None:
    """Do the jobs of a queue. Every worker is a process of its own."""
    torch.set_num_threads(arguments.threads)
    budget = budget_of(arguments)
    regime = budget.regime(arguments.tower or TINY_FILE, torch.device(arguments.device))
    prepared: dict[str, Inputs] = {}
    while job := queue.next():
        name = name_of(job.displacement, job.camera)
        if name not in prepared:
            test = crossing_test(
                budget.training,
                budget.testing,
                displacement=job.displacement,
                camera=job.camera,
                patch=budget.patch,
            )
            prepared[name] = Inputs(test, regime)
        row = budget.rows[job.operator]
        result = train(row, prepared[name], (TESTED,), rate=budget.rate, seed=job.seed)
        with queue.lock:
            append_json(LINES, {"job": asdict(job), **result, **provenance()})
        before, after = (accuracy(result, answers) for answers in ("probed", "right"))
        words = f"{name}, {row}, seed {job.seed}: {before:.1%} before the training"
        print(f"{words}, {after:.1%} after, {result['seconds']:.0f} s", flush=True)


def budget_of(arguments: argparse.Namespace) -> Budget:
    """The budget of a call: of the real tower if its weights are given."""
    return BUDGETS[0] if arguments.tower else BUDGETS[1]


def accuracy(result: Mapping[str, Any], answers: str) -> float:
    """The share of right answers to the tested clips, which a line of the results holds."""
    folds = {int(fold): values for fold, values in result["folds"].items()}
    digits: str = folds[TESTED][answers]
    return digits.count("1") / len(digits)


def run(arguments: argparse.Namespace) -> None:
    """Train what the results do not hold yet, until all is done or the minutes are over."""
    end = time.time() + 60 * arguments.minutes
    work_off(waiting, work, arguments, workers=arguments.workers, end=end)


def waiting(arguments: argparse.Namespace) -> list[Job]:
    """The trainings that the results do not hold yet."""
    done = {*map(Job.of, read_json_lines(LINES))}
    return [job for job in jobs(budget_of(arguments), range(arguments.seeds)) if job not in done]


# (displacement, camera, operator) -> the results of the seeds that all rows of the tower have
Results = Mapping[tuple[float, bool, str], Sequence[Mapping[str, Any]]]


def results_of(budget: Budget, lines: Sequence[Mapping[str, Any]]) -> Results:
    """The results of a tower, for each seed with which all its trainings are done."""
    found = {Job.of(line): line for line in lines}
    seeds = sorted({job.seed for job in found})
    whole = [seed for seed in seeds if all(job in found for job in jobs(budget, [seed]))]
    results: dict[tuple[float, bool, str], list[Mapping[str, Any]]] = {}
    for job in jobs(budget, whole):
        key = job.displacement, job.camera, job.operator
        results.setdefault(key, []).append(found[job])
    return results


def scores(
    results: Results, displacement: float, camera: bool, operator: str, answers: str = "right"
) -> list[float]:
    """The accuracy of a row within pairs, for each seed; `probed`: before the training."""
    return [accuracy(line, answers) for line in results[displacement, camera, operator]]


def figure(results: Results, path: Path) -> None:
    """Write the accuracy over the displacement as SVG, with the camera still and moving."""
    panels = {
        f"The camera {'moves' if camera else 'stands still'}": [
            Series(
                operator,
                [(size, scores(results, size, camera, operator)) for size in DISPLACEMENTS],
            )
            for operator in OPERATORS
        ]
        for camera in CAMERA
    }
    write_text(path, lines_plot(panels, "displacement in patches a frame"))


def page(lines: Sequence[Mapping[str, Any]]) -> str:
    """The text of docs/crossing.md."""
    text = [HEAD, ""]
    for budget in BUDGETS:
        text += [f"## {budget.words[0].upper()}{budget.words[1:]}", ""]
        results = results_of(budget, lines)
        text += section(budget, results) if results else ["Not measured yet.", ""]
    return "\n".join(map(wrapped, text)).rstrip("\n") + "\n"


def section(budget: Budget, results: Results) -> list[str]:
    """The lines of the page about a tower."""
    every = [line for runs in results.values() for line in runs]
    count = len(next(iter(results.values())))
    seconds = statistics.median(line["seconds"] for line in every)
    first = every[0]
    open_points = 196 * math.sqrt(0.25 / budget.testing)
    return [
        f"![Accuracy over displacement](pictures/{picture_of(budget)})",
        "",
        f"Measured on {first['date']}: {first['machine']['processor']}, "
        f"torch {first['versions']['torch']}, {count} {'seed' if count == 1 else 'seeds'}. "
        f"The upper {budget.blocks} of {budget.depth} blocks have the operator and adapters, on "
        f"tokens that the blocks below give once, at {GRID * budget.patch} pixels a side. An "
        f"operator moves {budget.share} of the channels. A training begins with the logistic "
        f"regression of the features that the operator gives before any training, and then has "
        f"{budget.steps} steps of {budget.batch} clips, at a learning rate of {budget.rate:g} for "
        f"all rows. There are {budget.training} clips, each in both directions. A training took "
        f"{seconds:.0f} s. Answers are judged on {budget.testing} other clips, each in both "
        f"directions; their number leaves a row uncertain by up to {open_points:.1f} points either "
        "way (95 %). All seeds have the same clips.",
        "",
        "After the training, mean of the seeds (lowest to highest):",
        "",
        *table(results, "right"),
        "",
        "Before the training, with the fitted classifier alone:",
        "",
        *table(results, "probed"),
        "",
        *findings(results, count),
        "",
    ]


def table(results: Results, answers: str) -> list[str]:
    """The lines of a table: a row for each set of clips, a column for each operator."""
    lines = ["| displacement, camera | " + " | ".join(OPERATORS) + " |"]
    lines.append("| --- |" + " --- |" * len(OPERATORS))
    for camera in CAMERA:
        for size in DISPLACEMENTS:
            cells = []
            for operator in OPERATORS:
                shares = [100 * x for x in scores(results, size, camera, operator, answers)]
                low, high = min(shares), max(shares)
                spread = f" ({low:.1f} to {high:.1f})" if low < high else ""
                cells.append(f"{statistics.mean(shares):.1f}{spread}")
            lines.append(f"| {name_of(size, camera)} | {' | '.join(cells)} |")
    return lines


def findings(results: Results, count: int) -> list[str]:
    """What the hypothesis says, and what came out: a line of a table for each set of clips."""
    if count < 2:
        return ["One seed says nothing about the differences between rows."]
    rivals = OPERATORS[1:]
    lines = [
        "| HR KV against | " + " | ".join(rivals) + " |",
        "| --- |" + " --- |" * len(rivals),
    ]
    ahead: dict[int, list[str]] = {1: [], 0: [], -1: []}
    for camera in CAMERA:
        for size in DISPLACEMENTS:
            own, cells = scores(results, size, camera, OPERATORS[0]), []
            for rival in rivals:
                other = scores(results, size, camera, rival)
                points = [100 * (a - b) for a, b in zip(own, other, strict=True)]
                cells.append(interval(points))
                if rival == "shift KV":
                    ahead[same_sign(points)].append(name_of(size, camera))
            lines.append(f"| {name_of(size, camera)} | {' | '.join(cells)} |")
    words = {
        1: "HR KV is ahead of shift KV with every seed",
        -1: "Shift KV is ahead of HR KV with every seed",
        0: "The seeds disagree",
    }
    said = [f"{words[sign]} at: {'; '.join(ahead[sign]) or 'none'}" for sign in (1, -1, 0)]
    hypothesis = (
        "The hypothesis asks for shift KV ahead at the smallest displacement with the camera "
        "still, and for HR KV ahead at the largest displacement. "
        f"{supported(ahead)} Points, mean over the seeds and Student's 95 % interval:"
    )
    return [" ".join(f"{line}." for line in said), "", hypothesis, "", *lines]


def supported(ahead: Mapping[int, Sequence[str]]) -> str:
    """Whether the hypothesis came out, by the sets of clips where HR KV is ahead, and behind."""
    small = name_of(DISPLACEMENTS[0], False)
    large = [name_of(DISPLACEMENTS[-1], camera) for camera in CAMERA]
    begins, crosses = small in ahead[-1], [name for name in large if name in ahead[1]]
    if begins and len(crosses) == len(large):
        return "Both came out: the curves cross."
    if not begins and not crosses:
        return "Neither came out with every seed: no crossing is seen here."
    half = "the first" if begins else "the second"
    where = f" (HR KV ahead at: {'; '.join(crosses)})" if crosses else ""
    return f"Only a part came out with every seed, {half}{where}."


def picture_of(budget: Budget) -> str:
    """The name of the file of a tower's figure."""
    return f"crossing-{'tiny' if budget.name == 'zeroi2v_tiny' else 'dinov2'}.svg"


HEAD = """# Far displacements and a moving camera: do the curves cross?

[`benchmarks/crossing.py`](../benchmarks/crossing.py) writes this page. On the drawn motion videos
channel shift is ahead of the paper's operator, HR KV (STDHA). A possible reason: channel shift and
HR V see a difference at a fixed place, which is enough while an object stays within its patches.
HR KV moves keys with the values, so that a place can look for its object in the other frame. Then
channel shift leads at small displacements, and HR KV overtakes when the displacement per frame is
large or the camera moves. Here this hypothesis is tested.

The clips are made, not taken: four frames of 8 x 8 patches, textures with the spectrum of
photographs (amplitudes of 1 / frequency), clutter, an object that moves, and a second object that
gives way to the first. The class is the motion of the first object in the scene: left, right, up or
down. Answers are judged within pairs of opposite directions, so 50 % is guessing. Every clip counts
twice, as it is and backwards. By construction neither a single frame nor the frames in random order
tell the direction. HR V moves the values alone. No time means that all heads are spatial and that
a temporal embedding is trained."""


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    running = commands.add_parser("run", help="train what is not done yet")
    running.add_argument("--tower", type=Path, help="weights of the real tower; else the embedded")
    running.add_argument("--device", default="cpu")
    running.add_argument("--workers", type=int, default=1, help="trainings at a time")
    running.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    running.add_argument("--seeds", type=int, default=3)
    running.add_argument("--minutes", type=float, default=1e6)
    commands.add_parser("report", help="write the page and the figures")
    arguments = parser.parse_args()
    if arguments.command == "run":
        run(arguments)
        return
    lines = read_json_lines(LINES)
    write_text(PAGE, page(lines))
    for budget in BUDGETS:
        if results := results_of(budget, lines):
            figure(results, PICTURES / picture_of(budget))


if __name__ == "__main__":
    main()
