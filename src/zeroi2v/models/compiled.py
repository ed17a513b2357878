"""How does a model run with the least work between its kernels? Captured, or compiled.

On a CUDA device the kernels of a forward pass are captured once for each size of a batch, as a CUDA
graph. A replay starts all kernels at once, so Python takes no time between two kernels. The kernels
are those of the model, or those that torch.compile makes of the model; a trial chooses. On a CPU
the model is compiled by torch.compile alone, if a trial shows that the compiled model is faster.
"""

from __future__ import annotations

import copy
import logging
import statistics
import threading
import time
from collections.abc import Callable, Iterable
from typing import Any, Final, TypeVar

import torch
from torch import Tensor, nn

from zeroi2v.errors import ConfigError, nearest, one_line

Model = TypeVar("Model", bound=nn.Module)
Form = TypeVar("Form", bound=Callable[[Tensor], Tensor])
logger = logging.getLogger(__name__)

DTYPES: Final = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
WARMUP: Final = 3  # calls before a capture: they choose algorithms and load libraries
TRIAL: Final = 5  # calls that are timed to choose between two forms
# The largest difference of logits, as a share of the largest logit, that rounding explains.
ROUNDING: Final = {torch.float32: 1e-3, torch.float16: 3e-2, torch.bfloat16: 1e-1}
COMPILER_ERRORS: Final = (RuntimeError, torch._dynamo.exc.TorchDynamoException)


def dtype_of(name: str) -> torch.dtype:
    """The dtype that a name in `DTYPES` stands for. ConfigError if the name is unknown."""
    if name not in DTYPES:
        known = ", ".join(DTYPES)
        raise ConfigError(f"dtype must be one of {known}, got {name!r}{nearest(name, DTYPES)}")
    return DTYPES[name]


def ready(model: Model, dtype: str) -> Model:
    """A copy of the model in eval mode, with weights of a dtype.

    Later changes of the model leave the copy alone: a captured graph reads the memory of the copy.
    ConfigError if the dtype is unknown.
    """
    return copy.deepcopy(model).to(dtype_of(dtype)).eval().requires_grad_(False)


class Captured:
    """A function of clips on a CUDA device, captured for batches of some sizes.

    A batch whose size was not captured is computed as a part of the next larger captured batch. A
    batch that is larger than all captured batches is computed in several parts. The result of a
    call is a copy, so later calls leave it unchanged. Several threads may call the function; they
    wait for each other. Clips may have any floating dtype and lie on any device.
    """

    def __init__(
        self, run: Callable[[Tensor], Tensor], clips: Tensor, *, sizes: Iterable[int]
    ) -> None:
        """`clips` (B, F, 3, S, S) is the memory that every replay reads; B is the largest size."""
        self.run, self._clips = run, clips
        self._lock, self._done = threading.Lock(), torch.cuda.Event()
        self._pool: Any = torch.cuda.graph_pool_handle()
        self._graphs: dict[int, tuple[torch.cuda.CUDAGraph, Tensor]] = {}
        self.capture(sizes)

    def capture(self, sizes: Iterable[int]) -> None:
        """Capture the function for batches of these sizes too, each at most the largest size."""
        # The largest batch first, since smaller batches fit into the memory of its graph.
        for size in sorted(sizes, reverse=True):
            self._graphs[size] = self._capture(size)
        self.sizes = sorted(self._graphs)

    @torch.no_grad()
    def _capture(self, size: int) -> tuple[torch.cuda.CUDAGraph, Tensor]:
        """The graph of a batch of `size` clips, and the logits that a replay writes."""
        clips, current = self._clips[:size], torch.cuda.current_stream(self._clips.device)
        stream = torch.cuda.Stream(clips.device)  # of this device, which need not be the current
        stream.wait_stream(current)
        with torch.cuda.stream(stream):
            for _ in range(WARMUP):
                self.run(clips)
        current.wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with (
            torch.cuda.device(clips.device),
            torch.cuda.graph(graph, pool=self._pool, stream=stream),
        ):
            logits = self.run(clips)
        return graph, logits

    @torch.no_grad()
    def __call__(self, clip: Tensor) -> Tensor:
        """Logits (B, num_classes) of a normalised clip (B, F, 3, S, S)."""
        if clip.shape[1:] != self._clips.shape[1:] or not len(clip):
            raise ConfigError(
                f"a clip must be (B, {', '.join(map(str, self._clips.shape[1:]))}) for this "
                f"compiled model, got {tuple(clip.shape)}"
            )
        parts = [self._replay(part) for part in clip.split(self.sizes[-1])]
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def _replay(self, clips: Tensor) -> Tensor:
        """The logits of at most as many clips as the largest captured batch has."""
        count = len(clips)
        graph, logits = self._graphs[next(size for size in self.sizes if size >= count)]
        with self._lock:
            stream = torch.cuda.current_stream(self._clips.device)
            stream.wait_event(self._done)  # wait for the previous call, also in another stream
            self._clips[:count].copy_(clips, non_blocking=True)
            graph.replay()
            result = logits[:count].clone()
            self._done.record(stream)
        return result


def compiled(model: nn.Module, clips: Tensor) -> Callable[[Tensor], Tensor]:
    """A callable that gives what a model gives, with the least work between its kernels.

    `clips` (B, F, 3, S, S) are clips as the model takes them; B is the largest batch that the
    callable computes at once.
    """
    if clips.device.type == "cuda":
        return captured(model, clips)
    run: Callable[[Tensor], Tensor] = model
    try:
        by_compiler = torch.compile(model)
        if _agree(model, by_compiler, clips):
            run = faster_of(model, by_compiler, clips)
    except COMPILER_ERRORS as error:
        _warn_of_compiler(error)

    @torch.no_grad()
    def call(clip: Tensor) -> Tensor:
        """What the model gives for clips of any floating dtype, on any device."""
        return run(clip.to(clips.device, clips.dtype))

    return call


def captured(model: nn.Module, clips: Tensor) -> Captured:
    """The model, captured for batches of up to as many clips as `clips` (B, F, 3, S, S) holds.

    What torch.compile makes of the model is captured instead, if that gives the same logits up to
    rounding and is faster for B clips. One trial decides for batches of all sizes.
    """
    batch = len(clips)
    smaller = {2**power for power in range((batch - 1).bit_length())}
    by_model = Captured(model, clips, sizes=[batch])
    try:
        by_compiler = Captured(torch.compile(model), clips, sizes=[batch])
        if _agree(by_model, by_compiler, clips) and (
            faster_of(by_model, by_compiler, clips) is by_compiler
        ):
            by_compiler.capture(smaller)
            return by_compiler
    except COMPILER_ERRORS as error:
        _warn_of_compiler(error)
    by_model.capture(smaller)
    return by_model


def _agree(
    model: Callable[[Tensor], Tensor], other: Callable[[Tensor], Tensor], clips: Tensor
) -> bool:
    """Whether two forms of a model give the same logits for random clips, up to rounding."""
    random = torch.randn(clips.shape, generator=torch.Generator().manual_seed(0))
    expected, logits = (form(random.to(clips)).double() for form in (model, other))
    difference, largest = (logits - expected).abs().max(), expected.abs().max()
    if not difference <= ROUNDING[clips.dtype] * largest:
        logger.warning(
            "torch.compile changes logits of up to %.1e by %.1e, so the model stays as it is",
            largest,
            difference,
        )
        return False
    return True


def _warn_of_compiler(error: Exception) -> None:
    logger.warning(
        "torch.compile fails here, so the model stays as it is; "
        "torch.compile needs a C++ compiler: %s",
        one_line(error),
    )


@torch.no_grad()
def faster_of(model: Form, other: Form, clips: Tensor) -> Form:
    """The model, or another form of the model, whichever takes less time for the clips."""
    forms = (model, other)
    times: list[list[float]] = [[], []]
    for number in range(1 + TRIAL):
        for form, series in zip(forms, times, strict=True):
            start = time.perf_counter()
            form(clips)
            if clips.device.type == "cuda":
                torch.cuda.synchronize(clips.device)
            if number:  # the first call compiles
                series.append(time.perf_counter() - start)
    return min(zip(forms, times, strict=True), key=lambda pair: statistics.median(pair[1]))[0]
