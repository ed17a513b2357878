"""What do other projects call the weights of a tower? Tables of key names, for each kind of file.

In a key of these tables, `#` stands for a number, `*` for "weight" or "bias", and `**` for any
rest. "/0", "/1" or "/2" after a key stands for the first, second or last third of a tensor's rows.

Each key of a file must be in the table for this kind of file, or in the list of keys that are left
out. Otherwise the file is refused.
"""

from __future__ import annotations

import json
import logging
import os
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple, TypeAlias

import torch
from timm.layers.activations import QuickGELU
from torch import Tensor, nn

from zeroi2v.errors import CheckpointError, first_names
from zeroi2v.models.archives import Archive, read_archive

logger = logging.getLogger(__name__)
# Makes position embeddings and tables of another image size fit a tower. The function takes and
# gives all tensors of the tower, by name. An error of `UNFIT` means that a tensor does not fit.
Resize: TypeAlias = Callable[[dict[str, Tensor]], Mapping[str, Tensor]]

UNFIT: Final = (
    *(AssertionError, AttributeError, IndexError, KeyError),
    *(RuntimeError, TypeError, ValueError, ZeroDivisionError),
)
WILDCARDS: Final = {"#": r"(\d+)", "**": "(.*)", "*": "(weight|bias)"}
# Key in OpenAI's, open_clip's and the official ZeroI2V's files -> key of timm's tower.
CLIP: Final = {
    "conv1.weight": "patch_embed.proj.weight",
    "class_embedding": "cls_token",
    "positional_embedding": "pos_embed",
    "ln_pre.*": "norm_pre.*",
    "transformer.resblocks.#.ln_1.*": "blocks.#.norm1.*",
    "transformer.resblocks.#.attn.in_proj_*": "blocks.#.attn.qkv.*",
    "transformer.resblocks.#.attn.out_proj.*": "blocks.#.attn.proj.*",
    "transformer.resblocks.#.ln_2.*": "blocks.#.norm2.*",
    "transformer.resblocks.#.mlp.c_fc.*": "blocks.#.mlp.fc1.*",
    "transformer.resblocks.#.mlp.c_proj.*": "blocks.#.mlp.fc2.*",
    "ln_post.*": "norm.*",
}
TRANSFORMERS: Final = {  # key in transformers' files -> key of timm's tower
    "embeddings.patch_embedding.weight": "patch_embed.proj.weight",
    "embeddings.class_embedding": "cls_token",
    "embeddings.position_embedding.weight": "pos_embed",
    "pre_layrnorm.*": "norm_pre.*",  # transformers spells the key so
    "encoder.layers.#.layer_norm1.*": "blocks.#.norm1.*",
    "encoder.layers.#.self_attn.q_proj.*": "blocks.#.attn.qkv.*/0",
    "encoder.layers.#.self_attn.k_proj.*": "blocks.#.attn.qkv.*/1",
    "encoder.layers.#.self_attn.v_proj.*": "blocks.#.attn.qkv.*/2",
    "encoder.layers.#.self_attn.out_proj.*": "blocks.#.attn.proj.*",
    "encoder.layers.#.layer_norm2.*": "blocks.#.norm2.*",
    "encoder.layers.#.mlp.fc1.*": "blocks.#.mlp.fc1.*",
    "encoder.layers.#.mlp.fc2.*": "blocks.#.mlp.fc2.*",
    "post_layernorm.*": "norm.*",
}
OPENAI_MARK: Final = "input_resolution"  # a key that only OpenAI's own files have
WITH_TEXT: Final = (  # keys in OpenAI's and open_clip's files beside those of the image encoder
    *(
        "visual.proj",
        "text_projection",
        "logit_scale",
        "logit_bias",
        "positional_embedding",
        "token_embedding.weight",
    ),
    *(
        "transformer.**",
        "text.**",
        "ln_final.*",
        "attn_mask",
        OPENAI_MARK,
        "context_length",
        "vocab_size",
    ),
)


class Layout(NamedTuple):
    """The keys in one kind of file."""

    mark: str  # a key that only this kind of file has
    keys: Mapping[str, str]  # key in the file -> key of timm's tower
    left_out: tuple[str, ...] = ()  # keys in the file that a tower has no use for


LAYOUTS: Final = (
    Layout(
        "visual.class_embedding", {f"visual.{key}": ours for key, ours in CLIP.items()}, WITH_TEXT
    ),
    Layout("class_embedding", CLIP, ("proj",)),
    Layout(
        "vision_model.embeddings.class_embedding",
        {f"vision_model.{key}": ours for key, ours in TRANSFORMERS.items()},
        (
            *("text_model.**", "text_projection.weight", "visual_projection.weight", "logit_scale"),
            "vision_model.embeddings.position_ids",
        ),
    ),
    Layout("embeddings.class_embedding", TRANSFORMERS, ("embeddings.position_ids",)),
)


def load_tower_weights(
    tower: nn.Module, path: str | os.PathLike[str], *, resize: Resize | None = None
) -> None:
    """Copy the weights in a file, or in the one weights file of a folder, into a timm tower.

    The file can be timm's own, or hold a CLIP of OpenAI, open_clip or transformers. Tensors of the
    text encoder, of the projection to the space of texts and of timm's classifier are left out.
    Without `resize`, every tensor must have the shape of the tower's. With `resize`, only the
    weights of linears and convolutions must. A line of the log says which tensors were resized.
    CheckpointError names the file, and the keys that are missing, unknown or of the wrong shape, or
    the activation that the tower does not compute.
    """
    file = read_archive(path)
    layout = next((layout for layout in LAYOUTS if layout.mark in file.tensors), None)
    if layout is None:
        config: Any = getattr(tower, "pretrained_cfg", {})
        named = config.get("classifier") or "head"
        classifiers = [named] if isinstance(named, str) else named
        left_out = tuple(f"{classifier}.*" for classifier in classifiers)
        layout = Layout("", {"**": "**"}, (*left_out, *_computed_buffers(tower)))
    else:
        _check_activation(tower, file)
    fixed = {
        f"{path}.weight"
        for path, module in tower.named_modules()
        if isinstance(module, nn.Linear | nn.Conv2d)
    }
    assign_weights(tower.state_dict(), file, layout, resize=resize, fixed=fixed)


def _computed_buffers(tower: nn.Module) -> set[str]:
    """The buffers that a tower computes itself, such as the indices of a table.

    Older versions of timm stored these buffers.
    """
    names = {
        f"{path}.{name}".removeprefix(".")
        for path, module in tower.named_modules()
        for name in module._buffers
    }
    return names - tower.state_dict().keys()


def _check_activation(tower: nn.Module, file: Archive) -> None:
    """CheckpointError if the tower computes another activation than the weights need."""
    activation = _activation(file)
    quick = any(isinstance(module, QuickGELU) for module in tower.modules())
    if activation is not None and quick != (activation == "quick_gelu"):
        remedy = "without" if quick else "with"
        raise CheckpointError(
            f"{file.path}: trained with {activation}, which this tower does not compute; "
            f"take a tower {remedy} quickgelu in its name"
        )


def _activation(file: Archive) -> str | None:
    """The activation that the weights of a CLIP were trained with.

    None if neither the file nor a configuration beside the file names an activation.
    """
    if file.is_torchscript or OPENAI_MARK in file.tensors:
        return "quick_gelu"
    transformers, open_clip = (
        _configuration(file.path.with_name(name))
        for name in ("config.json", "open_clip_config.json")
    )
    if str(transformers.get("model_type")).startswith("clip"):
        vision = transformers.get("vision_config") or transformers
        return str(vision.get("hidden_act", "quick_gelu"))  # the default of transformers
    if "model_cfg" in open_clip:
        return "quick_gelu" if open_clip["model_cfg"].get("quick_gelu") else "gelu"
    return None


def _configuration(path: Path) -> dict[str, Any]:
    """The content of a JSON file; empty if there is no such file."""
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path}: cannot be read: {error}") from error
    if not isinstance(config, dict):
        raise CheckpointError(f"{path}: not a configuration")
    return config


def assign_weights(
    own: Mapping[str, Tensor],
    file: Archive,
    layout: Layout,
    *,
    resize: Resize | None = None,
    fixed: Collection[str] = (),
) -> None:
    """Copy the tensors of a file into the tensors `own` of a model, if all of them fit.

    A tensor of another shape, apart from axes of length 1, fits if `resize` makes it fit and
    `fixed` does not hold its name. CheckpointError if a tensor does not fit, or if a key is missing
    or unknown. After an error the model is unchanged.
    """
    parts: dict[str, dict[str, Tensor]] = {}  # name in `own` -> key in file -> part of the tensor
    for name, tensor in own.items():
        parts[name] = _keys_of(name, tensor, layout.keys)
        if not parts[name]:
            raise CheckpointError(
                f"{file.path}: a file of this kind holds no tensor for {name} of the tower; "
                "choose the tower of these weights"
            )
    targets = {key: part for keys in parts.values() for key, part in keys.items()}
    _check_keys(targets, file, layout)
    misfits = [
        (name, key)
        for name, keys in parts.items()
        for key, part in keys.items()
        if not _fits(file.tensors[key], part)
    ]
    for name, key in misfits:
        if resize is None or name in fixed:
            raise _misfit(file, key, targets[key])
    values: Mapping[str, Tensor] = file.tensors
    if misfits and resize is not None:
        values = _resized(own, file, parts, resize, misfits)
        targets = dict(own)
    with torch.no_grad():
        for key, tensor in targets.items():
            tensor.copy_(values[key].reshape(tensor.shape))


def _resized(
    own: Mapping[str, Tensor],
    file: Archive,
    parts: Mapping[str, Mapping[str, Tensor]],
    resize: Resize,
    misfits: Sequence[tuple[str, str]],
) -> Mapping[str, Tensor]:
    """All tensors of a file by the names of `own`, the `misfits` resized to the shapes of `own`."""
    stored: dict[str, Tensor] = {}
    for name, keys in parts.items():
        first, *others = (file.tensors[key] for key in keys)
        tensor = torch.cat([first, *others]) if others else first
        if _fits(tensor, own[name]):
            stored[name] = tensor.reshape(own[name].shape)
        else:  # timm's rules need the axes of length 1 that other libraries leave out
            stored[name] = tensor[(None,) * (own[name].ndim - tensor.ndim)]
    name, key = misfits[0]
    try:
        resized = resize(stored)
    except UNFIT as error:
        raise _misfit(file, key, own[name]) from error
    more = f" and {len(misfits) - 1} more" if len(misfits) > 1 else ""
    logger.warning(
        "%s: resized by timm's rule for pretrained weights, because the tower takes "
        "pictures or has windows of another size: %s from %s to %s%s",
        *(file.path, key, tuple(stored[name].shape), tuple(own[name].shape), more),
    )
    return resized


def _fits(stored: Tensor, own: Tensor) -> bool:
    """Whether a stored tensor can be copied into a model's, apart from axes of length 1."""
    same_kind = stored.is_floating_point() == own.is_floating_point()
    return same_kind and _long_axes(stored) == _long_axes(own)


def _misfit(file: Archive, key: str, own: Tensor) -> CheckpointError:
    """The error for a tensor of a file that does not fit a model's tensor."""
    stored = file.tensors[key]
    return CheckpointError(
        f"{file.path}: {key} is {tuple(stored.shape)} {stored.dtype}, "
        f"the model's is {tuple(own.shape)} {own.dtype}; choose the tower or the file that fits"
    )


def _check_keys(targets: Mapping[str, Tensor], file: Archive, layout: Layout) -> None:
    """CheckpointError names keys that a file lacks, and keys that are neither used nor left out."""
    left_out = [_pattern(key) for key in layout.left_out]
    missing = [key for key in targets if key not in file.tensors]
    unknown = [
        key
        for key in file.tensors
        if key not in targets and not any(pattern.fullmatch(key) for pattern in left_out)
    ]
    if missing or unknown:
        faults = (("missing", missing), ("not known", unknown))
        text = "; ".join(f"{fault} {first_names(keys)}" for fault, keys in faults if keys)
        raise CheckpointError(
            f"{file.path}: not the weights of this model: {text}; "
            "choose the tower or the file that fits"
        )


def _keys_of(name: str, tensor: Tensor, table: Mapping[str, str]) -> dict[str, Tensor]:
    """The keys of a file that fill a tensor of a model, each with its part of the tensor."""
    parts = {}
    for theirs, ours in table.items():
        ours, _, third = ours.partition("/")
        match = _pattern(ours).fullmatch(name)
        if match:
            groups = iter(match.groups())
            key = "".join(
                next(groups) if piece in WILDCARDS else piece for piece in _pieces(theirs)
            )
            parts[key] = tensor.chunk(3)[int(third)] if third else tensor
    return parts


def _pattern(key: str) -> re.Pattern[str]:
    """The regular expression of a key with wildcards."""
    return re.compile("".join(WILDCARDS.get(piece, re.escape(piece)) for piece in _pieces(key)))


def _pieces(key: str) -> list[str]:
    """The wildcards of a key, and the texts between them, in order."""
    return re.split(r"(#|\*\*|\*)", key)


def _long_axes(tensor: Tensor) -> list[int]:
    """The lengths of the axes that are longer than 1."""
    return [length for length in tensor.shape if length != 1]
