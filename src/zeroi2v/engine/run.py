"""How does a model learn from a folder of videos? One run: epochs of AdamW, a validation after each, a folder that always loads.

RUN/recipe.toml        every setting of the run                 RUN/log.jsonl   one line per epoch
RUN/config.json, RUN/model.safetensors, RUN/README.md   the best epoch's model, what `zeroi2v.load(RUN)` gives
RUN/last.safetensors   the last epoch's weights                 RUN/resume.pt   where the run stands (resume.py)
RUN/tensorboard        the figures of the log, if `train.tensorboard`
"""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from zeroi2v.config import Recipe, TrainConfig
from zeroi2v.data.datasets import VideoDataset
from zeroi2v.data.exclude import leave_out
from zeroi2v.data.loader import TrainLoader, train_loader
from zeroi2v.data.transforms import normalise
from zeroi2v.engine.board import new_board, require_tensorboard, write_figures
from zeroi2v.engine.optim import autocast_dtype, build_optimizer, learning_rate_share, summed_loss
from zeroi2v.engine.processes import join_processes
from zeroi2v.engine.resume import Position, TrainingState, data_key
from zeroi2v.engine.shard import gathered, shard
from zeroi2v.errors import ConfigError, DatasetError, ZeroI2VError
from zeroi2v.files import append_json, keep_json_lines
from zeroi2v.inference.evaluate import FIGURE_NAMES, Evaluation, evaluate
from zeroi2v.log import Log
from zeroi2v.machine import from_all, peak_memory, worker_count
from zeroi2v.models.checkpoints import (
    CARD_FILE,
    CONFIG_FILE,
    WEIGHTS_FILE,
    start_from,
    write_model,
    write_weights,
)
from zeroi2v.models.video import VideoClassifier, build_model
from zeroi2v.recipes import write_recipe

RECIPE_FILE: Final = "recipe.toml"
LOG_FILE: Final = "log.jsonl"
LAST_FILE: Final = "last.safetensors"
BOARD_FOLDER: Final = "tensorboard"
RESUME_FILE: Final = "resume.pt"


@dataclass(frozen=True)
class Run:
    """What a training run left behind."""

    folder: Path
    best_epoch: int
    best: (
        float | None
    )  # top-1 of the best epoch, or mAP where videos have several labels; None without validation videos
    broken: Mapping[str, str]  # path -> reason of the videos left out
    epochs: int
    excluded: tuple[str, ...]  # paths of the videos that `train.exclude` left out


def train(
    recipe: Recipe,
    dataset: VideoDataset,
    out: Path,
    *,
    resume: bool = False,
    log: Log | None = None,
) -> Run:
    """Train on `dataset.train` and validate on `dataset.val`, writing a run folder.

    With `resume` a run that stopped goes on in its folder, and ends on a CPU bit for bit like one that never stopped. Ctrl-C saves
    where the run stands and comes through as KeyboardInterrupt. A video that cannot be read raises its VideoError, or with
    `broken = "skip"` is left out and listed in `Run.broken`. On a CPU the same recipe and videos give the same weights. Started by
    torchrun or `accelerate launch`, the processes share every batch: `batch_size` counts the clips of them all.
    """
    processes = join_processes()
    writes = processes.is_main_process
    log = log if log is not None and writes else Log(quiet=True)
    settings = recipe.train
    if not resume and out.exists() and not _can_start_in(out):
        raise ConfigError(
            f"{out}: already there and not empty; choose another --out, remove it, or go on with --resume"
        )
    if settings.tensorboard:
        require_tensorboard()
    excluded: list[Path] = []
    if settings.exclude is not None:
        dataset, excluded = leave_out(dataset, Path(settings.exclude))
    torch.manual_seed(settings.seed)
    model = build_model(recipe.model, num_classes=len(dataset.classes), frames=recipe.clip.frames)
    model.labels, model.clip, model.views = dataset.classes, recipe.clip, recipe.views
    model.multi_label = recipe.data.multi_label
    if settings.start_from is not None:
        start_from(model, settings.start_from)
    set_up(model, recipe)  # what cannot be is said before anything is written
    torch.manual_seed(settings.seed + processes.process_index)  # dropout differs between processes

    def loader_of(epoch: int) -> TrainLoader:
        return train_loader(
            dataset.train,
            clip=recipe.clip_in_epoch(epoch),
            pixels=recipe.pixels,
            size=model.image_size,
            labels=dataset.classes,
            batch_size=settings.batch_size,
            seed=settings.seed,
            workers=worker_count(settings.workers),
            broken=settings.broken,
            multi_label=model.multi_label,
            share=(processes.process_index, processes.num_processes),
        )

    loader = loader_of(1)  # the number of batches is the same in every epoch
    is_sharded = settings.sharding == "full" and processes.num_processes > 1
    learning = shard(model, processes.device) if is_sharded else model.to(processes.device)
    rate = settings.learning_rate * model.strategy.learning_rate_share
    optimizer = processes.prepare(
        build_optimizer(learning, learning_rate=rate, weight_decay=settings.weight_decay)
    )
    wrapped = learning if is_sharded else processes.prepare(model)
    steps, warmup_steps = settings.epochs * len(loader), round(settings.warmup_epochs * len(loader))
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer,
        lambda step: learning_rate_share(
            step, steps=steps, warmup_steps=warmup_steps, warmup_start=settings.warmup_start
        ),
    )
    scaler = torch.amp.GradScaler(processes.device.type, enabled=settings.precision == "fp16")
    state = TrainingState(
        out / RESUME_FILE,
        data=data_key(dataset.classes, dataset.train),
        model=model,
        learning=wrapped,
        parts={"optimizer": optimizer, "schedule": schedule, "scaler": scaler},
    )
    total = sum(parameter.numel() for parameter in model.parameters())
    trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    log.say(
        f"{len(dataset.train)} training and {len(dataset.val)} validation videos, {len(dataset.classes)} classes; "
        f"{recipe.model.tower}, {recipe.model.strategy}: {trained:,} of {total:,} parameters train"
    )
    position = Position()
    if resume:
        position = state.load(processes.process_index, processes.num_processes)
        if writes:
            keep_json_lines(out / LOG_FILE, position.epoch - 1)
        if position.epoch > settings.epochs:
            log.say(
                f"all {settings.epochs} epochs are done; to train on, begin a run with --start-from {out}"
            )
        else:
            log.say(
                f"going on in epoch {position.epoch}, after {position.batch} of its {len(loader)} batches"
            )
    elif writes:
        _make_folder(out)
        write_recipe(recipe, out / RECIPE_FILE)
        model.results = {"epoch": 0}
        write_model(model, out, {"epoch": "0"})  # from here on the folder loads
    if settings.warmup_epochs >= settings.epochs:
        log.warn(
            f"the warm-up of {settings.warmup_epochs:g} epochs outlasts the training; see train.warmup_epochs"
        )
    if settings.few_frames_epochs >= settings.epochs:
        log.warn(
            f"no epoch of {settings.epochs} trains on all frames of a clip; see train.few_frames_epochs"
        )
    if not dataset.val:
        log.warn("there are no videos to validate on: the last epoch is taken for the best")
    processes.wait_for_everyone()
    learner = _Learner(processes, wrapped, optimizer, schedule, scaler, settings)
    board = (
        new_board(out / BOARD_FOLDER, position.epoch) if writes and settings.tensorboard else None
    )
    try:
        while position.epoch <= settings.epochs and not _out_of_patience(position, settings):
            frames = recipe.clip_in_epoch(position.epoch).frames
            if frames != loader.clip.frames:
                loader = loader_of(position.epoch)
            learning.take_frames(frames)
            _one_epoch(learner, loader, position, state, log)
            with gathered(wrapped, model):
                entry = _close_epoch(learner, model, dataset, out, position, log)
            if board:
                write_figures(board, entry)
            state.save(position, writes=writes)
    except KeyboardInterrupt:
        if processes.num_processes == 1:
            state.save(position, writes=writes)
        held = (
            f"the best epoch ({position.best_epoch})"
            if position.best_epoch
            else "no finished epoch yet"
        )
        log.warn(
            f"interrupted in epoch {position.epoch}; {out} holds {held}; to go on: the same DATA and --out, and --resume"
        )
        raise
    finally:
        if board:
            board.close()
    for path, reason in position.broken.items():
        log.warn(f"left out: {path}: {reason}")
    left_out = tuple(map(str, excluded))
    if left_out:
        log.say(
            f"left out, as {settings.exclude} lists them: {len(left_out)} videos: {', '.join(left_out)}"
        )
    return Run(
        folder=out,
        best_epoch=position.best_epoch,
        best=position.best if position.best >= 0 else None,
        broken=position.broken,
        epochs=position.epoch - 1,
        excluded=left_out,
    )


def set_up(model: VideoClassifier, recipe: Recipe) -> None:
    """Let the model drop patches, checkpoint its blocks and take the first epoch's frames. ConfigError if it cannot."""
    if recipe.train.token_share < 1:
        model.drop_patches(recipe.train.token_share)
    if recipe.train.checkpointing:
        model.checkpoint_blocks()
    model.take_frames(recipe.clip_in_epoch(1).frames)


@dataclass(frozen=True)
class _Learner:
    """What takes a step. `model` is the VideoClassifier, or what shares its gradients among the processes."""

    processes: Accelerator
    model: nn.Module
    optimizer: torch.optim.Optimizer
    schedule: torch.optim.lr_scheduler.LRScheduler
    scaler: torch.amp.GradScaler
    settings: TrainConfig


def _one_epoch(
    learner: _Learner, loader: TrainLoader, position: Position, state: TrainingState, log: Log
) -> None:
    """The rest of an epoch's batches, counted in `position`."""
    settings, writes = learner.settings, learner.processes.is_main_process
    learner.model.train()
    saved = start = time.perf_counter()
    batches = log.track(
        loader.epoch(position.epoch, start=position.batch),
        total=len(loader),
        done=position.batch,
        title=f"epoch {position.epoch}/{settings.epochs}",
        unit="clips",
        per_item=settings.batch_size,
        memory=lambda: peak_memory(learner.processes.device),
    )
    seconds = position.seconds
    for clips, labels in batches:
        loss, count = take_step(learner, clips, labels)
        position.loss += loss
        position.clips += count
        position.batch += 1
        position.broken |= loader.broken
        position.seconds = seconds + time.perf_counter() - start
        if settings.save_every_minutes and _agreed(
            learner.processes, time.perf_counter() - saved > 60 * settings.save_every_minutes
        ):
            state.save(position, writes=writes)
            saved = time.perf_counter()


def take_step(learner: _Learner, clips: Tensor, labels: Tensor) -> tuple[float, int]:
    """One step on this process's part of a batch, uint8 (b, F, 3, S, S): the sum of the losses of all processes' clips, and their number.

    The loss is the mean over all of them, whatever the number of processes and of parts (`accumulate`).
    """
    processes, settings = learner.processes, learner.settings
    count = _sum(processes, len(labels))
    if not count:  # every video of the batch was broken
        return 0.0, 0
    model = processes.unwrap_model(learner.model)
    mean, std = model.normalisation
    dtype = autocast_dtype(settings.precision, processes.device)
    learner.optimizer.zero_grad(set_to_none=True)
    total = torch.zeros((), dtype=torch.float64)
    weight = 1.0
    if not len(labels):  # all processes must take part: a clip that counts nothing
        clips, labels = (
            torch.zeros(1, model.frames, 3, model.image_size, model.image_size),
            torch.zeros(1).long(),
        )
        weight = 0.0
    size = -(-len(labels) // settings.accumulate)
    parts = list(zip(clips.split(size), labels.split(size), strict=True))
    for number, (pixels, targets) in enumerate(parts, start=1):
        waits = (
            processes.no_sync(learner.model) if number < len(parts) else contextlib.nullcontext()
        )
        with waits:
            with torch.autocast(
                processes.device.type, dtype or torch.bfloat16, enabled=dtype is not None
            ):
                logits = learner.model(normalise(pixels.to(processes.device), mean, std))
            losses = summed_loss(
                logits.float(),
                targets.to(processes.device),
                label_smoothing=settings.label_smoothing,
            )
            loss = losses * (
                weight * processes.num_processes / count
            )  # gradients are averaged over processes
            learner.scaler.scale(loss).backward()
            total += weight * losses.detach().double().cpu()
    if settings.gradient_clip:
        learner.scaler.unscale_(learner.optimizer)
        nn.utils.clip_grad_norm_(learner.model.parameters(), settings.gradient_clip)
    learner.scaler.step(learner.optimizer)
    learner.scaler.update()
    learner.schedule.step()
    return _sum(processes, total.item()), count


def _close_epoch(
    learner: _Learner,
    model: VideoClassifier,
    dataset: VideoDataset,
    out: Path,
    position: Position,
    log: Log,
) -> dict[str, Any]:
    """Validate, write the weights and the log line of the epoch in progress, which is returned, and go on to the next."""
    settings, writes, epoch = learner.settings, learner.processes.is_main_process, position.epoch
    if not position.clips:
        raise DatasetError("none of the training videos can be read")
    loss = position.loss / position.clips
    if not math.isfinite(loss):
        raise ZeroI2VError(
            f"the loss is {loss}: train with a lower train.learning_rate than {settings.learning_rate}"
        )
    dtype = autocast_dtype(settings.precision, learner.processes.device)
    entry: dict[str, Any] = {
        "epoch": epoch,
        "loss": loss,
        "learning_rate": learner.schedule.get_last_lr()[0],
        "clips": position.clips,
        "precision": {None: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16"}[dtype],
        "device": learner.processes.device.type,
        "processes": learner.processes.num_processes,
    }
    model.take_frames(model.clip.frames)
    if writes:
        write_weights(model, out / LAST_FILE, {"epoch": str(epoch)})
    found, name, figure = None, "", -1.0
    if dataset.val and (epoch % settings.validate_every == 0 or epoch == settings.epochs):
        found = evaluate(
            model,
            dataset.val,
            batch_size=settings.batch_size,
            workers=worker_count(settings.workers),
            log=log,
        )
        if found.skipped and settings.broken == "stop":
            raise found.skipped[0]
        position.broken |= {error.path: error.reason for error in found.skipped}
        entry |= found.figures
        name, figure = next(iter(found.figures.items()))
    if found is None:
        better = not dataset.val or position.best < 0
    else:
        better = figure >= position.best
        position.validations_since_best = (
            0 if figure > position.best else position.validations_since_best + 1
        )
    if better:
        model.results = {} if found is None else {**figures(found), "epoch": epoch}
        if writes:
            write_model(model, out, {"epoch": str(epoch)})
        position.best_epoch = epoch
        position.best = max(position.best, figure)
    validated = f", validation {FIGURE_NAMES[name]} {figure:.1%}" if found else ""
    log.say(
        f"epoch {epoch}/{settings.epochs}: loss {loss:.4f}{validated}, {position.clips / position.seconds:.0f} clips/s, "
        f"{peak_memory(learner.processes.device) / 2**30:.1f} GiB"
    )
    entry |= {
        "seconds": round(position.seconds, 3),
        "peak_memory": peak_memory(learner.processes.device),
    }
    if writes:
        append_json(out / LOG_FILE, entry)
    position.epoch, position.batch, position.loss, position.clips, position.seconds = (
        epoch + 1,
        0,
        0.0,
        0,
        0.0,
    )
    return entry


def _out_of_patience(position: Position, settings: TrainConfig) -> bool:
    return bool(settings.patience) and position.validations_since_best >= settings.patience


def _sum(processes: Accelerator, value: float) -> Any:
    """The sum of a number over the processes."""
    return value if processes.num_processes == 1 else sum(from_all([value]))


def _agreed(processes: Accelerator, wanted: bool) -> bool:
    """What the first process wants, which all must do."""
    return wanted if processes.num_processes == 1 else bool(from_all([wanted])[0])


def figures(found: Evaluation) -> dict[str, float]:
    """What a model's card says of a validation."""
    named = {f"validation {FIGURE_NAMES[name]}": value for name, value in found.figures.items()}
    return {**named, "validation videos": len(found.videos)}


def _can_start_in(folder: Path) -> bool:
    """Whether a folder is empty, or holds a run that ended before it had anything to go on from."""
    if not folder.is_dir():
        return False
    names = {
        path.name for path in folder.iterdir() if not path.name.endswith(".partial")
    }  # a crash while writing leaves one
    return not names or RECIPE_FILE in names <= {
        RECIPE_FILE,
        CONFIG_FILE,
        CARD_FILE,
        WEIGHTS_FILE,
        LAST_FILE,
        BOARD_FOLDER,
    }


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"{folder}: cannot make the folder: {error.strerror}") from error
