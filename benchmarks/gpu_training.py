"""How fast is a training step on a GPU, and how right are its gradients?

The rows are those of training_step.py that matter on a GPU, the most wanted first. Every row is
built, measured and freed by itself: the activations of several captured steps of 32 clips would not
fit together.
"""

from __future__ import annotations

import argparse
import functools
import gc
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from functools import partial
from typing import Final

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import training_step
from benchmarks.gpu_inference import Case, Row
from benchmarks.gpu_place import Place
from zeroi2v.measure.timing import interleave, spread

# Name of the row, and for how many clips it is measured.
WANTED: Final = (
    ("bf16, weights cast once a step, captured", (8, 32)),
    ("bf16, compiled and captured", (8, 32)),
    ("reference in bf16, fused attention, captured", (8, 32)),
    ("reference in bf16, fused attention, compiled and captured", (8, 32)),
    ("bf16, captured", (8, 32)),
    ("reference in bf16", (8,)),
    ("reference in bf16, fused attention", (8,)),
    ("bf16", (8,)),
    ("bf16, weights cast once a step, captured, with AdamW", (8,)),
    ("fp32, captured", (8,)),
)


def training(place: Place) -> Iterator[Case]:
    """Training steps of ViT-B/16 with 8 frames, up to their gradients."""
    expected = functools.cache(partial(_expected, place))
    for clips in (8,) if place.dry else (8, 32):
        for name, counts in WANTED:
            if clips in counts:
                yield (
                    {"clips": clips, "step": name},
                    partial(_measured, place, name, clips, expected if clips == 8 else None),
                )


def _arguments(place: Place, clips: int) -> argparse.Namespace:
    return argparse.Namespace(
        tower=training_step.CLIP_TOWER,
        depth=1 if place.dry else None,
        clips=1 if place.dry else clips,
        device=place.device.type,
        captured=True,
    )


def _expected(place: Place) -> Mapping[str, Tensor]:
    """The gradients of the reference in fp32, for 8 clips."""
    with ExitStack() as training:
        torch.manual_seed(0)
        return training_step.ways_of(_arguments(place, 8), training)["reference"]().gradients()


def _measured(
    place: Place, name: str, clips: int, expected: Callable[[], Mapping[str, Tensor]] | None
) -> Iterator[Row]:
    """The milliseconds of a step, its rate, its peak of memory, and how far gradients differ.

    `expected` gives the gradients to compare with. Where that fails, the times are a row still.
    """
    began = time.monotonic()
    with ExitStack() as training:
        torch.manual_seed(0)
        arguments = _arguments(place, clips)
        step = training_step.ways_of(arguments, training)[name]()
        plain = training_step.Step(step.learner, step.clips)  # a graph hides its operations
        with FlopCounterMode(display=False) as counter:
            plain()
        step()  # captures
        row: Row = {"preparation_s": time.monotonic() - began}
        series = interleave({name: step}, rounds=place.rounds(30), warmup=3)[name]
        figures = spread(series)
        row |= {
            "ms": figures,
            "tflops": counter.get_total_flops() / figures["median"] / 1e9,
            "peak_mib": step.peak_bytes() / 2**20,
        }
        if expected is not None:
            try:
                gradients = step.gradients()
                difference = training_step.largest_difference(expected(), gradients)
                row["gradient_difference"] = difference
            except RuntimeError as error:
                row["errors"] = {"gradients": str(error)[:300]}
    yield row
    del step, plain
    gc.collect()
    if not place.dry:
        torch.cuda.empty_cache()
