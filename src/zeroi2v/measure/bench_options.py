"""Which models does `zeroi2v bench` time, and on which device? Checks of its options."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence

import torch

from zeroi2v.config import ClipConfig, ModelConfig, Recipe
from zeroi2v.errors import ConfigError
from zeroi2v.measure.subjects import MERGED, PLAIN
from zeroi2v.recipes import override


def check_mode(
    *, counts: bool, timing: Mapping[str, object], counting: Mapping[str, object]
) -> None:
    """ConfigError names an option that means nothing with `--count`, or nothing without it.

    `timing` and `counting` hold the options of each kind by name; an option that the user did not
    give is None, False or empty.
    """
    idle = [name for name, value in (timing if counts else counting).items() if _is_given(value)]
    if not idle:
        return
    option = f"--{idle[0].replace('_', '-')}"
    if counts:
        raise ConfigError(f"{option}: --count runs no model; leave out one of the two options")
    raise ConfigError(f"{option} changes nothing that is timed; add --count, or leave it out")


def _is_given(value: object) -> bool:
    return value is not None and value is not False and value != []


def checked_device(name: str | None, memory: float | None) -> torch.device:
    """The device of this name; without a name the GPU if there is one, else the CPU.

    `memory`: GiB that a batch may take on a CPU, if the user limits it. ConfigError if there is no
    such device, or if the limit makes no sense there.
    """
    if name == "cuda" and not torch.cuda.is_available():
        raise ConfigError(
            "--device cuda: torch finds no GPU here; leave the option out, or say --device cpu"
        )
    device = torch.device(name or ("cuda" if torch.cuda.is_available() else "cpu"))
    if memory is not None and not 0 < memory < math.inf:
        raise ConfigError(f"--memory must be above 0 GiB, and finite, got {memory}")
    if memory is not None and device.type == "cuda":
        raise ConfigError(
            "--memory is for a CPU; on a GPU, batches are doubled until the GPU's memory is full"
        )
    return device


def checked_recipe(
    flags: Mapping[str, object], assignments: Sequence[str], saved: Sequence[str]
) -> Recipe | None:
    """The recipe of the models that are built, from flags and `--set` texts.

    None if the models are built like the first of the `saved` models. ConfigError for a setting
    that changes nothing that is timed, or that the names of the models already set.
    """
    is_like_saved = bool(saved) and "model.tower" not in flags
    if is_like_saved and (flags or assignments):
        raise ConfigError(
            "without --tower every model is built like the first saved model; "
            "add --tower, or leave out --frames and --set"
        )
    recipe = override(Recipe(), assignments, flags)
    of_model_alone = Recipe(clip=ClipConfig(frames=recipe.clip.frames))
    if dataclasses.replace(recipe, model=ModelConfig()) != of_model_alone:
        raise ConfigError(
            "--set: only settings of [model] and clip.frames change what is timed; "
            "leave out the others"
        )
    model, default = recipe.model, ModelConfig()
    if (model.strategy, model.weights) != (default.strategy, default.weights):
        raise ConfigError(
            "--set: the models' names say the strategies, and all weights are random; "
            "leave strategy and weights out"
        )
    return None if is_like_saved else recipe


def names_to_time(names: Sequence[str], saved: Sequence[str]) -> list[str]:
    """The names of the models that are built; the default if the user gives no names."""
    if names:
        return [*names]
    return [PLAIN] if saved else [PLAIN, f"zeroi2v{MERGED}", "zeroi2v"]
