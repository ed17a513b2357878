"""Which models does `zeroi2v bench` measure? Names become subjects: models, built or loaded.

A name is `plain` (only the image tower), a strategy, or a saved model; `:merged` after a name folds
the adapters first.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import Tensor, nn

from zeroi2v.config import ModelConfig, Recipe
from zeroi2v.errors import ConfigError, how_many, nearest
from zeroi2v.log import Log
from zeroi2v.machine import free_bytes
from zeroi2v.measure.compiled import CompiledCall
from zeroi2v.measure.cost import plain_tower
from zeroi2v.method.strategies import STRATEGIES
from zeroi2v.models.build import build_model
from zeroi2v.models.compiled import DTYPES
from zeroi2v.models.loading import load
from zeroi2v.models.peers import settings_to_reset
from zeroi2v.models.pictures import pictures_of
from zeroi2v.models.spec import numbered_labels
from zeroi2v.models.video import VideoClassifier

PLAIN: Final = "plain"
MERGED: Final = ":merged"
SEED: Final = 0  # of random weights and random clips; the values change no time
CLASSES: Final = 400  # of the classifier of a model that is not saved
MIB: Final = 2**20


@dataclass(frozen=True)
class Subject:
    """A model that is measured: a function of a batch of clips."""

    name: str
    run: Callable[[Tensor], object]
    shape: tuple[int, ...]  # of one clip: (F, 3, S, S)
    weight_bytes: int
    facts: Mapping[str, Any]  # what the result says of the model: tower, strategy, parameters ...
    timed: Callable[[Tensor], object]  # `run`, or `run` compiled

    @property
    def is_compiled(self) -> bool:
        """Whether the calls that are timed are compiled."""
        return self.timed is not self.run


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
    """The subjects of `names`, with random weights, and after them those of the `saved` models.

    The recipe gives the tower and the clip of `names`. Without a recipe the first saved model gives
    both. On the meta device the subjects take no memory. ConfigError names a subject that is
    unknown, named twice, or too large for the free memory.
    """
    _check_names(names, saved)
    image_size = None
    if recipe is None:
        recipe, image_size = _settings_of(saved[0]) if saved else (Recipe(), None)
    subjects: list[Subject] = []
    for name in [*names, *saved]:
        log.say(f"building {name}")
        _require_memory(name, subjects, device)
        torch.manual_seed(SEED)
        if name in saved:
            model = load(name.removesuffix(MERGED))
        else:
            with _on_meta(device):
                model = _new_model(name, recipe, image_size)
        model = model.eval().to(device, DTYPES[dtype])
        if name.endswith(MERGED):
            model = model.merge()
        with _on_meta(device):
            subjects.append(_subject(name, model, compiled=compiled))
    return subjects


def _on_meta(device: torch.device) -> AbstractContextManager[object]:
    """Within the context new weights are on the meta device, if `device` is the meta device."""
    return device if device.type == "meta" else nullcontext()


def _check_names(names: Sequence[str], saved: Sequence[str]) -> None:
    known = [PLAIN, *STRATEGIES]
    for name in names:
        kind, _, suffix = name.partition(":")
        if kind not in known or suffix not in ("", "merged") or (kind == PLAIN and suffix):
            near = nearest(kind, known) if kind not in known else ""
            raise ConfigError(
                f"{name!r}: expected {PLAIN} or a strategy ({', '.join(STRATEGIES)}), "
                f"as it is or followed by {MERGED}; a saved model is named by --model{near}"
            )
    every_name = [*names, *saved]
    if twice := [name for name in every_name if every_name.count(name) > 1]:
        raise ConfigError(f"{twice[0]} is there twice; name it once")


def _settings_of(saved: str) -> tuple[Recipe, int]:
    """A recipe with the model and clip of a saved model, and the pixels along a side of a frame."""
    model = load(saved.removesuffix(MERGED))
    return Recipe(model=model.spec.model, clip=model.clip), model.image_size


def _require_memory(name: str, subjects: Sequence[Subject], device: torch.device) -> None:
    """ConfigError unless the free memory has room for two models of the largest size so far.

    A model and its merged copy take that room. On the meta device a model takes no memory.
    """
    if device.type == "meta":
        return
    on_gpu = device.type == "cuda"
    free = torch.cuda.mem_get_info(device)[0] if on_gpu else free_bytes()
    sizes = [0, *(subject.weight_bytes for subject in subjects)]
    if 2 * max(sizes) > free:
        held = f"{how_many(len(subjects), 'model holds', 'models hold')} {sum(sizes) / MIB:.0f} MiB"
        raise ConfigError(f"{name}: {held} and {free / MIB:.0f} MiB are free; name fewer models")


def _new_model(name: str, recipe: Recipe, image_size: int | None) -> VideoClassifier:
    """A model with random weights, of the strategy that a name begins with.

    For `plain` only the tower is measured, so the strategy does not matter.
    """
    strategy = "zeroi2v" if name == PLAIN else name.removesuffix(MERGED)
    config: ModelConfig = dataclasses.replace(
        recipe.model,
        strategy=strategy,
        pretrained=False,
        weights=None,
        **settings_to_reset(recipe.model, strategy),
    )
    if name == PLAIN:  # the recipe may name sites of another strategy
        config = dataclasses.replace(config, sites=None)
    model = build_model(config, labels=numbered_labels(CLASSES), clip=recipe.clip)
    model.resize(image_size=image_size)
    return model


class PlainTower(nn.Module):
    """Only the image tower, as a function of clips (B, F, 3, S, S)."""

    def __init__(self, tower: nn.Module, tubelet: int) -> None:
        super().__init__()
        self.tower, self.tubelet = tower, tubelet

    def forward(self, clips: Tensor) -> object:
        """What the tower gives for the pictures of the clips."""
        return self.tower(pictures_of(clips, self.tubelet))


def _subject(name: str, model: VideoClassifier, *, compiled: bool) -> Subject:
    """The subject of a model, or for `plain` of the tower of the model."""
    module: nn.Module = model
    if name == PLAIN:
        module = PlainTower(plain_tower(model), model.spec.model.tubelet).eval()
    facts = {
        "tower": model.spec.model.tower,
        "strategy": None if name == PLAIN else model.spec.model.strategy,
        "merged": model.spec.merged,
        "frames": model.frames,
        "image_size": model.image_size,
        "params": sum(parameter.numel() for parameter in module.parameters()),
    }
    tensors = (*module.parameters(), *module.buffers())
    return Subject(
        name=name,
        run=module,
        shape=(model.frames, 3, model.image_size, model.image_size),
        weight_bytes=sum(tensor.numel() * tensor.element_size() for tensor in tensors),
        facts=facts,
        timed=CompiledCall(module) if compiled else module,
    )
