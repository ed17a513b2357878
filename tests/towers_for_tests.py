"""Which small towers do tests use, and how does a test make every weight matter?"""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from torch import Tensor, nn

from zeroi2v import VideoClassifier, create_model
from zeroi2v.method.call import Call

FRAMES = 4
SMALL = {"img_size": 32, "depth": 3}
# Name -> timm's options, for each way in which timm writes a plain vision transformer.
TOWERS: dict[str, dict[str, Any]] = {
    "zeroi2v_tiny": {},
    "vit_tiny_patch16_224": SMALL,  # [cls] token
    "vit_small_patch16_dinov3": SMALL,  # RoPE, registers, no qkv bias
    "vit_small_plus_patch16_dinov3_qkvb": SMALL,  # SwiGLU in two halves, q and v biases kept apart
    "vit_small_patch14_reg4_dinov2": {**SMALL, "img_size": 28},  # registers, LayerScale
    "vit_base_patch16_clip_quickgelu_224": {**SMALL, "embed_dim": 96},  # pre-norm
    "vit_base_patch16_siglip_224": {**SMALL, "embed_dim": 96},  # attention pooling
    "vit_relpos_small_patch16_224": SMALL,  # relative positions, no pre-norm module
    "vit_small_patch16_18x2_224": {**SMALL, "depth": 2},  # two attentions side by side
    "deit3_small_patch16_224": SMALL,
}


def respec(model: VideoClassifier, **changes: Any) -> None:
    """Change fields of a model's `Spec`."""
    model.spec = dataclasses.replace(model.spec, **changes)


def noisy(model: VideoClassifier, seed: int = 0) -> VideoClassifier:
    """The model in eval mode, with random adapters, norms, scales, biases and temporal embedding.

    A weight that is an identity or a zero would prove nothing.
    """
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim < 2 or parameter is model.temporal_embedding:
                parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.2)
        for parameter in (*model.adapters.parameters(), *model.classifier.parameters()):
            parameter.copy_(0.2 * torch.randn(parameter.shape, generator=generator))
    return model.eval()


def small_model(
    tower: str, *, num_classes: int = 5, frames: int = FRAMES, **settings: Any
) -> VideoClassifier:
    """A model on a small version of the tower, with random weights."""
    torch.manual_seed(0)
    return create_model(
        tower, num_classes=num_classes, frames=frames, tower_options=TOWERS[tower], **settings
    )


def random_clip(model: VideoClassifier, clips: int = 2, seed: int = 1) -> Tensor:
    """Random clips of the shape that the model takes, in the dtype of the model."""
    size = model.image_size
    dtype = next(model.parameters()).dtype
    return torch.randn(
        clips,
        model.frames,
        3,
        size,
        size,
        generator=torch.Generator().manual_seed(seed),
        dtype=dtype,
    )


def gather_inputs(module: nn.Module) -> list[Tensor]:
    """A list to which every later call of the module adds its input."""
    seen: list[Tensor] = []
    module.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].detach().clone()))
    return seen


def new_call(clips: int, frames: int, adapters: Any = ()) -> Call:
    """The call that a model with these adapters would begin for clips of T frames."""
    return Call(
        clips=clips,
        frames=frames,
        whole_frames=frames,
        adapters=adapters,
        temporal_embedding=torch.zeros(frames, 1),
    )
