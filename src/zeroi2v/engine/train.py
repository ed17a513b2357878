"""How does a model learn from a folder of videos? One run: epochs of AdamW, a validation after each, a folder that always loads.

RUN/recipe.toml        every setting of the run                 RUN/log.jsonl   one line per epoch
RUN/config.json, RUN/model.safetensors, RUN/README.md   the best epoch's model, what `zeroi2v.load(RUN)` gives
RUN/last.safetensors   the last epoch's weights
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zeroi2v.config import Recipe, TrainConfig, write_recipe
from zeroi2v.data.datasets import VideoDataset
from zeroi2v.data.exclude import leave_out
from zeroi2v.data.loader import train_loader
from zeroi2v.data.transforms import normalise
from zeroi2v.engine.evaluate import Evaluation, best_device, evaluate
from zeroi2v.engine.log import Log, append_json
from zeroi2v.engine.optim import autocast_dtype, build_optimizer, learning_rate_share
from zeroi2v.errors import ConfigError, DatasetError, ZeroI2VError
from zeroi2v.models.checkpoints import CARD_FILE, CONFIG_FILE, WEIGHTS_FILE, write_model, write_weights
from zeroi2v.models.video import VideoClassifier, build_model

RECIPE_FILE: Final = "recipe.toml"
LOG_FILE: Final = "log.jsonl"
LAST_FILE: Final = "last.safetensors"


@dataclass(frozen=True)
class Run:
    """What a training run left behind."""

    folder: Path
    best_epoch: int
    best: Evaluation | None  # of the best epoch; None without validation videos
    broken: Mapping[str, str]  # path -> reason of the videos left out
    epochs: int
    excluded: tuple[str, ...]  # paths of the videos that `train.exclude` left out


def train(recipe: Recipe, dataset: VideoDataset, out: Path, *, log: Log | None = None) -> Run:
    """Train on `dataset.train` and validate on `dataset.val`, writing a run folder.

    Ctrl-C saves the weights and comes through as KeyboardInterrupt. A video that cannot be read raises its VideoError, or with
    `broken = "skip"` is left out and listed in `Run.broken`. On a CPU the same recipe and videos give the same weights.
    """
    log = log or Log(quiet=True)
    settings = recipe.train
    if out.exists() and not _can_start_in(out):
        raise ConfigError(f"{out}: already there and not empty; choose another --out, or remove it")
    excluded: list[Path] = []
    if settings.exclude is not None:
        dataset, excluded = leave_out(dataset, Path(settings.exclude))
    device = best_device()
    torch.manual_seed(settings.seed)
    model = build_model(recipe.model, num_classes=len(dataset.classes), frames=recipe.clip.frames).to(device)
    model.labels, model.clip, model.views = dataset.classes, recipe.clip, recipe.views
    workers = worker_count(settings.workers)
    loader = train_loader(
        dataset.train,
        clip=recipe.clip,
        pixels=recipe.pixels,
        size=model.image_size,
        labels=dataset.classes,
        batch_size=settings.batch_size,
        seed=settings.seed,
        workers=workers,
        broken=settings.broken,
    )
    steps = settings.epochs * len(loader)
    warmup_steps = round(settings.warmup_epochs * len(loader))
    rate = settings.learning_rate * model.strategy.learning_rate_share
    optimizer = build_optimizer(model, learning_rate=rate, weight_decay=settings.weight_decay)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer,
        lambda step: learning_rate_share(
            step, steps=steps, warmup_steps=warmup_steps, warmup_start=settings.warmup_start
        ),
    )
    total = sum(parameter.numel() for parameter in model.parameters())
    trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    log.say(
        f"{len(dataset.train)} training and {len(dataset.val)} validation videos, {len(dataset.classes)} classes; "
        f"{recipe.model.tower}, {recipe.model.strategy}: {trained:,} of {total:,} parameters train"
    )
    _make_folder(out)
    write_recipe(recipe, out / RECIPE_FILE)
    write_model(model, out, {"epoch": "0"})  # from here on the folder loads

    dtype = autocast_dtype(settings.precision, device)
    best: Evaluation | None = None
    best_epoch = completed = 0
    broken: dict[str, str] = {}
    try:
        for epoch in range(1, settings.epochs + 1):
            start = time.perf_counter()
            batches = log.track(
                loader.epoch(epoch),
                total=len(loader),
                title=f"epoch {epoch}/{settings.epochs}",
                unit="clips",
                per_item=settings.batch_size,
            )
            loss, clips = train_epoch(model, batches, optimizer, schedule, settings, dtype)
            entry: dict[str, Any] = {
                "epoch": epoch,
                "loss": loss,
                "learning_rate": schedule.get_last_lr()[0],
                "clips": clips,
                "precision": "fp32" if dtype is None else "bf16",
                "device": device.type,
            }
            seconds = time.perf_counter() - start
            found = None
            if dataset.val and (epoch % settings.validate_every == 0 or epoch == settings.epochs):
                found = evaluate(model, dataset.val, batch_size=settings.batch_size, workers=workers, log=log)
                if found.skipped and settings.broken == "stop":
                    raise found.skipped[0]
                broken |= {error.path: error.reason for error in found.skipped}
                entry |= {"top1": found.top(1), "top5": found.top(5)}
            write_weights(model, out / LAST_FILE, {"epoch": str(epoch)})
            if best is None or (found is not None and found.top(1) >= best.top(1)):
                model.results = {} if found is None else {**figures(found), "epoch": epoch}
                write_model(model, out, {"epoch": str(epoch)})
                best, best_epoch = found or best, epoch
            completed = epoch
            append_json(out / LOG_FILE, {**entry, "seconds": round(seconds, 3)})
            validated = f", validation top-1 {found.top(1):.1%}" if found else ""
            log.say(f"epoch {epoch}/{settings.epochs}: loss {loss:.4f}{validated}, {clips / seconds:.0f} clips/s")
    except KeyboardInterrupt:
        write_weights(model, out / LAST_FILE, {"epoch": str(completed), "interrupted": "true"})
        log.warn(
            f"interrupted in epoch {completed + 1}; {out} holds the best epoch ({best_epoch}) and the last weights"
        )
        raise
    broken |= loader.broken
    for path, reason in broken.items():
        log.warn(f"left out: {path}: {reason}")
    left_out = tuple(map(str, excluded))
    if left_out:
        log.say(f"left out, as {settings.exclude} lists them: {len(left_out)} videos: {', '.join(left_out)}")
    return Run(folder=out, best_epoch=best_epoch, best=best, broken=broken, epochs=completed, excluded=left_out)


def train_epoch(
    model: VideoClassifier,
    batches: Iterable[tuple[Tensor, Tensor]],
    optimizer: torch.optim.Optimizer,
    schedule: torch.optim.lr_scheduler.LRScheduler,
    settings: TrainConfig,
    dtype: torch.dtype | None,
) -> tuple[float, int]:
    """One pass over the batches, matrix products in `dtype` (None: fp32): the mean loss and how many clips there were.

    ZeroI2VError if the loss is no number.
    """
    device = next(model.parameters()).device
    mean, std = model.normalisation
    model.train()
    total, clips = torch.zeros((), dtype=torch.float64, device=device), 0
    for uint8, labels in batches:
        with torch.autocast(device.type, dtype or torch.bfloat16, enabled=dtype is not None):
            logits = model(normalise(uint8.to(device), mean, std))
        loss = F.cross_entropy(logits.float(), labels.to(device), label_smoothing=settings.label_smoothing)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        if settings.gradient_clip:
            nn.utils.clip_grad_norm_(model.parameters(), settings.gradient_clip)
        optimizer.step()
        schedule.step()
        total += loss.detach() * len(labels)
        clips += len(labels)
    if not clips:
        raise DatasetError("none of the training videos can be read")
    mean_loss = (total / clips).item()
    if not math.isfinite(mean_loss):
        raise ZeroI2VError(
            f"the loss is {mean_loss}: train with a lower train.learning_rate than {settings.learning_rate}"
        )
    return mean_loss, clips


def figures(found: Evaluation) -> dict[str, float]:
    """What a model's card says of a validation."""
    return {"validation top-1": found.top(1), "validation top-5": found.top(5), "validation videos": len(found.videos)}


def worker_count(asked: int) -> int:
    """-1: a decoding process for each core beyond the first, at most 8."""
    return asked if asked >= 0 else min(8, (os.cpu_count() or 1) - 1)


def _can_start_in(folder: Path) -> bool:
    """Whether a folder is empty, or holds a run that ended before its first epoch."""
    return folder.is_dir() and {path.name for path in folder.iterdir()} <= {
        RECIPE_FILE,
        CONFIG_FILE,
        CARD_FILE,
        WEIGHTS_FILE,
    }


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"{folder}: cannot make the folder: {error.strerror}") from error
