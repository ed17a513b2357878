"""What does a training step cost, beside the plain graph of the paper? ViT-B/16, 8 frames.

    python benchmarks/training_step.py             # on a CPU: about ten minutes on two free cores
    python benchmarks/training_step.py --tower vit_base_patch16_224 --name gelu
    python benchmarks/training_step.py --device cuda --clips 8 --rounds 50
    python benchmarks/training_step.py --device cuda --clips 8 --only "bf16, c" --compile

The reference is the training graph of the paper written down plainly, as the official code computes
it: adapters in activation space, attention as two products and a softmax, clones of K and V to
shift them, fp32. Beside it stand the steps of this library: in fp32, with checkpointing, in bf16,
and with each setting that trades accuracy for time. All steps are `engine.step.take_step` with an
optimiser that moves nothing, so that every step starts from the same weights.

On a GPU there are more rows: bf16 without autocast (`engine.cast`), and steps that are captured as
a CUDA graph (`engine.captured`), one of them with AdamW. The reference is captured there too. With
`--compile` torch.compile compiles two more steps before the capture.

Writes benchmarks/results/training-step-<name>.json: medians of seconds, ratios within a round, the
peak of what a step allocates, and the largest difference of a gradient from the gradient of the
reference, as a share of the largest entry of the reference's gradient.
"""

from __future__ import annotations

import argparse
import functools
import json
import statistics
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zeroi2v import VideoClassifier, create_model
from zeroi2v.config import TrainConfig
from zeroi2v.engine.captured import CapturedSteps
from zeroi2v.engine.cast import cast_weights
from zeroi2v.engine.optim import build_optimizer
from zeroi2v.engine.processes import Processes
from zeroi2v.engine.spare import spared
from zeroi2v.engine.step import Learner, take_step
from zeroi2v.files import write_json
from zeroi2v.log import Log
from zeroi2v.machine import provenance
from zeroi2v.measure.memory import peak_bytes
from zeroi2v.measure.timing import interleave, median_ratio

RESULTS = Path(__file__).parent / "results"
CLIP_TOWER = "vit_base_patch16_clip_quickgelu_224"
FRAMES = 8


def reference(model: VideoClassifier, clip: Tensor, *, fused: bool = False) -> Tensor:
    """Logits (B, K) of a clip (B, T, 3, S, S) with the weights of a model.

    The first two heads of every block of the model have the offsets -1 and +1. With `fused`,
    attention is one operation of PyTorch.
    """
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
        if fused:
            o = F.scaled_dot_product_attention(q, k, v)
        else:
            o = ((q * width**-0.5) @ k.transpose(-2, -1)).softmax(-1) @ v
        o = F.linear(o.transpose(1, 2).flatten(2), attention.proj.weight, attention.proj.bias)
        x = x + _adapter(adapters["proj"], o)
        h = F.linear(_adapter(adapters["up"], _norm(block.norm2, x)), mlp.fc1.weight, mlp.fc1.bias)
        h = h * torch.sigmoid(1.702 * h) if quick else F.gelu(h)
        x = x + _adapter(adapters["down"], F.linear(h, mlp.fc2.weight, mlp.fc2.bias))
    feature = _norm(tower.norm, x)[:, 0].unflatten(0, (clips, frames)).mean(1)
    return F.linear(feature, model.classifier.weight, model.classifier.bias)


def _norm(norm: Any, x: Tensor) -> Tensor:
    normed: Tensor = F.layer_norm(x, norm.normalized_shape, norm.weight, norm.bias, norm.eps)
    return normed


def _adapter(adapter: Any, x: Tensor) -> Tensor:
    inner = F.linear(x, adapter.down.weight, adapter.down.bias)
    added: Tensor = adapter.scale * F.linear(inner, adapter.up.weight, adapter.up.bias)
    return x + added


def _shifted(tokens: Tensor, frames: int, width: int) -> Tensor:
    by_frame: Tensor = tokens.unflatten(0, (-1, frames))
    out = by_frame.clone()
    out[:, 1:, :, :width] = by_frame[:, :-1, :, :width]
    out[:, :-1, :, width : 2 * width] = by_frame[:, 1:, :, width : 2 * width]
    return out.flatten(0, 1)


class Reference(nn.Module):
    """The plain graph of the paper, as a module that shares the weights of a model."""

    def __init__(self, model: VideoClassifier, *, fused: bool = False) -> None:
        super().__init__()
        self.model, self.fused = model, fused

    def forward(self, clip: Tensor) -> Tensor:
        return reference(self.model, clip, fused=self.fused)


class NoOptimizer(torch.optim.Optimizer):
    """An optimiser that moves no weight."""

    def step(self, closure: Any = None) -> Any:
        """Do nothing."""


@dataclass(frozen=True)
class Step:
    """A way to take a training step, up to its gradients."""

    learner: Learner
    clips: Tensor  # uint8 (B, F, 3, S, S)
    captured: CapturedSteps | None = None

    def __call__(self) -> None:
        labels = torch.arange(len(self.clips))
        if self.captured is not None:
            self.captured(self.clips, labels, 0.0)
            if self.captured.failed:
                raise RuntimeError("the step was not captured, but taken operation by operation")
        else:
            take_step(self.learner, self.clips, labels, learning_rate=0.0)

    def gradients(self) -> dict[str, Tensor]:
        """The gradients of a step, by the name of the parameter in the model."""
        self()
        named = self.learner.model.named_parameters()
        return {
            name.removeprefix("model."): parameter.grad.clone()
            for name, parameter in named
            if parameter.grad is not None
        }

    def peak_bytes(self) -> int:
        """The most memory that one step holds at once, beyond the memory held before it."""
        self.learner.model.zero_grad(set_to_none=True)
        return peak_bytes(self, self.clips.device)


def build(arguments: argparse.Namespace, **settings: Any) -> VideoClassifier:
    """A model in training mode with random weights, also where training starts from zeros."""
    torch.manual_seed(0)
    model = create_model(
        arguments.tower,
        num_classes=400,
        frames=FRAMES,
        heads=[-1, 1],
        tower_options={"depth": arguments.depth} if arguments.depth else {},
        **settings,
    ).train()
    with torch.no_grad():
        for parameter in model.adapters.parameters():
            parameter.copy_(0.02 * torch.randn(parameter.shape))
    moved: VideoClassifier = model.to(arguments.device)
    return moved


# Long: every row of the comparison is a line or two.
def ways_of(arguments: argparse.Namespace, training: ExitStack) -> dict[str, Callable[[], Step]]:
    """Every way that is compared, the reference first, each built when it is called.

    The models train until `training` ends.
    """

    def in_training(model: VideoClassifier, **settings: Any) -> VideoClassifier:
        training.enter_context(spared(model, TrainConfig(**settings)))
        return model

    @functools.cache
    def shared() -> VideoClassifier:
        """The model of most rows."""
        return in_training(build(arguments))

    @functools.cache
    def clips() -> Tensor:
        spec = shared().spec
        size = (arguments.clips, FRAMES, 3, spec.image_size, spec.image_size)
        return torch.randint(256, size, dtype=torch.uint8).to(arguments.device)

    def step(
        trained: nn.Module | None = None,
        pixels: Tensor | None = None,
        precision: Literal["fp32", "bf16"] = "fp32",
        *,
        cast: bool = False,
        captured: bool = False,
        compiles: bool = False,
        optimizer: torch.optim.Optimizer | None = None,
    ) -> Step:
        pixels = clips() if pixels is None else pixels
        trained = shared() if trained is None else trained
        learner = Learner(
            processes=Processes(pixels.device),
            model=trained,
            spec=shared().spec,
            optimizer=optimizer or NoOptimizer(trained.parameters(), {"lr": 0.0}),
            scaler=torch.amp.GradScaler(pixels.device.type, enabled=False),
            settings=TrainConfig(precision=precision, batch_size=len(pixels), compile=captured),
            cast=cast_weights(trained, torch.bfloat16, pixels.shape[1:]) if cast else None,
        )
        # a CPU has no CUDA graphs
        captures = captured and pixels.device.type == "cuda"
        replayed = CapturedSteps(learner, Log(), compiles=compiles) if captures else None
        return Step(learner, pixels, replayed)

    def reference_step(*, fused: bool = False, **options: Any) -> Step:
        return step(Reference(shared(), fused=fused), **options)

    def upper_half() -> Step:
        count = max(1, len(shared().heads) // 2)
        return step(in_training(build(arguments, adapted_blocks=count)))

    def with_adamw(**options: Any) -> Step:
        moved = in_training(build(arguments))
        optimizer = build_optimizer(moved, learning_rate=0.0, weight_decay=0.0)
        return step(moved, optimizer=optimizer, **options)

    def changed(**settings: Any) -> Step:
        return step(in_training(build(arguments), **settings))

    ways: dict[str, Callable[[], Step]] = {
        "reference": reference_step,
        "reference, fused attention": partial(reference_step, fused=True),
        "reference in bf16": partial(reference_step, precision="bf16"),
        "reference in bf16, fused attention": partial(reference_step, fused=True, precision="bf16"),
        "fp32": step,
        "checkpointing": partial(changed, checkpointing=True),
        "bf16": partial(step, precision="bf16"),
        "half of the patches": partial(changed, token_share=0.5),
        "adapters in the upper half": upper_half,
        "half of the frames": lambda: step(pixels=clips()[:, ::2]),
    }
    if not arguments.captured:
        return ways
    bf16: dict[str, Any] = {"precision": "bf16", "captured": True}
    ways |= {
        "reference in bf16, captured": partial(reference_step, **bf16),
        "reference in bf16, fused attention, captured": partial(reference_step, fused=True, **bf16),
        "bf16, weights cast once a step": partial(step, precision="bf16", cast=True),
        "fp32, captured": partial(step, captured=True),
        "bf16, captured": partial(step, **bf16),
        "bf16, weights cast once a step, captured": partial(step, cast=True, **bf16),
        "bf16, weights cast once a step, captured, with AdamW": partial(
            with_adamw, cast=True, **bf16
        ),
        "reference in bf16, fused attention, compiled and captured": partial(
            reference_step, fused=True, compiles=True, **bf16
        ),
        "bf16, compiled and captured": partial(step, cast=True, compiles=True, **bf16),
    }
    return ways


def steps_of(arguments: argparse.Namespace, training: ExitStack) -> dict[str, Step]:
    """The ways that the arguments name, built, the reference first."""
    only = arguments.only or [""]
    return {
        name: way()
        for name, way in ways_of(arguments, training).items()
        if name == "reference"
        or (any(part in name for part in only) and (arguments.compile or "compiled" not in name))
    }


def largest_difference(expected: Mapping[str, Tensor], gradients: Mapping[str, Tensor]) -> float:
    """The largest difference of a gradient, as a share of the largest entry of the expected one."""
    assert gradients.keys() == expected.keys()
    return max(
        ((gradients[name] - gradient).abs().max() / gradient.abs().max()).item()
        for name, gradient in expected.items()
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
    parser.add_argument(
        "--compile", action="store_true", help="with the rows of torch.compile, which take minutes"
    )
    parser.add_argument(
        "--only", nargs="+", metavar="TEXT", help="the reference, and rows whose name has a TEXT"
    )
    parser.add_argument("--name", help="of the result's file (default: the device's)")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the result")
    arguments = parser.parse_args()
    arguments.captured = arguments.device == "cuda"
    with ExitStack() as training:
        measured = measure(arguments, steps_of(arguments, training))
    settings = {
        name: getattr(arguments, name) for name in ("tower", "depth", "clips", "rounds", "device")
    }
    name = arguments.name or arguments.device
    result = {**provenance(), "seeds": [0], **settings, **measured}
    write_json(arguments.out / f"training-step-{name}.json", result)
    print(json.dumps(measured, indent=1))


def measure(arguments: argparse.Namespace, steps: Mapping[str, Step]) -> dict[str, Any]:
    """Differences of gradients, seconds and peaks of memory; ratios are to the reference."""
    expected = steps["reference"].gradients()
    compared = [name for name in steps if not name.startswith(("half", "adapters"))]
    differences: dict[str, float] = {}
    memory: dict[str, int] = {}
    errors: dict[str, str] = {}
    for name, step in steps.items():
        try:
            memory[name] = step.peak_bytes()
            if name in compared:
                differences[name] = largest_difference(expected, step.gradients())
        except RuntimeError as error:  # only this row fails: measure the other rows
            errors[name] = str(error)[:300]
    measured = {name: step for name, step in steps.items() if name not in errors}
    times = interleave(measured, rounds=arguments.rounds, warmup=2)
    return {
        "errors": errors,
        "largest_gradient_difference": differences,
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


if __name__ == "__main__":
    main()
