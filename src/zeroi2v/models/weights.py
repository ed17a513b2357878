"""What do other projects call the weights of a tower? Their key names, by table, and the towers that their files fill.

In a key, `#` stands for a number, `*` for "weight" or "bias", `**` for any rest; "/0", "/1", "/2" is a third of a tensor's rows.
Every key of a file is used, or left out by name, or refused.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

import torch
from timm.layers.activations import QuickGELU
from torch import Tensor, nn

from zeroi2v.errors import CheckpointError
from zeroi2v.models.archives import Archive, read_archive

WILDCARDS: Final = {"#": r"(\d+)", "**": "(.*)", "*": "(weight|bias)"}
CLIP: Final = {  # key of OpenAI's image encoder, open_clip's and the official ZeroI2V's -> key of timm's tower
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
TRANSFORMERS: Final = {
    "embeddings.patch_embedding.weight": "patch_embed.proj.weight",
    "embeddings.class_embedding": "cls_token",
    "embeddings.position_embedding.weight": "pos_embed",
    "pre_layrnorm.*": "norm_pre.*",  # spelt so there
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
OPENAI_MARK: Final = "input_resolution"  # a key that only OpenAI's own archives have
WITH_TEXT: Final = (  # what OpenAI's and open_clip's files hold beside the image encoder
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
    """One way of writing a tower's weights."""

    mark: str  # a key that only this layout has
    keys: Mapping[str, str]  # key there -> key of timm's tower
    left_out: tuple[str, ...] = ()  # keys there that a tower has no use for


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
    """Give a timm tower the weights in a file: timm's own, OpenAI CLIP's, open_clip's or transformers' CLIP, or a folder with one.

    What is not the tower's (the text encoder, the projection to the space of texts, timm's classifier) is left out by name.
    CheckpointError names the file, and what is missing, not known or of the wrong shape, or an activation that is not the tower's.
    """
    file = read_archive(path)
    layout = next((layout for layout in LAYOUTS if layout.mark in file.tensors), None)
    if layout is None:
        config: Any = getattr(tower, "pretrained_cfg", {})
        heads = config.get("classifier") or "head"
        left_out = tuple(f"{head}.*" for head in ([heads] if isinstance(heads, str) else heads))
        layout = Layout("", {"**": "**"}, left_out)
    else:
        _check_activation(tower, file)
    assign_weights(tower.state_dict(), file, layout)


def _check_activation(tower: nn.Module, file: Archive) -> None:
    activation = _activation(file)
    quick = any(isinstance(module, QuickGELU) for module in tower.modules())
    if activation is not None and quick != (activation == "quick_gelu"):
        remedy = "without" if quick else "with"
        raise CheckpointError(
            f"{file.path}: trained with {activation}, which this tower does not compute; take one {remedy} quickgelu in its name"
        )


def _activation(file: Archive) -> str | None:
    """The activation that a CLIP's weights were trained with; None where neither the file nor the configuration beside it tells."""
    if file.is_torchscript or OPENAI_MARK in file.tensors:
        return "quick_gelu"
    ours, theirs = (
        _configuration(file.path.with_name(name))
        for name in ("config.json", "open_clip_config.json")
    )
    if str(ours.get("model_type")).startswith("clip"):
        return str(
            (ours.get("vision_config") or ours).get("hidden_act", "quick_gelu")
        )  # transformers' default
    if "model_cfg" in theirs:
        return "quick_gelu" if theirs["model_cfg"].get("quick_gelu") else "gelu"
    return None


def _configuration(path: Path) -> dict[str, Any]:
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
    """Copy a file's tensors into a model's, if all of them fit: no key missing, none unknown, shapes alike up to axes of length 1."""
    wanted: dict[str, Tensor] = {}
    for name, tensor in own.items():
        sources = _sources(name, tensor, layout.keys)
        if not sources:
            raise CheckpointError(
                f"{file.path}: this kind of file has nothing for {name} of the tower"
            )
        wanted |= sources
    left_out = [_pattern(key) for key in layout.left_out]
    missing = [key for key in wanted if key not in file.tensors]
    unknown = [
        key
        for key in file.tensors
        if key not in wanted and not any(one.fullmatch(key) for one in left_out)
    ]
    if missing or unknown:
        faults = (("missing", missing), ("not known", unknown))
        text = "; ".join(f"{fault} {_some(keys)}" for fault, keys in faults if keys)
        raise CheckpointError(f"{file.path}: not the weights of this model: {text}")
    for key, tensor in wanted.items():
        stored = file.tensors[key]
        if (
            _without_ones(stored) != _without_ones(tensor)
            or stored.is_floating_point() != tensor.is_floating_point()
        ):
            theirs, ours = (f"{tuple(one.shape)} {one.dtype}" for one in (stored, tensor))
            raise CheckpointError(f"{file.path}: {key} is {theirs}, the model's is {ours}")
    with torch.no_grad():
        for key, tensor in wanted.items():
            tensor.copy_(file.tensors[key].reshape(tensor.shape))


def _sources(name: str, tensor: Tensor, keys: Mapping[str, str]) -> dict[str, Tensor]:
    """The keys of a file that hold a tensor of ours, each with the part of the tensor that it holds."""
    found = {}
    for theirs, ours in keys.items():
        ours, _, third = ours.partition("/")
        match = _pattern(ours).fullmatch(name)
        if match:
            groups = iter(match.groups())
            key = "".join(
                next(groups) if piece in WILDCARDS else piece for piece in _pieces(theirs)
            )
            found[key] = tensor.chunk(3)[int(third)] if third else tensor
    return found


def _pattern(key: str) -> re.Pattern[str]:
    return re.compile("".join(WILDCARDS.get(piece, re.escape(piece)) for piece in _pieces(key)))


def _pieces(key: str) -> list[str]:
    return re.split(r"(#|\*\*|\*)", key)


def _without_ones(tensor: Tensor) -> list[int]:
    return [length for length in tensor.shape if length != 1]


def _some(keys: Sequence[str]) -> str:
    more = f" and {len(keys) - 3} more" if len(keys) > 3 else ""
    return ", ".join(keys[:3]) + more
