"""How do temporal heads and adapters reach a tower, and how do the tower's linears absorb adapters?

Temporal heads and adapters act through hooks on the modules of the tower. A merge folds the
adapters into the linears. A linear is a linear layer, `nn.Linear`.

The adapters of a block have names: {"qkv": LinearAdapter, ...}. The sites `q`, `k` and `v` share
the fused projection. Where a site has two linears (the halves of a SwiGLU), each linear has a LoRA
of its own: "up", "up_2".
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle

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
from zeroi2v.models.exchange import exchange
from zeroi2v.models.hooks import After, Before, Beside, BesidePart, part_rows
from zeroi2v.models.peers import peer_of
from zeroi2v.models.plan import AdapterPlan, BlockPlan, Plan
from zeroi2v.models.survey import Site


def build_adapters(tower: nn.Module, plan: Plan) -> list[dict[str, nn.Module]]:
    """The adapters of every block, by name. A peer builds its own adapters."""
    peer = peer_of(plan.strategy)
    if peer is not None:
        return peer.build(tower, plan.peer_settings)
    return [
        {
            name: _build(tower, block, adapter_plan, plan)
            for name, adapter_plan in block.adapters.items()
        }
        for block in plan.blocks
    ]


def _build(tower: nn.Module, block: BlockPlan, adapter_plan: AdapterPlan, plan: Plan) -> nn.Module:
    """One adapter of a block."""
    options: dict[str, Any] = {
        "scale": plan.adapter_scale,
        "dropout": plan.adapter_dropout,
        "bias": adapter_plan.bias,
    }
    match adapter_plan.kind:
        case "linear":
            return LinearAdapter(adapter_plan.inputs, adapter_plan.width, **options)
        case "gelu":
            return GELUAdapter(adapter_plan.inputs, adapter_plan.width, **options)
        case "st":
            options |= {"prefix": plan.tower.prefix, "gelu": plan.strategy.activation == "gelu"}
            return STAdapter(adapter_plan.inputs, adapter_plan.width, **options)
        case "lora":
            return LoRA(adapter_plan.inputs, adapter_plan.width, adapter_plan.outputs, **options)
    trained = TrainedRows if adapter_plan.kind == "rows" else TrainedColumns
    return trained(_linear(tower, block, adapter_plan), torch.tensor(adapter_plan.channels))


def _site(block: BlockPlan, adapter_plan: AdapterPlan) -> Site:
    """The site of an adapter. The adapters of q, k and v share the site of the fused projection."""
    return block.block.sites["qkv" if adapter_plan.site in PARTS else adapter_plan.site]


def _linear(tower: nn.Module, block: BlockPlan, adapter_plan: AdapterPlan) -> nn.Linear:
    """The linear beside which an adapter acts.

    Only a LoRA, trained rows and trained columns belong to a single linear.
    """
    path = _site(block, adapter_plan).linears[adapter_plan.linear]
    linear = tower.get_submodule(path)
    if not isinstance(linear, nn.Linear):
        raise TypeError(f"{path} is no linear layer")
    return linear


def attach(
    tower: nn.Module, plan: Plan, adapters: Sequence[Mapping[str, nn.Module]]
) -> list[RemovableHandle]:
    """Hook temporal heads and adapters to the modules of a tower.

    The result holds the handles that remove the hooks of adapters; the hooks of a peer stay. On a
    fused projection, the adapters' hooks come before the hook of the temporal heads, which then
    moves keys and values that the adapters have changed.
    """
    peer = peer_of(plan.strategy)
    if peer is not None:
        peer.attach(tower, adapters, plan.peer_settings)
    handles: list[RemovableHandle] = []
    for number, block in enumerate(plan.blocks):
        attention: Any = tower.get_submodule(block.block.name)
        if hasattr(attention, "qkv_bias_separate"):
            # With this setting timm calls the projection as a module, so the module's hooks run.
            attention.qkv_bias_separate = True
        projection = attention.qkv
        if plan.config.operator == "cls_shift":
            # The shift acts on the output of the norms, so its hooks come before the adapters'.
            shift = ClassTokenShift(plan.moved_share)
            projection.register_forward_pre_hook(shift)
            if "up" in block.block.sites:
                entry = tower.get_submodule(block.block.sites["up"].module)
                entry.register_forward_pre_hook(shift)
        for name, adapter_plan in block.adapters.items():
            handles.append(_attach(tower, block, number, name, adapter_plan))
        if block.moves:
            heads = TemporalHeads(
                block.block.layout,
                block.moves,
                parts=plan.moved_parts,
                exchanged=exchange(attention, block.moves, plan.moved_parts),
            )
            heads.install(projection)
    return handles


def _attach(
    tower: nn.Module, block: BlockPlan, number: int, name: str, adapter_plan: AdapterPlan
) -> RemovableHandle:
    """Hook one adapter to its site.

    `number` is the number of the block, from 0; `name` is the name of the adapter.
    """
    if adapter_plan.site in PARTS:
        hook = BesidePart(number, name, block.block.layout)
        return _linear(tower, block, adapter_plan).register_forward_hook(hook)
    if adapter_plan.kind in ("lora", "rows", "columns"):
        return _linear(tower, block, adapter_plan).register_forward_hook(Beside(number, name))
    site = _site(block, adapter_plan)
    module = tower.get_submodule(site.module)
    if adapter_plan.site in BEFORE and not site.after_norm:
        return module.register_forward_pre_hook(Before(number, name))
    return module.register_forward_hook(After(number, name))


@torch.no_grad()
def fold_adapters(
    tower: nn.Module, plan: Plan, adapters: Iterable[Mapping[str, nn.Module]]
) -> None:
    """Let the linears of a tower absorb all adapters: equation 11, in float64, rounded once.

    `adapters` are the adapters of each block, by name. MergeError names an adapter that is not
    linear.
    """
    for block, modules in zip(plan.blocks, adapters, strict=True):
        for name, adapter_plan in block.adapters.items():
            _fold(tower, block, adapter_plan, modules[name])


def _fold(tower: nn.Module, block: BlockPlan, adapter_plan: AdapterPlan, adapter: Any) -> None:
    """Let the linears of one site absorb one adapter."""
    if isinstance(adapter, TrainedRows | TrainedColumns):
        adapter.fold(_linear(tower, block, adapter_plan))
        return
    rows = (
        part_rows(block.block.layout, adapter_plan.site)
        if adapter_plan.site in PARTS
        else slice(None)
    )
    paths = _site(block, adapter_plan).linears
    if adapter_plan.kind == "lora":
        paths = (paths[adapter_plan.linear],)
    for path in paths:
        linear: Any = tower.get_submodule(path)
        folded = adapter.folded(affine(linear, rows), before=adapter_plan.site in BEFORE)
        assign(linear, folded, rows)
