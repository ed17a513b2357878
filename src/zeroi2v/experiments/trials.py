"""How are many trainings run, each measured and kept when it is finished, and none twice?

OUT/rows.jsonl   one line for each row and seed that is finished     OUT/runs/ROW/seed-N   its run folder (engine/train.py)

Each training has a process of its own, so that its peak memory is its own, and a crash costs no other.
"""

from __future__ import annotations

import dataclasses
import multiprocessing
import shutil
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any, Final

import torch

from zeroi2v.config import Recipe
from zeroi2v.data.datasets import VideoDataset
from zeroi2v.data.workers import start_worker
from zeroi2v.engine.folder import LAST_FILE, LOG_FILE, RECIPE_FILE, RESUME_FILE
from zeroi2v.engine.resume import data_key
from zeroi2v.engine.run import train
from zeroi2v.engine.spare import check_spared
from zeroi2v.errors import ConfigError, DatasetError, MergeError, ZeroI2VError
from zeroi2v.files import append_json, claimed, keep_json_lines, read_json_lines
from zeroi2v.inference.evaluate import FIGURE_NAMES
from zeroi2v.log import Log
from zeroi2v.machine import best_device, provenance
from zeroi2v.measure.cost import plain_tower
from zeroi2v.measure.timing import balanced_orders, interleave, median_ratio
from zeroi2v.models.build import build_model
from zeroi2v.models.loading import load
from zeroi2v.models.video import VideoClassifier
from zeroi2v.recipes import read_recipe, to_dict

ROWS_FILE: Final = "rows.jsonl"
LATENCY_SECONDS: Final = (
    5.0  # that measuring the latency of one row takes, about, where its rounds allow
)
LATENCY_CYCLES: Final = 10  # of the balanced orders, at most


@dataclass(frozen=True)
class Trial:
    """One row with one seed: one training."""

    row: str
    seed: int
    recipe: Recipe

    @property
    def folder(self) -> Path:
        """Its run folder, inside OUT."""
        return Path("runs", self.row, f"seed-{self.seed}")

    def __str__(self) -> str:
        return f"{self.row}, seed {self.seed}"


def run_trials(
    trials: Sequence[Trial],
    dataset: VideoDataset,
    out: Path,
    *,
    at_once: int = 1,
    threads: int | None = None,
    latency: bool = True,
    each: Callable[[Sequence[Mapping[str, Any]], Mapping[str, str]], object] = lambda *_: None,
    log: Log,
) -> tuple[list[dict[str, Any]], dict[str, str]]:
    """Train and measure what `out` does not hold yet: one entry per trial, in their order, and why others failed, by name.

    `at_once` trainings run side by side, each on `threads` threads (None: torch's own number). `each` is called with both as they are
    so far when another is finished and kept. ConfigError if `out` holds another folder's files, or a trial begun with other settings
    or videos, or is in use.
    """
    _check(trials, dataset, out)
    with claimed(out, "another comparison"), _ended_together() as running:
        kept = read_json_lines(out / ROWS_FILE)
        (out / ROWS_FILE).touch()
        keep_json_lines(out / ROWS_FILE, len(kept))  # a line that a crash cut short goes
        found = {(entry["row"], entry["seed"]): entry for entry in kept}
        failed: dict[str, str] = {}

        def in_order() -> list[dict[str, Any]]:
            keys = [(trial.row, trial.seed) for trial in trials]
            return [found[key] for key in keys if key in found]

        missing = [trial for trial in trials if (trial.row, trial.seed) not in found]
        if len(missing) < len(trials):
            log.say(
                f"{out}: {len(trials) - len(missing)} of {len(trials)} trainings are finished already"
            )
        context = multiprocessing.get_context("forkserver")
        # libraries are imported once, by the process that the others fork from
        context.set_forkserver_preload([__name__])
        while missing or running:
            while missing and len(running) < at_once:
                trial = missing.pop(0)
                receiver, sender = context.Pipe(duplex=False)
                quiet = log.quiet or at_once > 1
                arguments = (sender, trial, dataset, out / trial.folder, threads, latency, quiet)
                process = context.Process(target=_in_own_process, args=arguments)
                process.start()
                sender.close()
                running[receiver] = process, trial
            answered = wait(list(running))
            for receiver in [one for one in running if one in answered]:
                process, trial = running.pop(receiver)
                try:
                    entry = _answer(receiver, process, trial)
                except ZeroI2VError as error:
                    failed[str(trial)] = str(error)
                    log.warn(f"{error}; the others go on")
                    continue
                append_json(out / ROWS_FILE, entry)
                for name in (RESUME_FILE, LAST_FILE):  # what stays is the model
                    (out / trial.folder / name).unlink(missing_ok=True)
                found[trial.row, trial.seed] = entry
                log.say(
                    f"{trial}: {FIGURE_NAMES[entry['figure']]} {entry['score']:.1%} after {entry['seconds']:.0f} s of training; "
                    f"{len(missing) + len(running)} to go"
                )
                each(in_order(), failed)
        return in_order(), failed


@contextmanager
def _ended_together() -> Iterator[dict[Connection, tuple[Any, Trial]]]:
    """The trainings in progress, by what they answer through; whatever ends this ends them."""
    running: dict[Connection, tuple[Any, Trial]] = {}
    try:
        yield running
    finally:
        for process, _ in running.values():
            process.terminate()
            process.join()


def _check(trials: Sequence[Trial], dataset: VideoDataset, out: Path) -> None:
    """Whether the trials can be built and go on with what `out` holds, before anything is trained or written."""
    if not dataset.val:
        raise DatasetError(f"{dataset.source}: a comparison needs videos to validate on")
    if (
        out.exists()
        and not (out / ROWS_FILE).is_file()
        and (not out.is_dir() or any(out.iterdir()))
    ):
        raise ConfigError(f"{out}: already there and not from a comparison; choose another --out")
    key = _data(dataset)
    finished = {(entry["row"], entry["seed"]): entry for entry in read_json_lines(out / ROWS_FILE)}
    if any(entry["data"] != key for entry in finished.values()):
        raise ConfigError(f"{out}: its rows were trained on other videos; choose another --out")
    for trial in trials:
        entry, begun = finished.get((trial.row, trial.seed)), out / trial.folder / RECIPE_FILE
        if entry is None and not begun.is_file():
            continue
        before = entry["recipe"] if entry else to_dict(read_recipe(begun))
        if changed := _difference(before, to_dict(trial.recipe)):
            raise ConfigError(
                f"{out}: {trial} was begun with {changed}; keep that, or choose another --out"
            )
    for trial in {trial.row: trial for trial in trials}.values():
        config = dataclasses.replace(trial.recipe.model, pretrained=False, weights=None)
        try:
            with torch.device("meta"):
                model = build_model(config, labels=dataset.classes, clip=trial.recipe.clip)
            check_spared(model.plan, trial.recipe.train)
        except ZeroI2VError as error:
            raise ConfigError(f"row {trial.row}: {error}") from error


def _difference(
    before: Mapping[str, Mapping[str, Any]], now: Mapping[str, Mapping[str, Any]]
) -> str:
    """The settings that differ, in words; '' if none."""
    return ", ".join(
        f"{table}.{name} = {value!r}, not {now[table][name]!r}"
        for table, settings in before.items()
        for name, value in settings.items()
        if value != now[table][name]
    )


def _data(dataset: VideoDataset) -> dict[str, Any]:
    """What an entry keeps of the videos it was trained on."""
    videos = [*dataset.train, *dataset.val]
    return {
        "train": len(dataset.train),
        "val": len(dataset.val),
        "key": data_key(dataset.classes, videos),
    }


def _answer(receiver: Connection, process: Any, trial: Trial) -> dict[str, Any]:
    """What a training's process found. ZeroI2VError names the trial, and why it has no answer."""
    try:
        found = receiver.recv()
    except EOFError:
        found = None
    process.join()
    receiver.close()
    if isinstance(found, ZeroI2VError):
        raise ZeroI2VError(f"{trial}: {found}") from found
    if found is None:
        hint = "; perhaps the memory did not suffice" if process.exitcode == -9 else ""
        raise ZeroI2VError(
            f"{trial}: its process ended with status {process.exitcode} and no result{hint}"
        )
    answer: dict[str, Any] = found
    return answer


def _in_own_process(
    sender: Connection,
    trial: Trial,
    dataset: VideoDataset,
    folder: Path,
    threads: int | None,
    latency: bool,
    quiet: bool,
) -> None:
    """Send a trial's entry, or the error that ended it. Ends with the process that asked, however that ends."""
    start_worker(0)
    if threads is not None:
        torch.set_num_threads(threads)
    try:
        sender.send(_measure(trial, dataset, folder, latency=latency, log=Log(quiet=quiet)))
    except ZeroI2VError as error:
        sender.send(error)


def _measure(
    trial: Trial, dataset: VideoDataset, folder: Path, *, latency: bool, log: Log
) -> dict[str, Any]:
    """Train one row, or go on with its training, and measure what came of it."""
    log.say(f"[{trial}]")
    resume = (folder / RESUME_FILE).is_file()
    if not resume and (folder / RECIPE_FILE).is_file():
        shutil.rmtree(folder)  # of a training that ended before there was anything to go on from
    run = train(trial.recipe, dataset, folder, resume=resume, log=log)
    epochs = read_json_lines(folder / LOG_FILE)
    model = load(folder).to(best_device())
    left_out = {
        **run.broken,
        **dict.fromkeys(run.excluded, f"listed in {trial.recipe.train.exclude}"),
    }
    entry = {
        "row": trial.row,
        "seed": trial.seed,
        "figure": "mAP" if model.spec.multi_label else "top1",
        "score": run.best,
        "trainable_params": sum(
            weight.numel() for weight in model.parameters() if weight.requires_grad
        ),
        "params": sum(weight.numel() for weight in model.parameters()),
        "seconds": round(sum(epoch["seconds"] for epoch in epochs), 1),
        "peak_memory": max(epoch["peak_memory"] for epoch in epochs),
        "precision": epochs[-1]["precision"],
        "loss": epochs[-1]["loss"],
        "left_out": left_out,
        "judged": sum(str(video.path) not in left_out for video in dataset.val),
        "data": _data(dataset),
        "recipe": to_dict(trial.recipe),
        **provenance(),
    }
    if latency:
        log.say("latency")
        entry["latency"] = measure_latency(model)
    return entry


@torch.no_grad()
def measure_latency(model: VideoClassifier) -> dict[str, Any]:
    """Milliseconds for one clip in full precision, the plain tower, the model and the merged model in turn, and ratios to the tower.

    `merged` is None, and so is its ratio, for a model that does not merge.
    """
    tower, model = plain_tower(model), model.eval()
    size = (1, model.frames, 3, model.image_size, model.image_size)
    clip = torch.randn(size, generator=torch.Generator().manual_seed(0)).to(
        model.classifier.weight.device
    )
    pictures = model.tower_input(clip)
    calls: dict[str, Callable[[], object]] = {
        "tower": lambda: tower(pictures),
        "adapted": lambda: model(clip),
    }
    try:
        merged = model.merge()
    except MergeError:
        pass
    else:
        calls["merged"] = lambda: merged(clip)
    once = sum(series[0] for series in interleave(calls, rounds=1, warmup=1).values()) / 1000
    cycle = len(balanced_orders(len(calls)))
    cycles = max(1, min(LATENCY_CYCLES, round(LATENCY_SECONDS / once / cycle)))
    times = interleave(calls, rounds=cycles * cycle, warmup=1)
    return {
        "rounds": len(times["tower"]),
        "tower_ms": statistics.median(times["tower"]),
        **{
            f"{name}_over_tower": median_ratio(times, name, "tower") if name in times else None
            for name in ("adapted", "merged")
        },
        **{
            f"{name}_ms": statistics.median(times[name]) if name in times else None
            for name in ("adapted", "merged")
        },
    }
