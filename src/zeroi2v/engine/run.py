"""How does a model learn from videos? One run: epochs of AdamW, a validation after each, a folder that always loads.

RUN/recipe.toml        every setting of the run, paths absolute     RUN/log.jsonl   one line per epoch
RUN/config.json, RUN/model.safetensors, RUN/README.md   the model of the best epoch, which `zeroi2v.load(RUN)` gives
RUN/last.safetensors   the weights of the last epoch                RUN/resume.pt   where the run stands (resume.py)
RUN/tensorboard        the figures of the log, if `train.tensorboard`
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch

from zeroi2v.config import Recipe
from zeroi2v.data.datasets import VideoDataset
from zeroi2v.data.exclude import leave_out
from zeroi2v.data.loader import TrainLoader, train_loader
from zeroi2v.engine.board import new_board, require_tensorboard, write_figures
from zeroi2v.engine.optim import build_optimizer, learning_rate_share
from zeroi2v.engine.processes import Processes
from zeroi2v.engine.resume import Position, TrainingState, data_key, require_finite
from zeroi2v.engine.shard import gathered, shard
from zeroi2v.engine.spare import check_spared, spared
from zeroi2v.engine.step import Learner, take_step
from zeroi2v.errors import ConfigError, DatasetError, ZeroI2VError
from zeroi2v.files import append_json, claimed, is_partial, keep_json_lines
from zeroi2v.inference.evaluate import FIGURE_NAMES, Evaluation, evaluate
from zeroi2v.log import Log
from zeroi2v.machine import best_device, peak_memory, worker_count
from zeroi2v.models.build import build_model
from zeroi2v.models.loading import model_recipe, start_from
from zeroi2v.models.saving import (
    CARD_FILE,
    CONFIG_FILE,
    WEIGHTS_FILE,
    write_model,
    write_weights,
)
from zeroi2v.models.video import VideoClassifier
from zeroi2v.recipes import RECIPE_FILE, absolute_paths, write_recipe

LOG_FILE: Final = "log.jsonl"
LAST_FILE: Final = "last.safetensors"
BOARD_FOLDER: Final = "tensorboard"
RESUME_FILE: Final = "resume.pt"
PRECISIONS: Final = {None: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16"}


@dataclass(frozen=True)
class Run:
    """What a training run left behind."""

    folder: Path
    best_epoch: int
    best: float | None  # top-1 of the best epoch, or mAP; None without validation videos
    broken: Mapping[str, str]  # path -> reason of the videos left out
    epochs: int
    excluded: tuple[str, ...]  # paths of the videos that `train.exclude` left out
    needs_tower: bool = False  # the folder loads only where the weights of its tower can be had


def train(
    recipe: Recipe,
    dataset: VideoDataset,
    out: Path,
    *,
    resume: bool = False,
    processes: Processes | None = None,
    log: Log | None = None,
) -> Run:
    """Train on `dataset.train` and validate on `dataset.val`, writing a run folder.

    With `resume` a run that stopped goes on in its folder, and ends on a CPU bit for bit like a run that never stopped. Ctrl-C
    saves where the run stands and comes through as KeyboardInterrupt. A video that cannot be read raises its VideoError, or
    with `broken = "skip"` is left out and listed in `Run.broken`. On a CPU the same recipe and videos give the same weights.
    The `processes` of a group (`join_processes`) share every batch: `batch_size` counts the clips
    of all of them. Without `processes` this process trains alone, whatever launched it.

    ConfigError if `out` holds something else, or another training is running there.
    """
    processes = processes or Processes(best_device())
    log = log or Log(quiet=True)
    if not processes.is_first:
        log = Log(silent=True)
    recipe = absolute_paths(recipe)
    if not resume:
        require_empty(out)
    if recipe.train.tensorboard:
        require_tensorboard()
    excluded: list[Path] = []
    if recipe.train.exclude is not None:
        dataset, excluded = leave_out(dataset, Path(recipe.train.exclude))
    model = new_model(recipe, dataset, out if resume else None)
    torch.manual_seed(recipe.train.seed + processes.rank)  # dropout differs between processes
    training = Training(recipe, dataset, out, processes, model, log)
    with claimed(out, "another training") if processes.is_first else nullcontext():
        if resume:
            training.go_on()
        elif processes.is_first:
            require_empty(out)  # another training may have come and gone since
            training.begin()
        training.warn()
        processes.wait()
        training.run()
    position = training.position
    for path, reason in position.broken.items():
        log.warn(f"left out: {path}: {reason}")
    left_out = tuple(map(str, excluded))
    if left_out:
        listed = f"left out, as {recipe.train.exclude} lists them: {len(left_out)} videos"
        log.say(f"{listed}: {', '.join(left_out)}")
    return Run(
        folder=out,
        best_epoch=position.best_epoch,
        best=position.best if position.best >= 0 else None,
        broken=position.broken,
        epochs=position.epoch - 1,
        excluded=left_out,
        needs_tower=not model.keeps_tower,
    )


def new_model(recipe: Recipe, dataset: VideoDataset, resumed: Path | None) -> VideoClassifier:
    """The model of a run, with the weights that it starts from; the weights of a run that is resumed are in its state.

    ConfigError names a setting that does not fit.
    """
    torch.manual_seed(recipe.train.seed)
    config = recipe.model if resumed is None else model_recipe(resumed).model
    model = build_model(
        config,
        labels=dataset.classes,
        clip=recipe.clip,
        views=recipe.views,
        multi_label=recipe.data.multi_label,
    )
    if resumed is None and recipe.train.start_from is not None:
        start_from(model, recipe.train.start_from)
    check_spared(model.plan, model.tower, recipe.train)
    return model


class Training:
    """A run in progress: the model, what moves its weights, the videos, and how far it has come."""

    def __init__(
        self,
        recipe: Recipe,
        dataset: VideoDataset,
        out: Path,
        processes: Processes,
        model: VideoClassifier,
        log: Log,
    ) -> None:
        self.recipe, self.dataset, self.out = recipe, dataset, out
        self.processes, self.model, self.log = processes, model, log
        settings = recipe.train
        self.loader = self.new_loader(1)  # the number of batches is the same in every epoch
        is_sharded = settings.sharding == "full" and processes.size > 1
        self.learning = shard(model, processes.device) if is_sharded else model.to(processes.device)
        self.rate = settings.learning_rate * model.plan.strategy.learning_rate_share
        optimizer = build_optimizer(
            self.learning, learning_rate=self.rate, weight_decay=settings.weight_decay
        )
        wrapped = self.learning if is_sharded else processes.wrap(model)
        fp16 = settings.precision == "fp16"
        scaler = torch.amp.GradScaler(processes.device.type, enabled=fp16)
        self.learner = Learner(processes, wrapped, model.spec, optimizer, scaler, settings)
        self.state = TrainingState(
            out / RESUME_FILE,
            data=data_key(dataset.classes, dataset.train),
            model=model,
            learning=wrapped,
            parts={"optimizer": optimizer, "scaler": scaler},
        )
        self.position = Position()

    def new_loader(self, epoch: int) -> TrainLoader:
        """The batches of an epoch: in the first epochs clips may have fewer frames."""
        settings = self.recipe.train
        return train_loader(
            self.dataset.train,
            clip=self.recipe.clip_in_epoch(epoch),
            pixels=self.recipe.pixels,
            size=self.model.image_size,
            labels=self.dataset.classes,
            batch_size=settings.batch_size,
            seed=settings.seed,
            workers=worker_count(settings.workers),
            broken=settings.broken,
            multi_label=self.model.spec.multi_label,
            share=(self.processes.rank, self.processes.size),
        )

    def begin(self) -> None:
        """Write the folder, which loads from here on."""
        write_recipe(self.recipe, self.out / RECIPE_FILE)
        self.write_best({"epoch": 0}, epoch=0)

    def go_on(self) -> None:
        """Put everything back to where the run stood."""
        self.position = position = self.state.load(self.processes.rank, self.processes.size)
        if self.processes.is_first:
            keep_json_lines(self.out / LOG_FILE, position.epoch - 1)
        epochs = self.recipe.train.epochs
        if position.epoch > epochs:
            self.log.say(
                f"all {epochs} epochs are done; to train on, begin a run with --start-from {self.out}"
            )
        else:
            batches = f"{position.batch} of its {len(self.loader)} batches"
            self.log.say(f"going on in epoch {position.epoch}, after {batches}")

    def warn(self) -> None:
        """Say what is trained, and which settings have an effect that may surprise."""
        settings, dataset, model = self.recipe.train, self.dataset, self.recipe.model
        facts = self.model.stored().facts
        self.log.say(
            f"{len(dataset.train)} training and {len(dataset.val)} validation videos, {len(dataset.classes)} classes; "
            f"{model.tower}, {model.strategy}: {facts.trained:,} of {facts.parameters:,} parameters train"
        )
        if settings.warmup_epochs >= settings.epochs:
            self.log.warn(
                f"the warm-up of {settings.warmup_epochs:g} epochs outlasts the training; see train.warmup_epochs"
            )
        if settings.few_frames_epochs >= settings.epochs:
            self.log.warn(
                f"no epoch of {settings.epochs} trains on all frames of a clip; see train.few_frames_epochs"
            )
        if not dataset.val:
            self.log.warn(
                "there are no videos to validate on: the last epoch is taken for the best"
            )

    def run(self) -> None:
        """The epochs that are left."""
        position, settings, writes = self.position, self.recipe.train, self.processes.is_first
        board = None
        if writes and settings.tensorboard:
            board = new_board(self.out / BOARD_FOLDER, position.epoch)
        try:
            while position.epoch <= settings.epochs and not self.out_of_patience():
                self.train_epoch()
                with gathered(self.learner.model, self.model):
                    entry = self.close_epoch()
                if board:
                    write_figures(board, entry)
                self.state.save(position, writes=writes)
        except KeyboardInterrupt:
            self.interrupted()
            raise
        finally:
            if board:
                board.close()

    def interrupted(self) -> None:
        """Save where the run stands, and say how to go on."""
        position = self.position
        if self.processes.size == 1:
            try:
                self.state.save(position, writes=True)
            except ZeroI2VError as error:
                self.log.warn(f"{error}; {self.state.path} stays as it was")
        best = (
            f"the best epoch ({position.best_epoch})"
            if position.best_epoch
            else "no finished epoch yet"
        )
        self.log.warn(
            f"interrupted in epoch {position.epoch}; {self.out} holds {best}; "
            "to go on: the same DATA and --out, and --resume"
        )

    def out_of_patience(self) -> bool:
        """Whether too many validations have passed without a better one."""
        patience = self.recipe.train.patience
        return bool(patience) and self.position.validations_since_best >= patience

    def learning_rate(self, step: int) -> float:
        """The learning rate of a step, counted from 0 over all epochs."""
        settings, batches = self.recipe.train, len(self.loader)
        return self.rate * learning_rate_share(
            step,
            steps=settings.epochs * batches,
            warmup_steps=round(settings.warmup_epochs * batches),
            warmup_start=settings.warmup_start,
        )

    def train_epoch(self) -> None:
        """The batches that are left of the epoch in progress."""
        position, settings, processes = self.position, self.recipe.train, self.processes
        if self.recipe.clip_in_epoch(position.epoch).frames != self.loader.clip.frames:
            self.loader = self.new_loader(position.epoch)
        self.learner.model.train()
        saved = start = time.perf_counter()
        seconds, batches = position.seconds, len(self.loader)
        tracked = self.log.track(
            self.loader.epoch(position.epoch, start=position.batch),
            total=batches,
            done=position.batch,
            title=f"epoch {position.epoch}/{settings.epochs}",
            unit="clips",
            per_item=settings.batch_size,
            memory=lambda: peak_memory(processes.device),
        )
        with spared(self.learning, settings):
            for clips, labels in tracked:
                rate = self.learning_rate((position.epoch - 1) * batches + position.batch)
                step = take_step(self.learner, clips, labels, rate)
                position.add(step.loss, step.clips, skipped=step.skipped)
                position.broken |= self.loader.broken
                position.seconds = seconds + time.perf_counter() - start
                due = time.perf_counter() - saved > 60 * settings.save_every_minutes
                if settings.save_every_minutes and processes.agree(due):
                    self.state.save(position, writes=processes.is_first)
                    saved = time.perf_counter()

    def close_epoch(self) -> dict[str, Any]:
        """Validate, write the weights and the line of the log, which is returned, and go on to the next epoch."""
        position, model = self.position, self.model
        writes, epoch = self.processes.is_first, position.epoch
        self.require_progress()
        if writes:
            write_weights(self.out / LAST_FILE, model.spec, model.stored(), {"epoch": str(epoch)})
        entry: dict[str, Any] = {
            "epoch": epoch,
            "loss": position.loss / position.clips,
            "learning_rate": self.learning_rate(epoch * len(self.loader)),
            "clips": position.clips,
            "precision": PRECISIONS[self.learner.dtype],
            "device": self.processes.device.type,
            "processes": self.processes.size,
        }
        if position.skipped:
            entry["skipped_steps"] = position.skipped
        validation = self.validate()
        if validation:
            entry |= validation.figures
        if self.is_better(validation):
            results = {} if validation is None else {**card_results(validation), "epoch": epoch}
            if writes:
                self.write_best(results, epoch=epoch)
            position.best_epoch = epoch
        self.say_epoch(entry, validation)
        memory = peak_memory(self.processes.device)
        entry |= {"seconds": round(position.seconds, 3), "peak_memory": memory}
        if writes:
            append_json(self.out / LOG_FILE, entry)
        position.next_epoch()
        return entry

    def require_progress(self) -> None:
        """An error if nothing was learnt in the epoch in progress, or nothing that can be gone on from."""
        position = self.position
        if position.skipped and position.skipped == position.batch:
            raise ZeroI2VError(
                f"epoch {position.epoch}: fp16 skipped all {position.batch} steps, because every gradient overflowed; "
                "train with train.precision bf16 or fp32"
            )
        if not position.clips:
            raise DatasetError("none of the training videos can be read")
        require_finite(position, self.model)

    def validate(self) -> Evaluation | None:
        """The evaluation of the epoch in progress; None if there is none to be made."""
        position, settings = self.position, self.recipe.train
        due = position.epoch % settings.validate_every == 0 or position.epoch == settings.epochs
        if not self.dataset.val or not due:
            return None
        evaluation = evaluate(
            self.model,
            self.dataset.val,
            batch_size=settings.batch_size,
            workers=worker_count(settings.workers),
            log=self.log,
        )
        if evaluation.skipped and settings.broken == "stop":
            raise evaluation.skipped[0]
        position.broken |= {error.path: error.reason for error in evaluation.skipped}
        return evaluation

    def is_better(self, evaluation: Evaluation | None) -> bool:
        """Whether the epoch in progress is the best so far; the position remembers its figure."""
        position = self.position
        if evaluation is None:
            return not self.dataset.val or position.best < 0
        figure = next(iter(evaluation.figures.values()))
        position.validations_since_best = (
            0 if figure > position.best else position.validations_since_best + 1
        )
        is_better = figure >= position.best
        position.best = max(position.best, figure)
        return is_better

    def write_best(self, results: Mapping[str, float], *, epoch: int) -> None:
        """Write the model as it is now as the model of the best epoch."""
        spec = dataclasses.replace(self.model.spec, results=results)
        write_model(self.out, spec, self.model.stored(), {"epoch": str(epoch)})

    def say_epoch(self, entry: Mapping[str, Any], evaluation: Evaluation | None) -> None:
        """One line for people."""
        position, text = self.position, ""
        if evaluation:
            name, figure = next(iter(evaluation.figures.items()))
            text = f", validation {FIGURE_NAMES[name]} {figure:.1%}"
        if position.skipped:
            text += f", {position.skipped} of {position.batch} steps skipped (fp16 overflow)"
        memory = peak_memory(self.processes.device) / 2**30
        self.log.say(
            f"epoch {position.epoch}/{self.recipe.train.epochs}: loss {entry['loss']:.4f}{text}, "
            f"{position.clips / position.seconds:.0f} clips/s, {memory:.1f} GiB"
        )


def card_results(evaluation: Evaluation) -> dict[str, float]:
    """What the card of a model says of a validation."""
    figures = evaluation.figures.items()
    named = {f"validation {FIGURE_NAMES[name]}": value for name, value in figures}
    return {**named, "validation videos": len(evaluation.videos)}


def require_empty(folder: Path) -> None:
    """ConfigError unless a folder is missing or empty, or holds a run that ended before there was anything to go on from."""
    if not folder.exists():
        return
    own = {RECIPE_FILE, CONFIG_FILE, CARD_FILE, WEIGHTS_FILE, LAST_FILE, BOARD_FOLDER}
    names = (
        {path.name for path in folder.iterdir() if not is_partial(path)}
        if folder.is_dir()
        else None
    )
    if names is not None and (not names or RECIPE_FILE in names <= own):
        return
    raise ConfigError(
        f"{folder}: already there and not empty; choose another --out, remove it, or go on with --resume"
    )
