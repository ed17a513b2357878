"""Where do the parts of gpu.py run? On a GPU; or dry, where a mistake costs no time on a GPU.

A dry run, on a CPU, takes small towers and few clips, captures and compiles nothing, and its times
mean nothing. Its process needs TRITON_INTERPRET=1, so that Triton interprets the kernels.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import Tensor

from zeroi2v.models.compiled import DTYPES, Captured

# Options that make a tower small. Heads stay as many as they are, so layouts stay as they are.
SMALL: Final[Mapping[str, Mapping[str, Any]]] = {
    "vit_base_patch16_clip_quickgelu_224": {"depth": 1, "embed_dim": 192, "img_size": 32},
    "vit_large_patch14_clip_quickgelu_224": {"depth": 1, "embed_dim": 256, "img_size": 28},
    "vit_small_patch14_reg4_dinov2": {"depth": 1, "embed_dim": 96, "img_size": 28},
    "swin_base_patch4_window7_224": {
        "depths": (1, 1, 1, 1),
        "embed_dim": 64,
        "img_size": 64,
        "window_size": 2,
    },
}


@dataclass(frozen=True)
class Place:
    """A GPU, or, with `dry`, a CPU that stands for one."""

    dry: bool = False

    @property
    def device(self) -> torch.device:
        """The device of models and clips."""
        return torch.device("cpu" if self.dry else "cuda")

    def tower_options(self, tower: str) -> dict[str, Any]:
        """The options of a tower; a dry run makes the tower small."""
        return dict(SMALL[tower]) if self.dry else {}

    def clips(self, count: int, *, frames: int = 8, size: int = 224, dtype: str = "bf16") -> Tensor:
        """Clips (count, F, 3, S, S) of random numbers; a dry run takes at most two."""
        shape = (min(count, 2) if self.dry else count, frames, 3, size, size)
        return torch.randn(shape, device=self.device).to(DTYPES[dtype])

    def rounds(self, count: int) -> int:
        """How many rounds of calls are timed."""
        return 2 if self.dry else count

    def compiled(self, run: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
        """`run` by torch.compile, for clips of one shape."""
        return run if self.dry else torch.compile(run, dynamic=False)

    def captured(
        self, run: Callable[[Tensor], Tensor], clips: Tensor
    ) -> Callable[[Tensor], Tensor]:
        """`run`, captured for as many clips as `clips` holds."""
        return run if self.dry else Captured(run, clips.clone(), sizes=[len(clips)])

    def graph_time(self, call: Callable[[], object]) -> float:
        """The microseconds of a call within a CUDA graph; in a dry run, of one call."""
        if not self.dry:
            return graph_time(call)
        start = time.perf_counter()
        call()
        return (time.perf_counter() - start) * 1e6

    def matrix_rate(self) -> float:
        """The operations per second of a product of two 8192 x 8192 matrices of bfloat16."""
        side = 64 if self.dry else 8192
        matrix = torch.randn(side, side, device=self.device, dtype=torch.bfloat16)
        return 2 * side**3 / (self.graph_time(lambda: matrix @ matrix) * 1e-6)


def graph_time(call: Callable[[], object], *, starts: int = 20, replays: int = 5) -> float:
    """The microseconds of a call within a CUDA graph: the least mean of several replays."""
    call()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for _ in range(starts):
            call()
    best = float("inf")
    for _ in range(replays):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        graph.replay()
        end.record()
        end.synchronize()
        best = min(best, begin.elapsed_time(end) * 1000 / starts)
    return best
