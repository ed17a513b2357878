"""What do other projects call the weights of a tower? Tables of key names, for each kind of file.

In a key of these tables, `#` stands for a number, `*` for "weight" or "bias", and `**` for any
rest. "/0", "/1" or "/2" after a key stands for the first, second or last third of a tensor's rows.

Each key of a file must be in the table for this kind of file, or in the list of keys that are left
out. Otherwise the file is refused.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, NamedTuple

import torch
from timm.layers.activations import QuickGELU
from torch import Tensor, nn

from zeroi2v.errors import CheckpointError, first_names
from zeroi2v.models.archives import Archive, read_archive

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


def load_tower_weights(tower: nn.Module, path: str | os.PathLike[str]) -> None:
    """Copy the weights in a file, or in the one weights file of a folder, into a timm tower.

    The file can be timm's own, or hold a CLIP of OpenAI, open_clip or transformers. Tensors of the
    text encoder, of the projection to the space of texts and of timm's classifier are left out.
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
        layout = Layout("", {"**": "**"}, left_out)
    else:
        _check_activation(tower, file)
    assign_weights(tower.state_dict(), file, layout)


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


def assign_weights(own: Mapping[str, Tensor], file: Archive, layout: Layout) -> None:
    """Copy the tensors of a file into the tensors `own` of a model, if all of them fit.

    CheckpointError if a key is missing or unknown, or if a tensor has another shape, apart from
    axes of length 1. After an error the model is unchanged.
    """
    targets: dict[str, Tensor] = {}  # key in the file -> the tensor to fill
    for name, tensor in own.items():
        parts = _keys_of(name, tensor, layout.keys)
        if not parts:
            raise CheckpointError(
                f"{file.path}: a file of this kind holds no tensor for {name} of the tower; "
                "choose the tower of these weights"
            )
        targets |= parts
    _check_keys(targets, file, layout)
    for key, tensor in targets.items():
        stored = file.tensors[key]
        if (
            _long_axes(stored) != _long_axes(tensor)
            or stored.is_floating_point() != tensor.is_floating_point()
        ):
            raise CheckpointError(
                f"{file.path}: {key} is {tuple(stored.shape)} {stored.dtype}, "
                f"the model's is {tuple(tensor.shape)} {tensor.dtype}; "
                "choose the tower or the file that fits"
            )
    with torch.no_grad():
        for key, tensor in targets.items():
            tensor.copy_(file.tensors[key].reshape(tensor.shape))


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
