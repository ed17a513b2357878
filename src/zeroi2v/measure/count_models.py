"""What does `zeroi2v bench --count` count? The kernels of each model, for batches of some sizes."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

import torch
from torch import nn

from zeroi2v.errors import ConfigError
from zeroi2v.log import Log
from zeroi2v.machine import provenance
from zeroi2v.measure.count import Card, KernelCount, count_kernels
from zeroi2v.measure.pretended import pretended
from zeroi2v.measure.subjects import MIB, Subject
from zeroi2v.models.compiled import DTYPES

BATCHES: Final = (1, 32)  # clips of a call
# Fitted to calls of ViT-B/16 with 8 frames, timed on an H100 with 80 GB: forward passes in bf16,
# and training steps in fp32 (without TF32).
H100_BYTES: Final = 2.2e12  # a second
H100_OPERATIONS: Final[Mapping[str, float]] = {"fp32": 42e12, "bf16": 560e12, "fp16": 560e12}
SECONDS_PER_KERNEL: Final = 3e-6


def card_for(dtype: str, *, bandwidth: float | None, rate: float | None) -> Card:
    """A card with this bandwidth in TB/s and this rate in TFLOP/s; without them an H100.

    ConfigError if the bandwidth or the rate is not a finite number above 0.
    """
    for option, value in (("--bandwidth", bandwidth), ("--rate", rate)):
        if value is not None and not 0 < value < math.inf:
            raise ConfigError(f"{option} must be above 0, and finite, got {value}")
    return Card(
        bytes_per_second=H100_BYTES if bandwidth is None else bandwidth * 1e12,
        operations_per_second=H100_OPERATIONS[dtype] if rate is None else rate * 1e12,
        seconds_per_kernel=SECONDS_PER_KERNEL,
    )


def count_models(
    subjects: Sequence[Subject],
    *,
    dtype: str,
    batches: Sequence[int],
    card: Card,
    on_progress: Callable[[dict[str, Any]], object] = lambda _: None,
    log: Log,
) -> dict[str, Any]:
    """Count the kernels of a forward pass of every subject, for every size of a batch.

    The subjects may be on the meta device: nothing is computed. `on_progress` gets the result so
    far after every subject. The result is what count.json holds.
    """
    result: dict[str, Any] = {
        **provenance(),
        "device": "cuda",  # the device that the models claim to be on
        "dtype": dtype,
        "card": {
            "terabytes_per_second": card.bytes_per_second / 1e12,
            "teraflops": card.operations_per_second / 1e12,
            "microseconds_per_kernel": card.seconds_per_kernel * 1e6,
        },
        "reference": subjects[0].name,
        "models": [],
    }
    for subject in subjects:
        log.say(f"counting {subject.name}")
        counts = [_figures(count_subject(subject, batch, dtype), batch, card) for batch in batches]
        weights = {"weights_mib": subject.weight_bytes / MIB}
        result["models"].append(
            {"name": subject.name, **subject.facts, **weights, "counts": counts}
        )
        on_progress(result)
    return result


def count_subject(subject: Subject, batch: int, dtype: str) -> KernelCount:
    """The kernels of a forward pass of a subject on `batch` clips."""
    if not isinstance(subject.run, nn.Module):
        raise TypeError(f"{subject.name} is no module")
    with pretended(subject.run, "cuda") as module, torch.no_grad():
        clips = torch.empty(batch, *subject.shape, dtype=DTYPES[dtype], device="cuda")
        return count_kernels(lambda: module(clips))


def _figures(count: KernelCount, batch: int, card: Card) -> dict[str, Any]:
    """The figures of one call, as count.json holds them."""
    return {
        "batch": batch,
        "kernels": len(count.kernels),
        "gb": count.moved / 1e9,
        "gmacs": count.macs / 1e9,
        "least_ms": count.least_seconds(card) * 1000,
        "by_operation": {
            name: {"kernels": number, "gb": moved / 1e9}
            for name, (number, moved) in count.by_name().items()
        },
    }
