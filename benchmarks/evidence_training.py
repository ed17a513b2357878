"""How is a row of the evidence trained on clips in memory, and what does a training say of itself?

A regime says which part of the tower sees training:

- whole: all blocks, from pixels; a random crop and brightness for each clip of a batch. For a GPU.
- upper: the upper blocks, from the tokens that the blocks below give, which are computed once for
  some random crops of each clip. Heads of the lower blocks are spatial. For a CPU.

Shapes: B clips of a batch, T frames, S pixels a side, N tokens of a frame, D channels.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Final

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.evidence_clips import FRAMES, Test
from zeroi2v import VideoClassifier, create_model
from zeroi2v.config import TrainConfig
from zeroi2v.engine.optim import (
    autocast_dtype,
    build_optimizer,
    learning_rate_share,
    set_learning_rate,
)
from zeroi2v.engine.spare import spared
from zeroi2v.errors import MergeError
from zeroi2v.experiments.probe import set_classifier
from zeroi2v.inference.scores import normalise

TOWER: Final = "vit_small_patch14_dinov2"
BATCH: Final = 16
WEIGHT_DECAY: Final = 0.05
PENALTY: Final = 0.1  # of the logistic regression with which a training begins
WARMUP: Final = 0.1  # share of the steps
AREA: Final = (0.5, 1.0)  # share of a frame's area that a random crop keeps
GAIN: Final = (0.7, 1.3)  # factor of the brightness
DRAWS: Final = 4  # random crops of each clip whose tokens are kept

# Row -> settings of the model. All rows share everything else.
ROWS: Final[Mapping[str, Mapping[str, Any]]] = {
    "no time": {"heads": []},
    "HR KV": {"heads": [-1, 1]},
    "HR V": {"heads": [-1, 1], "operator": "hr_v"},
    "shift KV": {"operator": "shift_kv", "ratio": 1 / 3},
    # exploratory
    "bag of frames": {"heads": [], "temporal_embedding": "zero"},
    "shift V": {"operator": "shift_v", "ratio": 1 / 3},
    "HR QKV": {"heads": [-1, 1], "operator": "hr_qkv"},
    "shift QKV": {"operator": "shift_qkv", "ratio": 1 / 3},
    "[cls] shift": {"operator": "cls_shift", "ratio": 1 / 3},
    "k = 1": {"heads": "-1*1/2, 1*1/2"},
    "k = 4": {"heads": "-1*2, 1*2"},
    "field 2": {"heads": [-1]},
    "field 4": {"heads": [-1, 1, -2]},
    "field 5": {"heads": [-1, 1, -2, 2]},
    "GELU adapters": {"heads": [-1, 1], "strategy": "gelu_adapter"},
    "LoRA": {"heads": [-1, 1], "strategy": "lora"},
    "temporal heads alone": {"heads": [-1, 1], "strategy": "temporal_heads"},
    "linear probe": {"heads": [], "strategy": "linear_probe"},
    "full": {"heads": [-1, 1], "strategy": "full"},
    # for heads of 8 channels, of which channel shift cannot move a third
    "HR KV 1/4": {"ratio": 1 / 4},
    "HR V 1/4": {"operator": "hr_v", "ratio": 1 / 4},
    "shift KV 1/4": {"operator": "shift_kv", "ratio": 1 / 4},
}


@dataclass(frozen=True)
class Regime:
    """Which part of the tower trains, at which size, and for how long."""

    weights: Path  # of the tower, in timm's layout
    blocks: int  # the blocks that train, counted from the last
    size: int  # S
    epochs: int
    device: torch.device
    tower_name: str = TOWER
    depth: int = 12  # all blocks of the tower
    frames: int = FRAMES  # T
    batch: int = BATCH  # B of a training
    draws: int = DRAWS  # random crops of each clip in the regime `upper`; 0: the middle instead
    # Whether a training begins with the classifier that suits the untrained rest of the model best,
    # the logistic regression of its features
    probed: bool = False
    # Whether answers to shuffled frames, and of the merged model, are asked for too
    checked: bool = True

    @property
    def is_whole(self) -> bool:
        """Whether all blocks train, from pixels."""
        return self.blocks == self.depth

    @cached_property
    def tower(self) -> nn.Module:
        """The frozen image tower, which also gives the weights of every row."""
        tower: nn.Module = create_model(
            self.tower_name,
            num_classes=1,
            weights=self.weights,
            tower_options={"img_size": self.size},
        ).tower
        return tower.to(self.device).eval()

    def model(self, row: str, class_count: int) -> VideoClassifier:
        """The model of a row. In the regime `upper` its tower takes tokens instead of pictures."""
        model = create_model(
            self.tower_name,
            num_classes=class_count,
            frames=self.frames,
            pretrained=False,
            tower_options={"img_size": self.size, "depth": self.blocks},
            **ROWS[row],
        )
        tower: Any = model.tower
        weights = {
            _renumbered(name, self.depth - self.blocks): tensor
            for name, tensor in self.tower.state_dict().items()
        }
        own = tower.state_dict().keys()
        tower.load_state_dict({name: weights[name] for name in own})
        if not self.is_whole:
            # The tokens have a position, and the class token is among them.
            tower.patch_embed, tower.pos_embed, tower.cls_token = _Tokens(), None, None
        if self.device.type == "cpu":
            # For few tokens PyTorch's fused attention is slow on a CPU: in bf16, backward, five
            # times as slow as the products written out.
            for block in tower.blocks:
                block.attn.fused_attn = False
        return model.to(self.device)


def _renumbered(name: str, first: int) -> str:
    """The name of a tensor in a tower whose first block is block number `first` of the file."""
    if not name.startswith("blocks."):
        return name
    _, number, rest = name.split(".", 2)
    return f"blocks.{int(number) - first}.{rest}"


class _Tokens(nn.Module):
    """In place of a patch embedding: tokens (B*T, 3, N, D / 3) as (B*T, N, D)."""

    def forward(self, tokens: Tensor) -> Tensor:
        return tokens.transpose(1, 2).flatten(2)


class Inputs:
    """The inputs of a model for the samples of a test, by regime."""

    def __init__(self, test: Test, regime: Regime) -> None:
        self.test, self.regime = test, regime
        self.pixels = test.pixels.to(regime.device)
        tower: Any = regime.tower
        config = tower.pretrained_cfg
        self.mean, self.std = config["mean"], config["std"]
        self.tokens = None if regime.is_whole else self._tokens()

    def _tokens(self) -> Tensor:
        """The lower blocks' tokens (1 + draws, n, T, 3, N, D / 3), bfloat16: middle, then draws."""
        generator = torch.Generator(self.pixels.device).manual_seed(0)
        tower: Any = self.regime.tower
        lower = tower.blocks[: self.regime.depth - self.regime.blocks]

        @torch.no_grad()
        def tokens_of(clips: Tensor) -> Tensor:
            with torch.autocast(clips.device.type, torch.bfloat16):
                tokens = tower._pos_embed(tower.patch_embed(clips.flatten(0, 1)))
                tokens = lower(tower.norm_pre(tower.patch_drop(tokens)))
            parts: Tensor = tokens.bfloat16().unflatten(-1, (3, -1)).transpose(1, 2)
            by_frame: Tensor = parts.unflatten(0, (-1, self.regime.frames))
            return by_frame

        draws = []
        for number in range(1 + self.regime.draws):
            drawn = [
                tokens_of(self._drawn(part, generator) if number else self._middle(part))
                for part in self.pixels.split(BATCH)
            ]
            draws.append(torch.cat(drawn))
        return torch.stack(draws)

    def training(self, samples: Tensor, generator: torch.Generator) -> Tensor:
        """Random inputs of a batch of samples."""
        clips = self.test.clips[samples].to(self.pixels.device)
        if self.tokens is None:
            inputs = self._drawn(self.pixels[clips], generator)
        elif not self.regime.draws:
            return self.testing(samples)
        else:
            draws = torch.randint(1, 1 + self.regime.draws, clips.shape, generator=generator)
            inputs = self.tokens[draws.to(clips.device), clips].float()
        return self._directed(inputs, samples)

    def testing(self, samples: Tensor) -> Tensor:
        """The inputs of a batch of samples: the middle of every frame."""
        clips = self.test.clips[samples].to(self.pixels.device)
        if self.tokens is None:
            return self._directed(self._middle(self.pixels[clips]), samples)
        return self._directed(self.tokens[0, clips].float(), samples)

    def _directed(self, inputs: Tensor, samples: Tensor) -> Tensor:
        backwards = self.test.backwards[samples].to(inputs.device)
        turned: Tensor = backwards.view(-1, *[1] * (inputs.ndim - 1))
        return torch.where(turned, inputs.flip(1), inputs)

    def _middle(self, pixels: Tensor) -> Tensor:
        size = self.regime.size
        scaled: Tensor = F.interpolate(
            pixels.flatten(0, 1).float(), (size, size), mode="bilinear", antialias=True
        )
        clips: Tensor = normalise(scaled, self.mean, self.std).unflatten(
            0, (-1, self.regime.frames)
        )
        return clips

    def _drawn(self, pixels: Tensor, generator: torch.Generator) -> Tensor:
        """A random square crop and brightness of each clip, the same for all frames of a clip."""
        count, size = len(pixels), self.regime.size
        draws = torch.rand(4, count, generator=generator, device=generator.device).to(pixels.device)
        side = (AREA[0] + (AREA[1] - AREA[0]) * draws[0]).sqrt()
        x, y = ((2 * draw - 1) * (1 - side) for draw in draws[1:3])
        gain = GAIN[0] + (GAIN[1] - GAIN[0]) * draws[3]
        zero = torch.zeros_like(side)
        moves = torch.stack([side, zero, x, zero, side, y], 1).view(count, 2, 3)
        flat = pixels.flatten(1, 2).float()
        grid = F.affine_grid(moves, [*flat.shape], align_corners=False)
        cropped = F.grid_sample(flat, grid, align_corners=False, padding_mode="reflection")
        scaled = F.interpolate(cropped, (size, size), mode="bilinear", antialias=True)
        bright = (scaled * gain.view(-1, 1, 1, 1)).clamp_(0, 255)
        bright = bright.unflatten(1, (self.regime.frames, 3))
        return normalise(bright, self.mean, self.std)


def train(
    row: str, inputs: Inputs, held_out: tuple[int, ...], *, rate: float, seed: int
) -> dict[str, Any]:
    """Train a row on all folds but some, and answer the samples of each fold that is held out.

    The result has, for each fold held out: the mean loss (`Test.loss`; none if not finite), and for
    every sample, in order, whether the answer is right ("1" and "0"), of the model and of the model
    on frames in random order. Of the merged model: for how many samples its highest logit is that
    of another label, and the largest difference of a logit, as a share of the largest logit; none
    if the adapters of the row cannot merge. `probed` is the same as `right` before the first step.
    """
    test, regime = inputs.test, inputs.regime
    began = time.monotonic()
    torch.manual_seed(seed)
    model = regime.model(row, test.class_count)
    known = (~torch.isin(test.folds, torch.tensor(held_out))).nonzero()[:, 0]
    probed = probe(model, inputs, known, held_out) if regime.probed else {}
    model.train()
    generator = torch.Generator(
        regime.device if regime.is_whole else torch.device("cpu")
    ).manual_seed(seed)
    order = torch.Generator().manual_seed(seed)
    steps = regime.epochs * (len(known) // regime.batch)
    optimizer = build_optimizer(model, learning_rate=rate, weight_decay=WEIGHT_DECAY)
    dtype = autocast_dtype("auto", regime.device)
    losses: list[Tensor] = []
    waiting = torch.empty(0, dtype=torch.int64)
    with spared(model, TrainConfig()):
        for step in range(steps):
            if len(waiting) < regime.batch:
                waiting = known[torch.randperm(len(known), generator=order)]
            samples, waiting = waiting[: regime.batch], waiting[regime.batch :]
            share = learning_rate_share(
                step, steps=steps, warmup_steps=math.ceil(WARMUP * steps), warmup_start=0.01
            )
            set_learning_rate(optimizer, rate * share)
            clips, labels = inputs.training(samples, generator), test.labels[samples]
            with torch.autocast(
                regime.device.type, dtype or torch.bfloat16, enabled=dtype is not None
            ):
                logits = model(clips)
            loss = F.cross_entropy(logits.float(), labels.to(logits.device))
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            losses.append(loss.detach())
    seconds = time.monotonic() - began
    model.eval()
    try:
        merged = model.merge() if regime.checked else None
    except MergeError:  # the adapters of the row are not linear
        merged = None
    return {
        "steps": steps,
        "seconds": round(seconds, 1),
        "training_loss": round(torch.stack(losses[-steps // 10 :]).mean().item(), 5),
        "device": regime.device.type,
        "folds": {
            fold: answers(model, merged, inputs, fold) | probed.get(fold, {}) for fold in held_out
        },
    }


@torch.no_grad()
def probe(
    model: VideoClassifier, inputs: Inputs, known: Tensor, held_out: tuple[int, ...]
) -> dict[int, dict[str, str]]:
    """Fit the classifier of an untrained model to the features of the samples `known`.

    Returns the answers to the samples of each fold that is held out.
    """
    test, device = inputs.test, inputs.regime.device

    def features_of(samples: Tensor) -> Tensor:
        with torch.autocast(device.type, torch.bfloat16):
            parts = [model.features(inputs.testing(part)).mean(1) for part in samples.split(BATCH)]
        return torch.cat(parts).double().cpu()

    model.eval()
    set_classifier(model.classifier, features_of(known), test.labels[known], PENALTY)
    found = {}
    for fold in held_out:
        samples = (test.folds == fold).nonzero()[:, 0]
        logits = model.classifier(features_of(samples).float().to(device)).cpu()
        found[fold] = {"probed": _digits(test.is_right(logits, samples))}
    return found


@torch.no_grad()
def answers(
    model: VideoClassifier, merged: VideoClassifier | None, inputs: Inputs, fold: int
) -> dict[str, Any]:
    """The answers of a trained model, and of its merged copy, to a fold's samples, in float32."""
    test = inputs.test
    samples = (test.folds == fold).nonzero()[:, 0]
    order = torch.Generator().manual_seed(0)
    logits, shuffled, by_merged = [], [], []
    for part in samples.split(BATCH):
        clips = inputs.testing(part)
        logits.append(model(clips).float().cpu())
        if not inputs.regime.checked:
            continue
        shuffled.append(
            model(clips[:, torch.randperm(clips.shape[1], generator=order)]).float().cpu()
        )
        if merged is not None:
            by_merged.append(merged(clips).float().cpu())
    scores = torch.cat(logits)
    loss = test.loss(scores, samples).item()
    result: dict[str, Any] = {
        "loss": round(loss, 5) if math.isfinite(loss) else None,
        "right": _digits(test.is_right(scores, samples)),
        "merged_answers_otherwise": None,
        "merged_difference": None,
    }
    if shuffled:
        result["shuffled"] = _digits(test.is_right(torch.cat(shuffled), samples))
    if by_merged:
        merged_scores = torch.cat(by_merged)
        other = merged_scores.argmax(1) != scores.argmax(1)
        result["merged_answers_otherwise"] = int(other.sum())
        difference = (merged_scores - scores).abs().max() / scores.abs().max()
        result["merged_difference"] = float(f"{difference:.1e}")
    return result


def _digits(right: Tensor) -> str:
    return "".join(map(str, right.int().tolist()))
