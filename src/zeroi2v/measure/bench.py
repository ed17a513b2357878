"""How fast are these models, and how much memory do they take? All of them in turn, in one run, on the same clips.

Latency is the time of one clip. Throughput is clips per second at the best of the batches 1, 2, 4 ... that fit into memory.
"""

from __future__ import annotations

import dataclasses
import itertools
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch
from rich.box import SIMPLE_HEAD
from rich.table import Table
from torch import Tensor, nn

from zeroi2v.config import Recipe
from zeroi2v.errors import ConfigError, nearest
from zeroi2v.files import json_text, write_files
from zeroi2v.inference.scores import DTYPES
from zeroi2v.log import Log
from zeroi2v.machine import free_bytes, provenance
from zeroi2v.measure.cost import plain_tower
from zeroi2v.measure.memory import MEANING, peak_bytes
from zeroi2v.measure.timing import balanced_orders, fast_ratio, interleave, spread, timed_rounds
from zeroi2v.method.strategies import STRATEGIES
from zeroi2v.models.build import build_model
from zeroi2v.models.loading import load
from zeroi2v.models.peers import settings_to_reset
from zeroi2v.models.pictures import pictures_of
from zeroi2v.models.spec import numbered_labels
from zeroi2v.models.video import VideoClassifier
from zeroi2v.pages.charts import bench_plot

PLAIN: Final = "plain"
MERGED: Final = ":merged"
SEED: Final = 0  # of random weights and clips; they change no time
CLASSES: Final = 400  # of the classifier that a strategy gets
GAIN: Final = 1.05  # on a CPU a doubled batch must raise the throughput by so much, or the batch is doubled no more
BATCH_ROUNDS: Final = 3
MIB: Final = 2**20


@dataclass(frozen=True)
class Subject:
    """One thing that is timed: from a batch of clips to whatever it makes of them."""

    name: str
    run: Callable[[Tensor], object]
    shape: tuple[int, ...]  # of one clip: (F, 3, S, S)
    weights: int  # bytes
    facts: dict[str, Any]
    timed: Callable[[Tensor], object]  # `run`, or `run` compiled


def build_subjects(
    names: Sequence[str],
    saved: Sequence[str],
    recipe: Recipe | None,
    *,
    device: torch.device,
    dtype: str,
    compiled: bool = False,
    log: Log,
) -> list[Subject]:
    """What is timed: `plain` (the image tower alone), strategies with random weights, and saved models; `:merged` folds adapters.

    Plain tower and strategies are built by the recipe's model and clip, or like the first saved model where there is no recipe.
    ConfigError names what is unknown, there twice, or too much for the memory.
    """
    for name in names:
        kind, _, how = name.partition(":")
        known = [PLAIN, *STRATEGIES]
        if kind not in known or how not in ("", "merged") or (kind == PLAIN and how):
            near = nearest(kind, known) if kind not in known else ""
            raise ConfigError(
                f"{name!r}: expected {PLAIN} or a strategy ({', '.join(STRATEGIES)}), as it is or followed by {MERGED}; "
                f"a saved model is named by --model{near}"
            )
    everything = [*names, *saved]
    if twice := [name for name in everything if everything.count(name) > 1]:
        raise ConfigError(f"{twice[0]} is there twice; name it once")
    first = load(saved[0].removesuffix(MERGED)) if recipe is None and saved else None
    recipe = recipe or (Recipe(model=first.spec.model, clip=first.clip) if first else Recipe())
    subjects: list[Subject] = []
    for name in everything:
        log.say(f"building {name}")
        sizes, free = [0, *(one.weights for one in subjects)], _free(device)
        if 2 * max(sizes) > free:  # merging holds a model twice
            held = f"{len(subjects)} models hold {sum(sizes) / MIB:.0f} MiB"
            raise ConfigError(f"{name}: {held} and {free / MIB:.0f} MiB are free; name fewer")
        torch.manual_seed(SEED)
        if name in saved:
            model = load(name.removesuffix(MERGED))
        else:
            strategy = "zeroi2v" if name == PLAIN else name.removesuffix(MERGED)
            changes = {
                "strategy": strategy,
                "pretrained": False,
                "weights": None,
                **settings_to_reset(recipe.model, strategy),
            }
            config = dataclasses.replace(recipe.model, **changes)
            if name == PLAIN:
                config = dataclasses.replace(config, sites=None)
            model = build_model(config, labels=numbered_labels(CLASSES), clip=recipe.clip)
            model.resize(image_size=first.image_size if first else None)
        model = model.eval().to(device, DTYPES[dtype])
        if name.endswith(MERGED):
            model = model.merge()
        subjects.append(_subject(name, model, compiled=compiled))
    return subjects


def _free(device: torch.device) -> int:
    return torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else free_bytes()


def _subject(name: str, model: VideoClassifier, *, compiled: bool) -> Subject:
    module: nn.Module = model
    run: Callable[[Tensor], object] = model
    if name == PLAIN:
        module, tubelet = plain_tower(model), model.spec.model.tubelet

        def run(clips: Tensor) -> object:
            return module(pictures_of(clips, tubelet))

    facts = {
        "tower": model.spec.model.tower,
        "strategy": None if name == PLAIN else model.spec.model.strategy,
        "merged": model.spec.merged,
        "frames": model.frames,
        "image_size": model.image_size,
        "params": sum(parameter.numel() for parameter in module.parameters()),
    }
    return Subject(
        name=name,
        run=run,
        shape=(model.frames, 3, model.image_size, model.image_size),
        weights=sum(
            one.numel() * one.element_size() for one in (*module.parameters(), *module.buffers())
        ),
        facts=facts,
        timed=torch.compile(run) if compiled else run,
    )


class Clips:
    """Batches of random clips, which subjects of one shape share."""

    def __init__(self, device: torch.device, dtype: torch.dtype) -> None:
        self.device, self.dtype = device, dtype
        self.made: dict[tuple[int, ...], Tensor] = {}

    def __call__(self, subject: Subject, batch: int) -> Tensor:
        """`batch` clips for a subject. Of larger batches than one, only those of the latest size are kept."""
        self.made = {size: clips for size, clips in self.made.items() if size[0] in (1, batch)}
        size = (batch, *subject.shape)
        if size not in self.made:
            self.made[size] = torch.randn(size, dtype=self.dtype, device=self.device)
        return self.made[size]


def bench(
    subjects: Sequence[Subject],
    *,
    device: torch.device,
    dtype: str,
    rounds: int = 20,
    warmup: int = 3,
    max_batch: int | None = None,
    memory: float | None = None,
    log: Log,
) -> dict[str, Any]:
    """Everything that is measured, with machine and versions: what `bench.json` holds. The first subject is the reference.

    `rounds` is raised to whole cycles of the balanced orders. `memory`: GiB that a batch may take on a CPU, half of what is free if
    None. ConfigError if not even one clip fits. After an interrupt (Ctrl-C) it returns what was measured; KeyboardInterrupt where
    that is not one round.
    """
    torch.manual_seed(SEED)
    clips = Clips(device, DTYPES[dtype])
    cycle = len(balanced_orders(len(subjects)))
    asked, rounds = rounds, -(-rounds // cycle) * cycle
    if rounds != asked:
        log.say(
            f"{rounds} rounds instead of {asked}: whole cycles of {cycle} orders, so that each follows each equally often"
        )
    limit = None if device.type == "cuda" else int(memory * 2**30) if memory else free_bytes() // 2
    for _ in range(
        2 if device.type == "cuda" else 1
    ):  # a GPU's first call also makes room for its libraries
        found = {one.name: _peak(one, 1, clips) for one in subjects}
    peaks = {
        name: peak
        for name, peak in found.items()
        if peak is not None and (limit is None or peak <= limit)
    }
    if tight := [name for name in found if name not in peaks]:
        raise ConfigError(
            f"{tight[0]}: one clip does not fit into the memory of the {device.type}; name fewer models"
        )
    told: list[dict[str, float]] = []
    batches: dict[str, Batches] = {}
    interrupted = False
    try:
        calls = {one.name: _timed(one, clips(one, 1)) for one in subjects}
        rows = timed_rounds(calls, rounds=rounds, warmup=warmup)
        for times in log.track(rows, total=rounds, title="latency", unit="rounds"):
            told.append(times)
        for one in subjects:
            middle = statistics.median(times[one.name] for times in told)
            batches[one.name] = Batches(
                [{"batch": 1, "clips_per_second": 1000 / middle, "peak_mib": peaks[one.name] / MIB}]
            )
        double_batches(subjects, clips, batches, limit=limit, max_batch=max_batch, log=log)
    except KeyboardInterrupt:
        if not told:
            raise
        interrupted = True
        log.warn(
            f"interrupted: {len(told)} of {rounds} rounds, and what throughput was measured, are kept"
        )
    series = {one.name: [times[one.name] for times in told] for one in subjects}
    models = []
    for one in subjects:
        ratio = fast_ratio(series, one.name, subjects[0].name)
        entry = {
            "name": one.name,
            **one.facts,
            "weights_mib": one.weights / MIB,
            "peak_mib": peaks[one.name] / MIB,
        }
        entry |= {"latency_ms": spread(series[one.name]), "ratio": ratio}
        if one.name in batches:
            entry["throughput"] = batches[one.name].to_dict()
        models.append({**entry, "ms": [round(time, 3) for time in series[one.name]]})
    return {
        **provenance(),
        "seeds": [SEED],
        "device": device.type,
        "dtype": dtype,
        "compiled": any(one.timed is not one.run for one in subjects),
        "rounds": len(told),
        "warmup": warmup,
        "interrupted": interrupted,
        "peak_mib_is": MEANING[device.type],
        "batch_limit_mib": None if limit is None else limit // MIB,
        "reference": subjects[0].name,
        "models": models,
    }


@dataclass
class Batches:
    """How one subject did as its batch was doubled, and why it was doubled no more."""

    tried: list[dict[str, float]]  # batch, clips_per_second, peak_mib
    stopped_by: str = "interrupt"

    def to_dict(self) -> dict[str, Any]:
        """The fastest batch, the largest that was run, and all."""
        best = max(self.tried, key=lambda one: one["clips_per_second"])
        return {
            **best,
            "largest_batch": self.tried[-1]["batch"],
            "stopped_by": self.stopped_by,
            "tried": self.tried,
        }


def double_batches(
    subjects: Sequence[Subject],
    clips: Clips,
    batches: dict[str, Batches],
    *,
    limit: int | None,
    max_batch: int | None,
    log: Log,
) -> None:
    """Time batches of 2, 4, 8 ... clips in turn and add them to `batches`, which has those of one clip.

    A subject takes part until a batch is over `max_batch`, does not fit, or with a `limit` of bytes until a batch would need more by
    the peak of one clip, or a doubling gains little.
    """
    running = list(subjects)
    per_clip = {
        one.name: batches[one.name].tried[0]["peak_mib"] * MIB + clips(one, 1).nbytes
        for one in subjects
    }
    warmup = int(
        any(one.timed is not one.run for one in subjects)
    )  # what is not compiled, its trial has warmed up
    for batch in (2**power for power in itertools.count(1)):
        peaks: dict[str, int] = {}
        for one in running:
            if max_batch and batch > max_batch:
                batches[one.name].stopped_by = "max_batch"
            elif (limit and batch * per_clip[one.name] > limit) or (
                peak := _peak(one, batch, clips)
            ) is None:
                batches[one.name].stopped_by = "memory"
            else:
                peaks[one.name] = peak
        running = [one for one in running if one.name in peaks]
        if not running:
            return
        log.say(f"batch {batch}: {', '.join(peaks)}")
        try:
            calls = {one.name: _timed(one, clips(one, batch)) for one in running}
            series = interleave(calls, rounds=BATCH_ROUNDS, warmup=warmup)
            del calls  # with the clips in it, which would stand in the way of twice as many
        except torch.OutOfMemoryError:  # it fitted once, but not beside what the others left behind
            for one in running:
                batches[one.name].stopped_by = "memory"
            return
        for name, times in series.items():
            rate = batch * 1000 / statistics.median(times)
            if limit and rate < GAIN * batches[name].tried[-1]["clips_per_second"]:
                batches[name].stopped_by = "no gain"
            batches[name].tried.append(
                {"batch": batch, "clips_per_second": rate, "peak_mib": peaks[name] / MIB}
            )
        running = [one for one in running if batches[one.name].stopped_by != "no gain"]


def _timed(subject: Subject, batch: Tensor) -> Callable[[], object]:
    return torch.inference_mode()(lambda: subject.timed(batch))


def _peak(subject: Subject, batch: int, clips: Clips) -> int | None:
    """The peak of one call; None if the memory ends, which leaves no trace. On a CPU what is compiled cannot be followed."""
    run = subject.run if clips.device.type == "cpu" else subject.timed
    try:
        inputs = clips(subject, batch)
        with torch.no_grad():
            return peak_bytes(lambda: run(inputs), clips.device)
    except RuntimeError as error:
        if not isinstance(error, torch.OutOfMemoryError) and "DefaultCPUAllocator" not in str(
            error
        ):
            raise
    if clips.device.type == "cuda":
        torch.cuda.empty_cache()
    return None


def write_bench(result: dict[str, Any], json_file: Path, picture: Path) -> None:
    """Write the measurements and their picture, both or none. CheckpointError if they cannot be written."""
    text = json_text(result, indent=1) + "\n"
    write_files(
        {
            json_file: lambda path: path.write_text(text, encoding="utf-8"),
            picture: lambda path: bench_plot(result, path),
        }
    )


def bench_table(result: dict[str, Any]) -> Table:
    """What `zeroi2v bench` shows in a terminal."""
    where = (
        result["machine"].get("gpu")
        if result["device"] == "cuda"
        else result["machine"]["processor"]
    )
    how = f"{result['dtype']}, {'compiled' if result['compiled'] else 'eager'}, {result['rounds']} rounds"
    table = Table(title=f"{where}, {how}", title_justify="left", box=SIMPLE_HEAD, padding=0)
    table.add_column("model", no_wrap=True)
    for name in ("ms", "p95", f"/ {result['reference']}", "95 %", "clips/s", "batch", "MiB"):
        table.add_column(name, justify="right")
    for model in result["models"]:
        latency, ratio, batches = model["latency_ms"], model["ratio"], model.get("throughput", {})
        table.add_row(
            model["name"],
            f"{latency['median']:.1f}",
            f"{latency['p95']:.1f}",
            f"{ratio['fast']:.3f}",
            f"{ratio['low']:.3f}-{ratio['high']:.3f}",
            f"{batches['clips_per_second']:.3g}" if batches else "-",
            f"{batches['batch']:.0f}" if batches else "-",
            f"{model['weights_mib'] + model['peak_mib']:.0f}",
        )
    return table
