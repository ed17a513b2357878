"""What do other projects call a tower's weights? Their key names, by table, and the models and towers that their files become.

In a key, `#` stands for a number, `*` for "weight" or "bias", `**` for any rest; "/0", "/1", "/2" is a third of a tensor's rows.
Every key of a file is used, or left out by name, or refused.
"""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, NamedTuple

import torch
from timm.layers.activations import QuickGELU
from torch import Tensor, nn

from zeroi2v.config import ClipConfig, ViewsConfig
from zeroi2v.errors import CheckpointError, ConfigError
from zeroi2v.method.heads import Heads
from zeroi2v.models.archives import Archive, read_archive
from zeroi2v.models.video import VideoClassifier, create_model

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
ADAPTERS: Final = {  # name in the official code -> site here
    "T_Adapter_in": "qkv",
    "T_Adapter_in_q": "q",
    "T_Adapter_in_k": "k",
    "T_Adapter_in_v": "v",
    "S_Adapter": "proj",
    "MLP_Adapter": "up",
    "MLP_Adapter_out": "down",
}
ADAPTER_LINEARS: Final = {"D_fc1": "down", "D_fc2": "up"}
BLOCKS: Final = "backbone.transformer.resblocks"
OFFICIAL_KEYS: Final = {
    **{f"backbone.{key}": f"tower.{ours}" for key, ours in CLIP.items()},
    **{
        f"{BLOCKS}.#.{adapter}.{linear}.*": f"adapters.#.{site}.{ours}.*"
        for adapter, site in ADAPTERS.items()
        for linear, ours in ADAPTER_LINEARS.items()
    },
    "backbone.temporal_embedding": "temporal_embedding",
    "cls_head.fc_cls.*": "classifier.*",
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


@dataclass(frozen=True)
class OfficialModel:
    """What a published file does not tell: the settings that its model was trained with. `width` and `frames` it does tell."""

    width: int
    frames: int
    heads: str
    adapter_scale: float
    clip: ClipConfig
    views: ViewsConfig


OFFICIAL: Final = {  # by the name of its configuration; not all are those of the paper's Table 6
    "CLIP-B_k400_8x16x1": OfficialModel(
        768,
        8,
        "-1*1, 1*1",
        0.5,
        ClipConfig(frames=8, sampling="dense", stride=16),
        ViewsConfig(clips=3),
    ),
    "CLIP-L_k400_8x16x1": OfficialModel(
        1024,
        8,
        "-1*2, 1*2",
        0.5,
        ClipConfig(frames=8, sampling="dense", stride=16),
        ViewsConfig(clips=3),
    ),
    "CLIP-L_k400_32x4x1": OfficialModel(
        1024,
        32,
        "-1*2, 1*2, -2*2",
        0.5,
        ClipConfig(frames=32, sampling="dense", stride=4),
        ViewsConfig(clips=3),
    ),
    "CLIP-L_sthv2_u32": OfficialModel(
        1024, 32, "-1*2, 1*2, -2*1, 2*1, -3*1", 1.0, ClipConfig(frames=32), ViewsConfig(crops=3)
    ),
}
OFFICIAL_TOWERS: Final = {  # (width, patch, blocks, heads) -> timm's name
    (768, 16, 12, 12): "vit_base_patch16_clip_quickgelu_224.openai",
    (768, 32, 12, 12): "vit_base_patch32_clip_quickgelu_224.openai",
    (1024, 14, 24, 16): "vit_large_patch14_clip_quickgelu_224.openai",
}


def load_official(
    path: str | os.PathLike[str],
    *,
    heads: Heads = None,
    adapter_scale: float | None = None,
    head_count: int | None = None,
) -> VideoClassifier:
    """A model, in eval mode, from a checkpoint of the official ZeroI2V code, with its adapters or merged by its script.

    Widths, depth, patch, image size, frames, classes and the adapters' sites and bottleneck come from the tensors. `heads` (see
    `create_model`) and `adapter_scale` no tensor tells, so both have to be given; only a file named after one of `OFFICIAL`'s
    configurations (also with "_eval", for merged) has them from there. A merged file has no scale left. `head_count` is width / 64,
    CLIP's, unless given. CheckpointError names the file, and a key that is missing, not known or of the wrong shape.
    """
    file = read_archive(path)
    known = OFFICIAL.get(file.path.stem.removesuffix("_eval"))
    width, _, patch, _ = _shape(file, "backbone.conv1.weight", 4)
    tokens, _ = _shape(file, "backbone.positional_embedding", 2)
    _, frames, _ = _shape(file, "backbone.temporal_embedding", 3)
    num_classes, _ = _shape(file, "cls_head.fc_cls.weight", 2)
    depth = len({key.split(".")[3] for key in file.tensors if key.startswith(f"{BLOCKS}.")})
    sites, bottleneck = _adapters(file)
    if known and (known.width, known.frames) != (width, frames):
        raise CheckpointError(
            f"{file.path}: named after a model of width {known.width} and {known.frames} frames, but holds {width} and {frames}"
        )
    if heads is None and known:
        heads = known.heads
    if adapter_scale is None and (known or not sites):
        adapter_scale = known.adapter_scale if known else 1.0
    if heads is None or adapter_scale is None:
        names = ", ".join(OFFICIAL)
        raise ConfigError(
            f"{file.path}: no tensor tells the heads and the adapter_scale, so give both; they are known only for {names}"
        )
    grid = math.isqrt(tokens - 1)
    if grid * grid != tokens - 1:
        raise CheckpointError(
            f"{file.path}: backbone.positional_embedding has {tokens} tokens: not one more than a square"
        )
    head_count = head_count or width // 64
    if head_count < 1 or width % head_count:
        raise ConfigError(
            f"{file.path}: {head_count} heads do not divide a width of {width}; give head_count"
        )

    name = OFFICIAL_TOWERS.get((width, patch, depth, head_count))
    shape = {"embed_dim": width, "patch_size": patch, "depth": depth, "num_heads": head_count}
    adapters: dict[str, Any] = (
        {"sites": sites, "adapter_ratio": _ratio(bottleneck, width)} if sites else {}
    )
    model = create_model(
        name or OFFICIAL_TOWERS[768, 16, 12, 12],
        num_classes=num_classes,
        frames=frames,
        heads=heads,
        tower_options={"img_size": grid * patch, **({} if name else shape)},
        adapter_scale=adapter_scale,
        adapter_dropout=0.1,
        classifier_dropout=0.5,
        **adapters,
    )
    if not sites:
        model = model.merge()
    if known:
        model.clip, model.views = known.clip, known.views
    _assign(model.state_dict(), file, Layout("", OFFICIAL_KEYS))
    return model.eval()


def _shape(file: Archive, key: str, axes: int) -> tuple[int, ...]:
    if key not in file.tensors:
        raise CheckpointError(
            f"{file.path}: not a checkpoint of the official ZeroI2V code: {key} is missing"
        )
    shape = tuple(file.tensors[key].shape)
    if len(shape) != axes or 0 in shape:
        raise CheckpointError(f"{file.path}: {key} is {shape}, expected {axes} axes")
    return shape


def _adapters(file: Archive) -> tuple[Sequence[str] | None, int]:
    """The sites of a file's adapters, None in a merged file, and their bottleneck."""
    keys = {site: f"{BLOCKS}.0.{adapter}.D_fc1.weight" for adapter, site in ADAPTERS.items()}
    held = {site: key for site, key in keys.items() if key in file.tensors}
    if not held:
        return None, 0
    bottleneck, _ = _shape(file, next(iter(held.values())), 2)
    return list(held), bottleneck


def _ratio(bottleneck: int, width: int) -> float:
    """The ratio whose product with the width is rounded down to the bottleneck."""
    ratio = bottleneck / width
    return ratio if int(ratio * width) == bottleneck else math.nextafter(ratio, math.inf)


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
    _assign(tower.state_dict(), file, layout)


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


def _assign(own: Mapping[str, Tensor], file: Archive, layout: Layout) -> None:
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
