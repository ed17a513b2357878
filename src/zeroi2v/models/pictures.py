"""Which pictures does a tower take? Their size, their colours, and how many frames make a picture.

Shapes: B clips, F frames, S pixels along a side; T pictures of a clip, F / tubelet.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from zeroi2v.errors import ConfigError


def pictures_of(clip: Tensor, tubelet: int) -> Tensor:
    """The pictures (B*T, 3 * tubelet, S, S) that a tower takes, of a clip (B, F, 3, S, S).

    The pictures are a view of the clip where PyTorch can make a view.
    """
    if tubelet > 1:
        clip = clip.unflatten(1, (-1, tubelet)).flatten(2, 3)
    return clip.flatten(0, 1)


def inflate(tower: nn.Module, tubelet: int, name: str) -> None:
    """Let the patch embedding of a tower take `tubelet` frames as one picture.

    The frames lie side by side in the channel axis, so the 2-D convolution of the patch embedding
    computes a 3-D convolution. The weights for each frame are the weights of the image tower
    divided by `tubelet`: a still clip then gives the feature of its picture. ConfigError, with the
    `name` of the tower, if the tower has no convolution over three colours.
    """
    if tubelet == 1:
        return
    convolutions = [
        module
        for module in tower.modules()
        if isinstance(module, nn.Conv2d) and module.in_channels == 3
    ]
    if not convolutions:
        raise ConfigError(
            f"tubelet: {name} has no convolution over three colours; leave tubelet out"
        )
    for convolution in convolutions:
        weight = convolution.weight.detach().repeat(1, tubelet, 1, 1) / tubelet
        convolution.weight = nn.Parameter(weight)
        convolution.in_channels *= tubelet


def image_size(tower: nn.Module) -> int:
    """S: pixels along a side of the square pictures that a tower takes."""
    size = getattr(getattr(tower, "patch_embed", None), "img_size", None)
    if size is None:
        config: Any = tower.pretrained_cfg
        size = config["input_size"][1:]
    return int(size[0])


def set_image_size(tower: nn.Module, size: int, name: str) -> None:
    """Make a tower take pictures of `size` pixels along a side.

    ConfigError, with the `name` of the tower, if the tower cannot take such pictures.
    """
    set_input_size = getattr(tower, "set_input_size", None)
    if set_input_size is None:
        raise ConfigError(
            f"{name} cannot change its image size; it takes {image_size(tower)} pixels"
        )
    patch = getattr(getattr(tower, "patch_embed", None), "patch_size", (1, 1))
    if size % patch[0] or size % patch[1]:
        raise ConfigError(
            f"{name} does not take frames of {size} pixels: its patches are {patch[0]} pixels a "
            f"side; choose a multiple of {patch[0]}"
        )
    try:
        set_input_size(img_size=(size, size))
    except (AssertionError, RuntimeError, ValueError, TypeError) as error:
        reason = str(error).strip() or "the size does not fit the patches"
        raise ConfigError(f"{name} does not take frames of {size} pixels: {reason}") from error
    note_image_size(tower, size)


def note_image_size(tower: Any, size: int) -> None:
    """Write a picture's size into the tower's `pretrained_cfg`, where `image_size` reads the size.

    Some towers keep the size nowhere else.
    """
    tower.pretrained_cfg = {**tower.pretrained_cfg, "input_size": (3, size, size)}


def normalisation(tower: nn.Module) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation per colour that a tower's own configuration names.

    Both are meant for pixels of 0..1.
    """
    config: Any = tower.pretrained_cfg
    return tuple(config["mean"]), tuple(config["std"])
