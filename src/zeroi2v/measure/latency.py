"""How much slower than its image tower is a model, adapted and merged? One clip, timed in turn."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from typing import Any, Final

import torch

from zeroi2v.errors import MergeError
from zeroi2v.measure.cost import plain_tower
from zeroi2v.measure.timing import balanced_orders, interleave, median_ratio
from zeroi2v.models.video import VideoClassifier

SECONDS: Final = 5.0  # about how long the timing takes
CYCLES: Final = 10  # the most cycles of the balanced orders


@torch.no_grad()
def measure_latency(model: VideoClassifier) -> dict[str, Any]:
    """Milliseconds of a clip for tower, model and merged model, and the ratios to the tower.

    The calls have the precision of the weights. The figures of `merged` are None for a model that
    cannot be merged.
    """
    tower, model = plain_tower(model), model.eval()
    size = (1, model.frames, 3, model.image_size, model.image_size)
    clip = torch.randn(size, generator=torch.Generator().manual_seed(0))
    clip = clip.to(model.classifier.weight.device)
    pictures = model.tower_input(clip)
    calls: dict[str, Callable[[], object]] = {
        "tower": lambda: tower(pictures),
        "adapted": lambda: model(clip),
    }
    try:
        merged = model.merge()
    except MergeError:
        pass
    else:
        calls["merged"] = lambda: merged(clip)
    first_round = interleave(calls, rounds=1, warmup=1)
    seconds = sum(series[0] for series in first_round.values()) / 1000
    cycle = len(balanced_orders(len(calls)))
    cycles = max(1, min(CYCLES, round(SECONDS / seconds / cycle)))
    times = interleave(calls, rounds=cycles * cycle, warmup=1)
    latency: dict[str, Any] = {
        "rounds": len(times["tower"]),
        "tower_ms": statistics.median(times["tower"]),
    }
    for name in ("adapted", "merged"):
        timed = name in times
        latency[f"{name}_over_tower"] = median_ratio(times, name, "tower") if timed else None
        latency[f"{name}_ms"] = statistics.median(times[name]) if timed else None
    return latency
