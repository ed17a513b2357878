"""What does a training step cost, beside the plain graph of the paper? ViT-B/16, 8 frames, in turn in one run.

    python benchmarks/training_step.py                                          # on a CPU: about ten minutes on two free cores
    python benchmarks/training_step.py --tower vit_base_patch16_224 --name gelu
    python benchmarks/training_step.py --device cuda --clips 8 --rounds 50

The reference is the paper's training graph written down plainly, as the official code computes it: adapters in activation space,
attention as two products and a softmax, clones of K and V to shift them, fp32. Beside it, this library's step in fp32, with
checkpointing, in bf16, and with the levers that trade something. Writes benchmarks/results/training-step-<name>.json: medians of
seconds, ratios within a round, the peak of what the step allocates, and the largest difference of a gradient from the reference's, as a
share of that gradient's largest entry.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zeroi2v import VideoClassifier, create_model
from zeroi2v.machine import provenance
from zeroi2v.measure.memory import peak_bytes
from zeroi2v.measure.timing import interleave, median_ratio

RESULTS = Path(__file__).parent / "results"
CLIP_TOWER = "vit_base_patch16_clip_quickgelu_224"


def reference(model: VideoClassifier, clip: Tensor) -> Tensor:
    """Logits (B, K) of a clip (B, T, 3, S, S) with the weights of a model whose first two heads of every block have offsets -1, +1."""
    tower: Any = model.tower
    clips, frames = clip.shape[:2]
    heads, width = tower.blocks[0].attn.num_heads, tower.embed_dim // tower.blocks[0].attn.num_heads
    quick = type(tower.blocks[0].mlp.act).__name__ == "QuickGELU"
    x = tower.patch_embed(clip.flatten(0, 1))
    x = torch.cat([tower.cls_token.expand(len(x), -1, -1), x], 1) + tower.pos_embed
    x = (x.unflatten(0, (clips, frames)) + model.temporal_embedding[:, None]).flatten(0, 1)
    if not isinstance(tower.norm_pre, nn.Identity):
        x = _norm(tower.norm_pre, x)
    every_adapter: Any = model.adapters
    for block, adapters in zip(tower.blocks, every_adapter, strict=True):
        attention, mlp = block.attn, block.mlp
        a = _adapter(adapters["qkv"], _norm(block.norm1, x))
        q, k, v = F.linear(a, attention.qkv.weight, attention.qkv.bias).chunk(3, -1)
        q, k, v = (
            part.unflatten(-1, (heads, width)).transpose(1, 2)
            for part in (q, _shifted(k, frames, width), _shifted(v, frames, width))
        )
        o = ((q * width**-0.5) @ k.transpose(-2, -1)).softmax(-1) @ v
        o = F.linear(o.transpose(1, 2).flatten(2), attention.proj.weight, attention.proj.bias)
        x = x + _adapter(adapters["proj"], o)
        h = F.linear(_adapter(adapters["up"], _norm(block.norm2, x)), mlp.fc1.weight, mlp.fc1.bias)
        h = h * torch.sigmoid(1.702 * h) if quick else F.gelu(h)
        x = x + _adapter(adapters["down"], F.linear(h, mlp.fc2.weight, mlp.fc2.bias))
    feature = _norm(tower.norm, x)[:, 0].unflatten(0, (clips, frames)).mean(1)
    logits: Tensor = F.linear(feature, model.classifier.weight, model.classifier.bias)
    return logits


def _norm(norm: Any, x: Tensor) -> Tensor:
    return F.layer_norm(x, norm.normalized_shape, norm.weight, norm.bias, norm.eps)


def _adapter(adapter: Any, x: Tensor) -> Tensor:
    inner = F.linear(x, adapter.down.weight, adapter.down.bias)
    return x + adapter.scale * F.linear(inner, adapter.up.weight, adapter.up.bias)


def _shifted(tokens: Tensor, frames: int, width: int) -> Tensor:
    by_frame = tokens.unflatten(0, (-1, frames))
    out = by_frame.clone()
    out[:, 1:, :, :width] = by_frame[:, :-1, :, :width]
    out[:, :-1, :, width : 2 * width] = by_frame[:, 1:, :, width : 2 * width]
    return out.flatten(0, 1)


@dataclasses.dataclass(frozen=True)
class Step:
    """A way to take a training step, up to its gradients."""

    model: VideoClassifier
    logits: Callable[[Tensor], Tensor]
    clip: Tensor
    bf16: bool = False

    def __call__(self) -> None:
        self.model.zero_grad(set_to_none=True)
        labels = torch.arange(len(self.clip), device=self.clip.device)
        autocast = (
            torch.autocast(self.clip.device.type, torch.bfloat16)
            if self.bf16
            else contextlib.nullcontext()
        )
        with autocast:
            logits = self.logits(self.clip)
        F.cross_entropy(logits.float(), labels).backward()  # type: ignore[no-untyped-call]  # not annotated in torch

    def gradients(self) -> dict[str, Tensor]:
        self()
        return {
            name: p.grad.clone() for name, p in self.model.named_parameters() if p.grad is not None
        }

    def peak_bytes(self) -> int:
        """The most memory that one step holds at once, beyond what lay there before it."""
        self.model.zero_grad(set_to_none=True)
        return peak_bytes(self, self.clip.device)


def build(arguments: argparse.Namespace, **settings: Any) -> VideoClassifier:
    """A model in training mode with random weights, also where training starts from zeros."""
    torch.manual_seed(0)
    options = {"depth": arguments.depth} if arguments.depth else {}
    model = create_model(
        arguments.tower, num_classes=400, frames=8, heads=[-1, 1], tower_options=options, **settings
    ).train()
    with torch.no_grad():
        for parameter in model.adapters.parameters():
            parameter.copy_(0.02 * torch.randn(parameter.shape))
    return model.to(arguments.device)


def steps_of(arguments: argparse.Namespace) -> dict[str, Step]:
    """Every way that is compared, the reference first."""
    plain = build(arguments)
    clip = torch.randn(arguments.clips, 8, 3, plain.image_size, plain.image_size).to(
        arguments.device
    )
    checkpointed, half_tokens = build(arguments), build(arguments)
    checkpointed.checkpoint_blocks()
    half_tokens.drop_patches(0.5)
    upper = build(arguments, adapted_blocks=max(1, len(plain.heads) // 2))
    few = build(arguments)
    few.take_frames(4)
    return {
        "reference": Step(plain, lambda clip: reference(plain, clip), clip),
        "reference in bf16": Step(plain, lambda clip: reference(plain, clip), clip, bf16=True),
        "fp32": Step(plain, plain, clip),
        "checkpointing": Step(checkpointed, checkpointed, clip),
        "bf16": Step(plain, plain, clip, bf16=True),
        "half of the patches": Step(half_tokens, half_tokens, clip),
        "adapters in the upper half": Step(upper, upper, clip),
        "half of the frames": Step(few, few, clip[:, ::2]),
    }


def largest_difference(one: Step, other: Step) -> float:
    """Over all tensors: the largest difference of a gradient, as a share of the largest entry of the reference's."""
    ours, theirs = other.gradients(), one.gradients()
    assert ours.keys() == theirs.keys()
    return max(
        ((ours[name] - theirs[name]).abs().max() / theirs[name].abs().max()).item()
        for name in theirs
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--tower", default=CLIP_TOWER, help="a plain vision transformer with a class token"
    )
    parser.add_argument("--depth", type=int, help="blocks, if fewer than the tower's")
    parser.add_argument("--clips", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--name", help="of the result's file (default: the device's)")
    arguments = parser.parse_args()
    steps = steps_of(arguments)
    first = steps["reference"]
    memory = {name: step.peak_bytes() for name, step in steps.items()}
    times = interleave(steps, rounds=arguments.rounds, warmup=1)
    result = {
        **provenance(),
        "seeds": [0],
        **{key: getattr(arguments, key) for key in ("tower", "depth", "clips", "rounds", "device")},
        "largest_gradient_difference": {
            name: largest_difference(first, steps[name]) for name in ("fp32", "checkpointing")
        },
        "steps": {
            name: {
                "seconds": round(statistics.median(series) / 1000, 4),
                "time_over_reference": round(median_ratio(times, name, "reference"), 4),
                "peak_mib": round(memory[name] / 2**20, 1),
                "memory_over_reference": round(memory[name] / memory["reference"], 4),
            }
            for name, series in times.items()
        },
    }
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"training-step-{arguments.name or arguments.device}.json"
    path.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(
        json.dumps({key: result[key] for key in ("largest_gradient_difference", "steps")}, indent=1)
    )


if __name__ == "__main__":
    main()
