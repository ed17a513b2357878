"""What does the official ZeroI2V code compute? Its forward pass, written anew as an oracle.

The functions read the keys of the official checkpoints.

Shapes: B clips, T frames, N = HW + 1 tokens, D channels, H heads. Inside the blocks, tokens are
[N, B * T, D], as in the official code.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

State = dict[str, Tensor]
FOUR = ("T_Adapter_in", "S_Adapter", "MLP_Adapter", "MLP_Adapter_out")
SIX = ("T_Adapter_in_q", "T_Adapter_in_k", "T_Adapter_in_v", *FOUR[1:])


def random_official(
    *,
    width: int,
    depth: int,
    frames: int,
    adapters: Sequence[str] = FOUR,
    patch: int = 16,
    image_size: int = 32,
    classes: int = 7,
) -> State:
    """A state dict in the official layout, every tensor random and large enough to matter."""
    generator = torch.Generator().manual_seed(width + depth + frames)
    state: State = {}

    def add(name: str, *shape: int, std: float, mean: float = 0.0) -> None:
        state[name] = mean + std * torch.randn(shape, generator=generator)

    def linear(name: str, outputs: int, inputs: int) -> None:
        add(f"{name}.weight", outputs, inputs, std=inputs**-0.5)
        add(f"{name}.bias", outputs, std=0.2)

    def norm(name: str) -> None:
        add(f"{name}.weight", width, std=0.2, mean=1.0)
        add(f"{name}.bias", width, std=0.2)

    add("backbone.class_embedding", width, std=1.0)
    add("backbone.positional_embedding", (image_size // patch) ** 2 + 1, width, std=0.5)
    add("backbone.temporal_embedding", 1, frames, width, std=0.5)
    add("backbone.conv1.weight", width, 3, patch, patch, std=(3 * patch**2) ** -0.5)
    norm("backbone.ln_pre")
    norm("backbone.ln_post")
    for block in range(depth):
        name = f"backbone.transformer.resblocks.{block}"
        add(f"{name}.attn.in_proj_weight", 3 * width, width, std=2 * width**-0.5)
        add(f"{name}.attn.in_proj_bias", 3 * width, std=0.2)
        linear(f"{name}.attn.out_proj", width, width)
        norm(f"{name}.ln_1")
        norm(f"{name}.ln_2")
        linear(f"{name}.mlp.c_fc", 4 * width, width)
        linear(f"{name}.mlp.c_proj", width, 4 * width)
        for adapter in adapters:
            linear(f"{name}.{adapter}.D_fc1", width // 4, width)
            linear(f"{name}.{adapter}.D_fc2", width, width // 4)
    linear("cls_head.fc_cls", classes, width)
    return state


def official_features(
    state: State, clip: Tensor, *, folds: Sequence[tuple[int, int]], scale: float, heads: int
) -> Tensor:
    """The feature of each frame (B, T, D) of a clip (B, T, 3, S, S).

    `folds` says how channels move, in order from channel 0: (64, -1) takes 64 channels from the
    frame before.
    """
    batch, frames = clip.shape[:2]
    kernel = state["backbone.conv1.weight"]
    x = (
        F.conv2d(clip.flatten(0, 1), kernel, stride=kernel.shape[-1]).flatten(2).transpose(1, 2)
    )  # (B * T, HW, D)
    first = state["backbone.class_embedding"].expand(len(x), 1, -1)
    x = torch.cat([first, x], 1) + state["backbone.positional_embedding"]
    x = (
        x.view(batch, frames, *x.shape[1:]) + state["backbone.temporal_embedding"][0][:, None]
    ).flatten(0, 1)
    x = _norm(state, "backbone.ln_pre", x).transpose(0, 1)  # (N, B * T, D)
    depth = sum(key.endswith(".ln_1.weight") for key in state)
    for block in range(depth):
        name = f"backbone.transformer.resblocks.{block}"
        y = _attention(state, name, _norm(state, f"{name}.ln_1", x), frames, folds, scale, heads)
        x = x + _adapter(state, f"{name}.S_Adapter", y, scale)
        y = _adapter(state, f"{name}.MLP_Adapter", _norm(state, f"{name}.ln_2", x), scale)
        y = _linear(state, f"{name}.mlp.c_fc", y)
        y = _linear(state, f"{name}.mlp.c_proj", y * torch.sigmoid(1.702 * y))
        x = x + _adapter(state, f"{name}.MLP_Adapter_out", y, scale)
    return _norm(state, "backbone.ln_post", x[0]).view(batch, frames, -1)


def official_logits(state: State, features: Tensor) -> Tensor:
    return _linear(state, "cls_head.fc_cls", features.mean(1))


def official_merge(state: State, scale: float) -> State:
    """The state dict after the official merging script, for four adapters.

    W_a = I + s W_2 W_1 is multiplied into the linear before or after the adapter.
    """
    state = dict(state)
    for block in range(sum(key.endswith(".ln_1.weight") for key in state)):
        name = f"backbone.transformer.resblocks.{block}"
        targets = ("attn.in_proj_", "attn.out_proj.", "mlp.c_fc.", "mlp.c_proj.")
        for adapter, target in zip(FOUR, targets, strict=True):
            down, b_1, up, b_2 = (
                state.pop(f"{name}.{adapter}.{key}")
                for key in ("D_fc1.weight", "D_fc1.bias", "D_fc2.weight", "D_fc2.bias")
            )
            w_a, b_a = torch.eye(len(up)) + scale * up @ down, scale * (up @ b_1 + b_2)
            weight, bias = state[f"{name}.{target}weight"], state[f"{name}.{target}bias"]
            before = adapter in ("T_Adapter_in", "MLP_Adapter")
            state[f"{name}.{target}weight"] = weight @ w_a if before else w_a @ weight
            state[f"{name}.{target}bias"] = weight @ b_a + bias if before else w_a @ bias + b_a
    return state


def _linear(state: State, name: str, x: Tensor) -> Tensor:
    return F.linear(x, state[f"{name}.weight"], state[f"{name}.bias"])


def _norm(state: State, name: str, x: Tensor) -> Tensor:
    return F.layer_norm(x, x.shape[-1:], state[f"{name}.weight"], state[f"{name}.bias"])


def _adapter(state: State, name: str, x: Tensor, scale: float) -> Tensor:
    if f"{name}.D_fc1.weight" not in state:
        return x
    return x + scale * _linear(state, f"{name}.D_fc2", _linear(state, f"{name}.D_fc1", x))


def _shift(feat: Tensor, frames: int, folds: Sequence[tuple[int, int]]) -> Tensor:
    feat = feat.view(feat.shape[0], -1, frames, feat.shape[-1])  # (N, B, T, D)
    out = feat.clone()
    start = 0
    for fold, offset in folds:
        channels = slice(start, start + fold)
        for frame in range(frames):
            if 0 <= frame + offset < frames:
                out[:, :, frame, channels] = feat[:, :, frame + offset, channels]
        start += fold
    return out.flatten(1, 2)


def _attention(
    state: State,
    name: str,
    x: Tensor,
    frames: int,
    folds: Sequence[tuple[int, int]],
    scale: float,
    heads: int,
) -> Tensor:
    weights, biases = (
        state[f"{name}.attn.in_proj_weight"].chunk(3),
        state[f"{name}.attn.in_proj_bias"].chunk(3),
    )
    q, k, v = (
        F.linear(
            _adapter(
                state,
                f"{name}.T_Adapter_in_{part}",
                _adapter(state, f"{name}.T_Adapter_in", x, scale),
                scale,
            ),
            weight,
            bias,
        )
        for part, weight, bias in zip("qkv", weights, biases, strict=True)
    )
    k, v = _shift(k, frames, folds), _shift(v, frames, folds)
    q, k, v = (
        part.unflatten(-1, (heads, -1)).permute(1, 2, 0, 3) for part in (q, k, v)
    )  # (B * T, H, N, D / H)
    attention = (q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5).softmax(-1)
    return _linear(state, f"{name}.attn.out_proj", (attention @ v).permute(2, 0, 1, 3).flatten(2))
