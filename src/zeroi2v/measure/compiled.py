"""How is a model compiled once for batches of all sizes, and how long does compiling take?

PyTorch's compiler makes a graph for a batch of one clip, and a second graph for all larger batches.
Few models need more: where PyTorch has several kernels for a convolution, the size of the batch may
decide between them.
"""

from __future__ import annotations

import time
from types import FunctionType
from typing import Any

import torch
from torch import Tensor, nn
from torch._dynamo.utils import counters


class CompiledCall:
    """A compiled module, as a function of a batch of clips.

    The module is compiled when it is called. `seconds` is the time that compiling has taken so far,
    and `graphs` is the number of graphs that were compiled.
    """

    def __init__(self, module: nn.Module) -> None:
        def run(clips: Tensor) -> object:
            return module(clips)

        # The compiler keeps graphs by code object, and tries all of them in turn. With code of its
        # own, a module neither waits for the graphs of other modules nor shares their limit.
        separate_run = FunctionType(
            run.__code__.replace(), run.__globals__, "run", None, run.__closure__
        )
        self._compiled: Any = torch.compile(separate_run)
        self._sizes: set[int] = set()  # of the batches of earlier calls
        self.seconds = 0.0
        self.graphs = 0

    def __call__(self, clips: Tensor) -> object:
        """The output of the module for a batch of clips."""
        if len(clips) in self._sizes:
            return self._compiled(clips)
        if len(clips) > 1:
            torch._dynamo.maybe_mark_dynamic(clips, 0)
        graphs, start = _graphs(), time.perf_counter()
        output = self._compiled(clips)
        if _graphs() > graphs:
            self.seconds += time.perf_counter() - start
            self.graphs += _graphs() - graphs
        self._sizes.add(len(clips))
        return output


def _graphs() -> int:
    """The number of graphs that this process has compiled."""
    return int(counters["stats"]["unique_graphs"])
