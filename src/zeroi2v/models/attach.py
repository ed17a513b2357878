"""How does an adapter reach a linear of the tower, and how does the linear absorb it? Hooks, and folding in a merge.

The adapters of a block are kept by name: {"qkv": LinearAdapter, ...}. Sites `q`, `k` and `v` share the fused projection, and
where a site has two linears (the halves of a SwiGLU), each has a LoRA of its own: "up", "up_2".
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from zeroi2v.method.adapters import (
    GELUAdapter,
    LinearAdapter,
    LoRA,
    STAdapter,
    TrainedColumns,
    TrainedRows,
)
from zeroi2v.method.fold import affine, assign
from zeroi2v.method.relocate import ClassTokenShift, TemporalHeads
from zeroi2v.method.strategies import BEFORE, PARTS
from zeroi2v.models.hooks import After, Before, Beside, BesidePart, part_rows
from zeroi2v.models.plan import AdapterPlan, BlockPlan, Plan


def build_adapters(tower: nn.Module, plan: Plan) -> list[dict[str, nn.Module]]:
    """The adapters of every block, by name."""
    return [
        {name: _build(tower, block, adapter, plan) for name, adapter in block.adapters.items()}
        for block in plan.blocks
    ]


def _build(tower: nn.Module, block: BlockPlan, shape: AdapterPlan, plan: Plan) -> nn.Module:
    common: dict[str, Any] = {
        "scale": plan.adapter_scale,
        "dropout": plan.config.adapter_dropout,
        "bias": shape.bias,
    }
    match shape.kind:
        case "linear":
            return LinearAdapter(shape.inputs, shape.width, **common)
        case "gelu":
            return GELUAdapter(shape.inputs, shape.width, **common)
        case "st":
            return STAdapter(shape.inputs, shape.width, prefix=plan.tower.prefix, **common)
        case "lora":
            return LoRA(shape.inputs, shape.width, shape.outputs, **common)
    trained = TrainedRows if shape.kind == "rows" else TrainedColumns
    return trained(_linear(tower, block, shape), torch.tensor(shape.channels))


def _linear(tower: nn.Module, block: BlockPlan, adapter: AdapterPlan) -> nn.Linear:
    """The linear that an adapter of a single linear belongs to."""
    site = block.block.sites["qkv" if adapter.site in PARTS else adapter.site]
    linear = tower.get_submodule(site.linears[adapter.linear])
    if not isinstance(linear, nn.Linear):
        raise TypeError(f"{site.linears[adapter.linear]} is no linear")
    return linear


def attach(tower: nn.Module, plan: Plan) -> list[torch.utils.hooks.RemovableHandle]:
    """Hook temporal heads and adapters to the modules of a tower; gives the handles of the adapters' hooks.

    The hooks of adapters on a fused projection come before those of temporal heads, which move what the adapters make.
    """
    handles: list[torch.utils.hooks.RemovableHandle] = []
    for number, block in enumerate(plan.blocks):
        attention: Any = tower.get_submodule(block.block.name)
        if hasattr(attention, "qkv_bias_separate"):
            attention.qkv_bias_separate = (
                True  # call the projection as a module, which hooks can follow
            )
        projection = attention.qkv
        if (
            plan.config.operator == "cls_shift"
        ):  # before the adapters: it acts on what the norms give
            shift = ClassTokenShift(plan.ratio)
            projection.register_forward_pre_hook(shift)
            if "up" in block.block.sites:
                entry = tower.get_submodule(block.block.sites["up"].module)
                entry.register_forward_pre_hook(shift)
        for name, adapter in block.adapters.items():
            handles.append(_attach(tower, block, number, name, adapter))
        if block.moves:
            heads = TemporalHeads(block.block.layout, block.moves, queries=plan.moves_queries)
            projection.register_forward_hook(heads)
    return handles


def _attach(
    tower: nn.Module, block: BlockPlan, number: int, name: str, adapter: AdapterPlan
) -> torch.utils.hooks.RemovableHandle:
    """Hook one adapter to its site."""
    if adapter.site in PARTS:
        hook = BesidePart(number, name, block.block.layout)
        return _linear(tower, block, adapter).register_forward_hook(hook)
    if adapter.kind in ("lora", "rows", "columns"):
        return _linear(tower, block, adapter).register_forward_hook(Beside(number, name))
    site = block.block.sites[adapter.site]
    module = tower.get_submodule(site.module)
    if adapter.site in BEFORE and not site.feeds:
        return module.register_forward_pre_hook(Before(number, name))
    return module.register_forward_hook(After(number, name))


@torch.no_grad()
def fold_adapters(tower: nn.Module, plan: Plan, adapters: Any) -> None:
    """Let the linears of a tower absorb all adapters: equation 11, in float64, rounded once.

    MergeError names an adapter that is not linear.
    """
    for block, modules in zip(plan.blocks, adapters, strict=True):
        for name, adapter in block.adapters.items():
            _fold(tower, block, adapter, modules[name])


def _fold(tower: nn.Module, block: BlockPlan, shape: AdapterPlan, adapter: Any) -> None:
    if isinstance(adapter, TrainedRows | TrainedColumns):
        adapter.fold(_linear(tower, block, shape))
        return
    rows = part_rows(block.block.layout, shape.site) if shape.site in PARTS else slice(None)
    site = block.block.sites["qkv" if shape.site in PARTS else shape.site]
    paths = (site.linears[shape.linear],) if shape.kind == "lora" else site.linears
    for path in paths:
        linear: Any = tower.get_submodule(path)
        folded = adapter.folded(affine(linear, rows), before=shape.site in BEFORE)
        assign(linear, folded, rows)
