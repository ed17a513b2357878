"""How does a hook of the tower reach its adapter? Through the call in progress.

A hook holds the number of a block and the name of an adapter, and no module. So a hook of a model's
replica uses the replica's adapters.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from zeroi2v.method.call import call_in_progress
from zeroi2v.method.relocate import FusedLayout
from zeroi2v.method.strategies import PARTS


class AdapterHook:
    """The hook of the adapter `name` of a block; `block` is the number of the block, from 0."""

    def __init__(self, block: int, name: str) -> None:
        self.block, self.name = block, name

    def adapter(self) -> Any:
        """The adapter in the call in progress; None outside of any call."""
        call = call_in_progress()
        return None if call is None else call.adapters[self.block][self.name]


class Before(AdapterHook):
    """A forward pre-hook: the adapter changes the input of the module."""

    def __call__(self, module: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        adapter = self.adapter()
        return inputs if adapter is None else (adapter(inputs[0]), *inputs[1:])


class After(AdapterHook):
    """A forward hook: the adapter changes the output of the module."""

    def __call__(self, module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        adapter = self.adapter()
        adapted: Tensor = output if adapter is None else adapter(output)
        return adapted


class Beside(AdapterHook):
    """A forward hook of a linear: the adapter reads the linear's input and changes its output."""

    def __call__(self, linear: nn.Linear, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        adapter = self.adapter()
        if adapter is None:
            return output
        adapted: Tensor = adapter.beside(linear, inputs[0], output)
        return adapted


class BesidePart(AdapterHook):
    """A forward hook of the fused projection: the adapter changes only q, only k or only v."""

    def __init__(self, block: int, name: str, layout: FusedLayout) -> None:
        super().__init__(block, name)
        self.rows = part_rows(layout, name)
        self.rows_on: dict[torch.device, Tensor] = {}  # copies of `rows` on other devices

    def __call__(self, linear: nn.Linear, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        adapter = self.adapter()
        if adapter is None:
            return output
        rows = self._rows_on(output.device)
        branch = adapter.part(linear, rows, inputs[0])
        return output.index_add(-1, rows, branch.to(output.dtype), alpha=adapter.scale)

    def _rows_on(self, device: torch.device) -> Tensor:
        """`rows` on a device. A copy at every call would make the host wait for a GPU."""
        if device == self.rows.device:
            return self.rows
        rows = self.rows_on.get(device)
        if rows is None:
            with torch.inference_mode(False):  # a training may use the copy later
                rows = self.rows_on[device] = self.rows.to(device)
        return rows


def part_rows(layout: FusedLayout, part: str) -> Tensor:
    """The output channels of the fused projection that hold q, k or v: (H * D) int64."""
    return layout.rows()[PARTS.index(part)].flatten()
