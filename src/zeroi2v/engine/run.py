"""How does a model learn from videos? A run trains for some epochs and validates after each epoch.

`folder.py` says what the folder of a run holds, `step.py` how the model learns from one batch.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor

from zeroi2v.config import REAL_TOWERS, Recipe
from zeroi2v.data.datasets import VideoDataset
from zeroi2v.data.exclude import without_listed
from zeroi2v.data.flip_pairs import point_out_mirror_names, point_out_reversals
from zeroi2v.data.loader import TrainLoader, train_loader
from zeroi2v.data.spellings import canonical
from zeroi2v.engine.captured import CapturedSteps, can_capture, uncaptured_reason
from zeroi2v.engine.cast import cast_weights
from zeroi2v.engine.folder import RESUME_FILE, RunFolder, require_tensorboard
from zeroi2v.engine.interrupt import undivided
from zeroi2v.engine.optim import build_optimizer, fit_device, learning_rate_share
from zeroi2v.engine.processes import Processes
from zeroi2v.engine.resume import Position, TrainingState, data_key, require_finite
from zeroi2v.engine.shard import gathered, shard
from zeroi2v.engine.spare import check_spared, spared
from zeroi2v.engine.step import Learner, Step, take_step
from zeroi2v.errors import (
    CheckpointError,
    ConfigError,
    DatasetError,
    ZeroI2VError,
    first_names,
    how_many,
)
from zeroi2v.inference.evaluate import FIGURE_NAMES, Evaluation, evaluate
from zeroi2v.log import Log
from zeroi2v.machine import best_device, peak_memory, worker_count
from zeroi2v.models.build import build_model
from zeroi2v.models.loading import model_recipe, start_from
from zeroi2v.models.towers import TINY_NAME
from zeroi2v.models.video import VideoClassifier
from zeroi2v.recipes import absolute_paths

TOY_NOTE: Final = (
    f"{TINY_NAME} is a toy for the quickstart and has seen only drawings; for videos of your own, "
    f"take a tower that was trained on photographs: {' or '.join(REAL_TOWERS)}"
)
PRECISIONS: Final = {None: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16"}


@dataclass(frozen=True)
class Run:
    """The result of a training run."""

    folder: Path
    best_epoch: int
    best: float | None  # top-1 or mAP of the best epoch; None without validation videos
    broken: Mapping[str, str]  # path -> reason, of videos that cannot be read and were left out
    epochs: int  # finished epochs
    excluded: tuple[str, ...]  # paths of videos that `train.exclude` left out
    needs_tower: bool = False  # loading the folder needs the tower's weights from elsewhere


def train(
    recipe: Recipe,
    dataset: VideoDataset,
    out: Path,
    *,
    resume: bool = False,
    processes: Processes | None = None,
    log: Log | None = None,
) -> Run:
    """Train a model on `dataset.train`, validate it on `dataset.val`, and write a run folder `out`.

    On a CPU the same recipe and videos give the same weights. With `resume`, a run that stopped
    goes on in its folder. On a CPU the resumed run ends, bit for bit, with the weights of a run
    that never stopped. Ctrl-C saves the state of the run and raises KeyboardInterrupt.

    A video that cannot be read raises VideoError. With `train.broken = "skip"` the video is
    left out instead, and listed in `Run.broken`.

    The `processes` of a group (`join_processes`) share every batch; `train.batch_size` counts the
    clips of all processes. Without `processes` this process trains by itself, even in a
    group.

    ConfigError if `out` holds other files, or if another training uses `out` now.
    """
    processes = processes or Processes(best_device())
    log = (log or Log(quiet=True)) if processes.is_first else Log(silent=True)
    recipe = absolute_paths(recipe)
    if recipe.data.directions != dataset.directions:
        raise ConfigError(
            f"data.directions is {str(recipe.data.directions).lower()} in the recipe, and "
            f"{str(dataset.directions).lower()} where {dataset.source} was opened; "
            "give open_dataset the recipe's [data]"
        )
    left_out = {*map(canonical, recipe.data.leave_out)}
    kept = [name for name in dataset.classes if canonical(name) in left_out]
    if kept:
        raise ConfigError(
            f"data.leave_out of the recipe names {first_names(kept)}, and {dataset.source} was "
            "opened with these classes; give open_dataset the recipe's [data]"
        )
    folder = RunFolder(out, writes=processes.is_first)
    if not resume:
        folder.require_free()
    if recipe.train.tensorboard:
        require_tensorboard()
    excluded: list[Path] = []
    if recipe.train.exclude is not None:
        dataset, excluded = without_listed(dataset, Path(recipe.train.exclude))
    training = Training(recipe, dataset, excluded, folder, resume, processes, log)
    return training.run()


@dataclass(eq=False)
class Training:
    """A run in progress: the model, its optimiser, the videos, and the position of the run.

    ConfigError names a setting that does not fit the tower, the strategy or the videos.
    """

    recipe: Recipe
    dataset: VideoDataset  # without the excluded videos
    excluded: Sequence[Path]  # the videos that `train.exclude` leaves out
    folder: RunFolder
    resumes: bool  # whether the run in the folder goes on; otherwise a new run begins there
    processes: Processes
    log: Log
    position: Position = field(init=False, default_factory=Position)
    model: VideoClassifier = field(init=False)
    # The model whose weights the optimiser moves: `model`, or a sharded copy of it.
    trained: VideoClassifier = field(init=False)
    learner: Learner = field(init=False)
    state: TrainingState = field(init=False)
    loader: TrainLoader = field(init=False)
    captured: CapturedSteps | None = field(init=False, default=None)

    def __post_init__(self) -> None:
        settings, processes = self.recipe.train, self.processes
        torch.manual_seed(settings.seed)
        self.model = model = self.new_model()
        torch.manual_seed(settings.seed + processes.rank)  # dropout differs between processes
        self.loader = self.new_loader(1)  # the number of batches is the same in every epoch
        is_sharded = settings.sharding == "full" and processes.size > 1
        self.trained = shard(model, processes.device) if is_sharded else model.to(processes.device)
        optimizer = build_optimizer(
            self.trained,
            learning_rate=settings.learning_rate,
            weight_decay=settings.weight_decay,
            learning_rate_shares=settings.learning_rate_shares,
        )
        wrapped = self.trained if is_sharded else processes.wrap(model)
        is_fp16 = settings.precision == "fp16"
        scaler = torch.amp.GradScaler(processes.device.type, enabled=is_fp16)
        self.learner = Learner(processes, wrapped, model.spec, optimizer, scaler, settings)
        self.state = TrainingState(
            self.folder.path / RESUME_FILE,
            data=data_key(self.dataset.classes, self.dataset.train),
            model=model,
            trained=wrapped,
            parts={"optimizer": optimizer, "scaler": scaler},
        )

    def new_model(self) -> VideoClassifier:
        """The model that the run trains, with the weights that the run starts from.

        If the run is resumed, its folder says how the model is built, and `TrainingState.load`
        later reads the weights.
        """
        recipe, start = self.recipe, self.recipe.train.start_from
        model = build_model(
            model_recipe(self.folder.path).model if self.resumes else recipe.model,
            labels=self.dataset.classes,
            clip=recipe.clip,
            views=recipe.views,
            multi_label=recipe.data.multi_label,
            directions=recipe.data.directions,
        )
        if not self.resumes and start is not None:
            try:
                start_from(model, start)
            except CheckpointError as error:
                raise CheckpointError(f"train.start_from: {error}") from error
        check_spared(model.plan, recipe.train)
        return model

    def new_loader(self, epoch: int) -> TrainLoader:
        """The loader of training clips for an epoch. The epoch decides the frames of a clip."""
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
            pinned=self.processes.device.type == "cuda",
        )

    def restore(self) -> None:
        """Restore the state that the run had when it stopped, and say where the run goes on."""
        groups = self.learner.optimizer.param_groups
        shares = [group["share"] for group in groups]  # an older state has no shares
        self.position = position = self.state.load(self.processes.rank, self.processes.size)
        for group, share in zip(self.learner.optimizer.param_groups, shares, strict=True):
            group["share"] = share
        fit_device(self.learner.optimizer)
        self.folder.keep_entries(position.epoch - 1)
        epochs = self.recipe.train.epochs
        if position.epoch > epochs:
            self.log.say(
                f"the run is finished ({how_many(epochs, 'epoch')}); "
                f"to train further, begin a run with --start-from {self.folder.path}"
            )
        else:
            batches = f"{position.batch} of {how_many(len(self.loader), 'batch', 'batches')}"
            self.log.say(f"going on in epoch {position.epoch}, after {batches}")

    def say_settings(self) -> None:
        """Say what is trained, and warn of settings whose effect may surprise."""
        settings, dataset, model = self.recipe.train, self.dataset, self.recipe.model
        facts = self.model.stored().facts
        versions, both = (2, "each forwards and backwards, ") if dataset.directions else (1, "")
        self.log.say(
            f"{how_many(len(dataset.train) // versions, 'training video')}, "
            f"{how_many(len(dataset.val) // versions, 'validation video')}, {both}"
            f"{how_many(len(dataset.classes), 'class', 'classes')}; {model.tower}, "
            f"{model.strategy}: "
            f"{facts.trained:,} of {facts.parameters:,} parameters train"
        )
        if model.tower == TINY_NAME:
            self.log.say(TOY_NOTE)
        names = dataset.classes[::versions]  # without the classes of clips played backwards
        point_out_mirror_names(names, self.recipe.pixels, self.log)
        if dataset.directions:
            point_out_reversals(names, self.recipe.data, self.log)
        self.warn_of_far_heads()
        if settings.warmup_epochs >= settings.epochs:
            self.log.warn(
                f"the warm-up (train.warmup_epochs = {settings.warmup_epochs:g}) is not shorter "
                "than the training; "
                "choose a shorter warm-up"
            )
        if settings.few_frames_epochs >= settings.epochs:
            self.log.warn(
                "no epoch of the training takes all frames of a clip; "
                "train.few_frames_epochs must be below train.epochs for that"
            )
        if not dataset.val:
            self.log.warn("there are no validation videos, so the last epoch counts as the best")

    def warn_of_far_heads(self) -> None:
        """Warn of offsets that leave the clip from every frame: such heads read their own frame."""
        plan = self.model.plan
        offsets = {move.offset for block in plan.blocks for move in block.moves}
        far = sorted(offset for offset in offsets if abs(offset) >= plan.frames)
        if far:
            these = "offset" if len(far) == 1 else "offsets"
            self.log.warn(
                f"heads: the {these} {', '.join(map(str, far))} would leave a clip of "
                f"{how_many(plan.frames, 'frame')} from every frame, so heads of the {these} read "
                "their own frame, as spatial heads do; choose smaller offsets, or more frames"
            )

    def run(self) -> Run:
        """Train in the folder of the run, while no other training can use the folder."""
        with self.folder.claimed():
            if self.resumes:
                self.restore()
            else:
                self.folder.begin(self.recipe, self.model)
            self.say_settings()
            self.processes.wait()
            self.train_epochs()
        position = self.position
        for path, reason in position.broken.items():
            self.log.warn(f"left out: {path}: {reason}")
        excluded = tuple(map(str, self.excluded))
        if excluded:
            count = how_many(len(excluded), "video")
            self.log.say(
                f"{count} left out, as listed in {self.recipe.train.exclude}: {', '.join(excluded)}"
            )
        return Run(
            folder=self.folder.path,
            best_epoch=position.best_epoch,
            best=position.best if position.best >= 0 else None,
            broken=position.broken,
            epochs=position.epoch - 1,
            excluded=excluded,
            needs_tower=not self.model.keeps_tower,
        )

    def train_epochs(self) -> None:
        """Train, validate and save until all epochs are done or the patience is used up."""
        position, settings, writes = self.position, self.recipe.train, self.processes.is_first
        self.speed_up()
        if settings.tensorboard:
            self.folder.open_board(position.epoch)
        try:
            while position.epoch <= settings.epochs and not self.out_of_patience():
                self.train_epoch()
                with gathered(self.learner.model, self.model):
                    self.finish_epoch()
                self.state.save(position, writes=writes)
        except KeyboardInterrupt:
            self.save_interrupted()
            raise
        finally:
            self.folder.close_board()

    def speed_up(self) -> None:
        """Prepare what `train.compile` asks for, if it is set and the device is a GPU.

        Steps are captured, and in bf16 the weights are cast once a step. If one of the two is
        impossible, a line of the log says why.
        """
        learner = self.learner
        reason = uncaptured_reason(learner)
        if can_capture(learner):
            size = self.model.image_size
            cast = cast_weights(learner.model, learner.dtype, (self.model.frames, 3, size, size))
            if cast is None and learner.dtype == torch.bfloat16:
                self.log.say(
                    "train.compile: weights are not cast once a step, because the tower cannot "
                    "compute in bf16 without autocast; steps use autocast"
                )
            # Nobody else holds the cast weights, so they leave the memory if a capture fails.
            self.captured = CapturedSteps(dataclasses.replace(learner, cast=cast), self.log)
        elif learner.settings.compile and reason is not None:
            self.log.say(f"train.compile: steps are computed operation by operation: {reason}")

    def save_interrupted(self) -> None:
        """Save the state of an interrupted run if the run has one process; say how to go on.

        Several processes cannot save here, because each may be interrupted at another step.
        """
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
            f"interrupted in epoch {position.epoch}; {self.folder.path} holds {best}; "
            "to go on, run `zeroi2v train` again with the same DATA and --out, and with --resume"
        )

    def out_of_patience(self) -> bool:
        """Whether `train.patience` validations have passed since the best figure last rose."""
        patience = self.recipe.train.patience
        return bool(patience) and self.position.validations_since_best >= patience

    def learning_rate(self, step: int) -> float:
        """The learning rate of a step, of the parts of the model that have the whole rate.

        Steps are counted from 0 over all epochs.
        """
        settings, batches = self.recipe.train, len(self.loader)
        return settings.learning_rate * learning_rate_share(
            step,
            steps=settings.epochs * batches,
            warmup_steps=round(settings.warmup_epochs * batches),
            warmup_start=settings.warmup_start,
        )

    def train_epoch(self) -> None:
        """Train on the batches of the epoch in progress that are not done yet."""
        position, settings, processes = self.position, self.recipe.train, self.processes
        if self.recipe.clip_in_epoch(position.epoch).frames != self.loader.clip.frames:
            self.loader = self.new_loader(position.epoch)
        self.learner.model.train()
        saved_at = started_at = time.perf_counter()
        seconds_before, batches = position.seconds, len(self.loader)
        tracked = self.log.track(
            self.loader.epoch(position.epoch, start=position.batch),
            total=batches,
            done=position.batch,
            title=f"epoch {position.epoch}/{settings.epochs}",
            unit="clips",
            per_item=settings.batch_size,
            memory=lambda: peak_memory(processes.device),
        )
        with spared(self.trained, settings):
            for clips, labels in tracked:
                rate = self.learning_rate((position.epoch - 1) * batches + position.batch)
                with undivided():
                    step = self.take_step(clips, labels, rate)
                    position.add(step.loss, step.clips, skipped=step.skipped)
                    position.broken |= self.loader.broken
                    position.seconds = seconds_before + time.perf_counter() - started_at
                is_due = time.perf_counter() - saved_at > 60 * settings.save_every_minutes
                if settings.save_every_minutes and processes.agree(is_due):
                    self.state.save(position, writes=processes.is_first)
                    saved_at = time.perf_counter()

    def take_step(self, clips: Tensor, labels: Tensor, learning_rate: float) -> Step:
        """Take one training step, replayed from a captured step where that is possible."""
        if self.captured is not None:
            return self.captured(clips, labels, learning_rate)
        return take_step(self.learner, clips, labels, learning_rate)

    def finish_epoch(self) -> None:
        """Validate the model, write its weights and the log line, and begin the next epoch.

        The model of the run folder changes only if this epoch is the best so far.
        """
        position, epoch = self.position, self.position.epoch
        self.require_progress()
        self.folder.write_last(self.model, epoch=epoch)
        entry: dict[str, Any] = {
            "epoch": epoch,
            "loss": position.settle() / position.clips,
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
            entry |= validation.figures | validation.direction_answer()
        if self.is_best(validation):
            self.folder.write_best(self.model, card_figures(validation, epoch), epoch=epoch)
            position.best_epoch = epoch
        self.say_epoch(entry, validation)
        memory = peak_memory(self.processes.device)
        entry |= {"seconds": round(position.seconds, 3), "peak_memory": memory}
        self.folder.write_entry(entry)
        position.next_epoch()

    def require_progress(self) -> None:
        """Raise an error if the epoch moved no weight, or ended with weights that are not finite.

        ZeroI2VError if fp16 skipped every step, or if the loss or a weight is not finite.
        DatasetError if no training video can be read.
        """
        position = self.position
        if position.skipped and position.skipped == position.batch:
            raise ZeroI2VError(
                f"epoch {position.epoch}: fp16 skipped all steps ({position.batch}), "
                "because every gradient overflowed; train with train.precision bf16 or fp32"
            )
        if not position.clips:
            broken = next((f"{path}: {reason}" for path, reason in position.broken.items()), "")
            first = f"; the first: {broken}" if broken else ""
            raise DatasetError(
                f"{self.dataset.source}: none of the training videos can be read{first}; "
                "run `zeroi2v data check`"
            )
        require_finite(position, self.model)

    def validate(self) -> Evaluation | None:
        """Evaluate the model on the validation videos; None if no validation is due."""
        position, settings = self.position, self.recipe.train
        is_due = position.epoch % settings.validate_every == 0 or position.epoch == settings.epochs
        if not self.dataset.val or not is_due:
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

    def is_best(self, validation: Evaluation | None) -> bool:
        """Note the figure of the epoch in progress, and tell whether the epoch is the best so far.

        Of equal epochs the later one is the best. An epoch without a validation is the best only
        as long as no epoch has been validated.
        """
        position = self.position
        if validation is None:
            return not self.dataset.val or position.best < 0
        figure = next(iter(validation.figures.values()))
        position.validations_since_best = (
            0 if figure > position.best else position.validations_since_best + 1
        )
        is_best = figure >= position.best
        position.best = max(position.best, figure)
        return is_best

    def say_epoch(self, entry: Mapping[str, Any], validation: Evaluation | None) -> None:
        """Say in one line how the epoch in progress went."""
        position, text = self.position, ""
        if validation:
            name, *further = (name for name in validation.figures if name != "top5")
            text = f", validation {FIGURE_NAMES[name]} {validation.figures[name]:.1%}"
            for name in further:
                text += f", {FIGURE_NAMES[name]} {validation.figures[name]:.1%}"
        if position.skipped:
            steps = how_many(position.batch, "step")
            text += f", {position.skipped} of {steps} skipped (fp16 overflow)"
        memory = peak_memory(self.processes.device) / 2**30
        self.log.say(
            f"epoch {position.epoch}/{self.recipe.train.epochs}: loss {entry['loss']:.4f}{text}, "
            f"{position.clips / position.seconds:.0f} clips/s, {memory:.1f} GiB"
        )


def card_figures(validation: Evaluation | None, epoch: int) -> dict[str, float]:
    """The figures of a validation as a model's card names them; none without a validation."""
    if validation is None:
        return {}
    figures = {
        f"validation {FIGURE_NAMES[name]}": value for name, value in validation.figures.items()
    }
    return {**figures, "validation videos": validation.video_count, "epoch": epoch}
