"""Pretrain the embedded tower, `zeroi2v_tiny`, on procedurally drawn still pictures.

    python benchmarks/pretrain_tiny.py --out zeroi2v_tiny.safetensors

Linear heads learn to read the main object's shape, stripes, place, angle and size from the [cls]
feature. From every patch token the heads learn to read how much of the patch the object covers, the
direction to the object's centre, and the object's angle and size. The tower sees no video. The same
seed, kind of processor and versions give the same file. 4,000 steps take about 20 minutes on 2
cores with bfloat16 instructions. Writes benchmarks/results/zeroi2v_tiny.json: what the tower can
read off pictures that it has not seen, and a hash of its weights.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import time
from collections.abc import Mapping
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from zeroi2v.data.synthetic import SHAPES, SIZE_RANGE, Scene, random_scene, render
from zeroi2v.files import write_files, write_json
from zeroi2v.machine import provenance
from zeroi2v.models.towers import TINY, tiny_tower

RESULT = Path(__file__).parent / "results" / "zeroi2v_tiny.json"
SIZE: int = TINY["img_size"]
PATCH: int = TINY["patch_size"]


class Targets(nn.Module):
    """Linear heads on the tokens of the tower, and the losses of their readings."""

    def __init__(self, width: int) -> None:
        super().__init__()
        # Of a picture: shape, stripes, place (2), angle (2), size (1).
        self.picture = nn.Linear(width, len(SHAPES) + 2 + 5)
        # Of a patch: cover (1), way to the centre (2), angle (2), size (1).
        self.patch = nn.Linear(width, 6)

    def forward(self, tokens: Tensor, scene: Scene, cover: Tensor) -> dict[str, Tensor]:
        picture, patch = self.picture(tokens[:, 0]).float(), self.patch(tokens[:, 1:]).float()
        angle = scene.angle[:, 0]
        turn = torch.stack([angle.cos(), angle.sin()], -1)
        low, high = (math.log(bound) for bound in SIZE_RANGE)
        size = (scene.radius[:, :1].log() - low) / (high - low) * 2 - 1

        side = SIZE // PATCH
        share = F.avg_pool2d(cover[:, None], PATCH).flatten(1)  # (N, patches)
        centre = (torch.arange(side) + 0.5) / side
        grid = torch.stack(torch.meshgrid(centre, centre, indexing="xy"), -1).flatten(0, 1)
        way = scene.place[:, :1] - grid
        way = (way - way.round()) * 4
        weight = (share > 0).float()
        local = torch.cat(
            [
                way,
                turn[:, None].expand(-1, side * side, -1),
                size[:, None].expand(-1, side * side, -1),
            ],
            -1,
        )
        shapes = len(SHAPES)
        return {
            "shape": F.cross_entropy(picture[:, :shapes], scene.shape[:, 0]),
            "stripes": F.cross_entropy(
                picture[:, shapes : shapes + 2], (scene.stripes[:, 0] > 0).long()
            ),
            "place": F.mse_loss(picture[:, shapes + 2 : shapes + 4], scene.place[:, 0] * 4 - 2),
            "angle": F.mse_loss(picture[:, shapes + 4 : shapes + 6], turn),
            "size": F.mse_loss(picture[:, shapes + 6 :], size),
            "cover": F.mse_loss(patch[..., 0], share) * 4,
            "local": ((patch[..., 1:] - local).square().mean(-1) * weight).sum() / weight.sum(),
        }


def tokens_of(tower: VisionTransformer, pictures: Tensor) -> Tensor:
    """The tokens (N, tokens, D) of pictures, uint8 (N, 3, S, S)."""
    tokens: Tensor = tower.forward_features(pictures.float() / 127.5 - 1)
    return tokens


@torch.no_grad()
def card(tower: VisionTransformer, targets: Targets, seed: int) -> dict[str, float]:
    """What the tower can read off 4,096 pictures that it has not seen."""
    generator = torch.Generator().manual_seed(seed + 1)
    scene = random_scene(4096, generator)
    pictures, _ = render(scene, SIZE, generator)
    read = torch.cat(
        [targets.picture(tokens_of(tower, part)[:, 0]) for part in pictures.split(512)]
    )
    shapes = len(SHAPES)
    miss = (read[:, shapes + 2 : shapes + 4] + 2) / 4 - scene.place[:, 0]
    turn = torch.atan2(read[:, shapes + 5], read[:, shapes + 4]) - scene.angle[:, 0]
    stripes = read[:, shapes : shapes + 2].argmax(1) == (scene.stripes[:, 0] > 0)
    turn = torch.remainder(turn + math.pi, 2 * math.pi) - math.pi
    return {
        "shape_accuracy": (read[:, :shapes].argmax(1) == scene.shape[:, 0]).float().mean().item(),
        "stripes_accuracy": stripes.float().mean().item(),
        "median_place_error_pixels": (miss.norm(dim=1) * SIZE).median().item(),
        "median_angle_error_degrees": torch.rad2deg(turn).abs().median().item(),
    }


def digest(weights: dict[str, Tensor]) -> str:
    """A hash of the names and bytes of weights."""
    total = hashlib.sha256()
    for name in sorted(weights):
        total.update(name.encode() + weights[name].numpy().tobytes())
    return total.hexdigest()


def pretrain(tower: VisionTransformer, arguments: argparse.Namespace) -> None:
    """Train the tower, and write it every 1,000 steps and at the end."""
    generator = torch.Generator().manual_seed(arguments.seed)
    targets = Targets(TINY["embed_dim"])
    weights = [*tower.parameters(), *targets.parameters()]
    optimizer = torch.optim.AdamW(
        weights, lr=arguments.learning_rate, weight_decay=0.05, betas=(0.9, 0.98)
    )
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer,
        arguments.learning_rate,
        total_steps=arguments.steps,
        pct_start=0.05,
        cycle_momentum=False,
    )
    start = time.perf_counter()
    for step in range(1, arguments.steps + 1):
        scene = random_scene(arguments.batch_size, generator)
        pictures, cover = render(scene, SIZE, generator)
        with torch.autocast("cpu", torch.bfloat16):
            losses = targets(tokens_of(tower, pictures), scene, cover)
        optimizer.zero_grad(set_to_none=True)
        sum(losses.values(), torch.zeros(())).backward()
        nn.utils.clip_grad_norm_(weights, 1.0)
        optimizer.step()
        schedule.step()
        if step % 100 == 0:
            text = " ".join(f"{name} {loss.item():.3f}" for name, loss in losses.items())
            speed = step / (time.perf_counter() - start)
            print(f"step {step} {text} {speed:.2f} steps/s", flush=True)
        if step % 1000 == 0 or step == arguments.steps:
            tower.eval()
            write(tower, card(tower, targets, arguments.seed), arguments)
            tower.train()


def write(
    tower: VisionTransformer, figures: Mapping[str, float], arguments: argparse.Namespace
) -> None:
    """Write the weights of the tower, and the figures of its card."""
    print(json.dumps(figures), flush=True)
    settings = {name: value for name, value in vars(arguments).items() if name != "out"}
    metadata = {
        key: f"{value:.4f}" if isinstance(value, float) else str(value)
        for key, value in {**settings, **figures}.items()
    }
    weights = {key: value.contiguous() for key, value in tower.state_dict().items()}
    write_files({arguments.out: lambda path: save_file(weights, path, metadata)})
    result = {**provenance(), **settings, **figures, "weights_sha256": digest(weights)}
    write_json(RESULT, result)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=4000)
    parser.add_argument("--batch-size", type=int, default=256)
    parser.add_argument("--learning-rate", type=float, default=2e-3)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    torch.manual_seed(arguments.seed)
    pretrain(tiny_tower(pretrained=False).train(), arguments)


if __name__ == "__main__":
    main()
