"""How does an adapter reach a linear of the tower, and how does the linear absorb it? Hooks while it trains, folding when merged.

A block's adapters are kept by site: {"qkv": LinearAdapter, ...}. Sites `q`, `k` and `v` share the fused projection, and where a
site has two linears (the halves of a SwiGLU), each has a LoRA of its own: "up", "up_2".
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from zeroi2v.config import ModelConfig
from zeroi2v.errors import ConfigError, nearest
from zeroi2v.method.adapters import (
    GELUAdapter,
    LinearAdapter,
    LoRA,
    STAdapter,
    TrainedColumns,
    TrainedRows,
)
from zeroi2v.method.fold import affine, assign
from zeroi2v.method.heads import HeadLayout
from zeroi2v.method.relocate import ClipCount, FusedLayout
from zeroi2v.method.strategies import BEFORE, PARTS, Strategy
from zeroi2v.models.towers import Block


def chosen_sites(strategy: Strategy, sites: tuple[str, ...] | None) -> tuple[str, ...]:
    """The sites of a strategy, or those asked for. ConfigError if one is not among what the strategy allows."""
    for name in sites or ():
        if name not in strategy.allowed:
            known = ", ".join(strategy.allowed) or "none"
            raise ConfigError(
                f"sites: {name!r} is not one of this strategy's ({known}){nearest(name, strategy.allowed)}"
            )
    if sites and "qkv" in sites and not {*sites}.isdisjoint(PARTS):
        raise ConfigError(
            "sites: qkv already stands for q, k and v; name it alone, or some of the three"
        )
    return strategy.sites if sites is None else tuple(dict.fromkeys(sites))


def first_adapted_block(config: ModelConfig, strategy: Strategy, blocks: int) -> int:
    """The number of the first block, from 0, that has adapters; the temporal embedding joins there."""
    if config.adapted_blocks is None:
        return 0
    if strategy.adapter is None:
        raise ConfigError(
            f"adapted_blocks: strategy {config.strategy} has no adapters of its own to leave out"
        )
    if config.adapted_blocks > blocks:
        raise ConfigError(
            f"adapted_blocks: {config.tower} has {blocks} attention blocks, got {config.adapted_blocks}"
        )
    return blocks - config.adapted_blocks


def build_adapters(
    block: Block,
    strategy: Strategy,
    sites: tuple[str, ...],
    heads: HeadLayout,
    count: ClipCount,
    *,
    ratio: float,
    scale: float,
    dropout: float,
) -> dict[str, nn.Module]:
    """The adapters of one block, by site; none at a site that the block lacks. Their bottleneck is `ratio` of the block's width."""
    width = max(1, int(ratio * block.width))
    common: dict[str, Any] = {"scale": scale, "dropout": dropout}
    adapters: dict[str, nn.Module] = {}
    for name in sites:
        site = block.sites.get("qkv" if name in PARTS else name)
        if site is None:
            continue
        match strategy.adapter:
            case "linear":
                adapters[name] = LinearAdapter(site.channels, width, bias=site.bias, **common)
            case "gelu":
                adapters[name] = GELUAdapter(site.channels, width, bias=True, **common)
            case "st":
                adapters[name] = STAdapter(
                    site.channels, width, bias=True, prefix=block.prefix, count=count, **common
                )
            case "lora":
                for number, linear in enumerate(site.linears, start=1):
                    outputs = len(_rows(block, name)) if name in PARTS else linear.out_features
                    key = name if number == 1 else f"{name}_{number}"
                    adapters[key] = LoRA(linear.in_features, width, outputs, bias=False, **common)
            case "heads":
                temporal = [index for index, head in enumerate(heads) if head != 0]
                if temporal and name == "qkv":
                    rows = torch.cat([part[temporal].flatten() for part in block.layout.rows()])
                    adapters[name] = TrainedRows(site.linears[0], rows)
                elif temporal:
                    adapters[name] = TrainedColumns(
                        site.linears[0], block.columns[temporal].flatten()
                    )
    return adapters


def attach(block: Block, name: str, adapter: nn.Module) -> RemovableHandle:
    """Hook an adapter to its site. The fused projection's own hooks come before the temporal heads', which move what they make."""
    name, _, number = name.partition("_")
    site = block.sites["qkv" if name in PARTS else name]
    match adapter:
        case LoRA() | LinearAdapter() if name in PARTS:
            part = PartHook(block.layout, PARTS.index(name), adapter)
            return block.projection.register_forward_hook(part.hook)
        case LoRA():
            return site.linears[int(number or 1) - 1].register_forward_hook(adapter.beside_hook)
        case TrainedRows() | TrainedColumns():
            return site.linears[0].register_forward_hook(adapter.beside_hook)
        case LinearAdapter() if name in BEFORE and not site.feeds:
            return site.module.register_forward_pre_hook(adapter.before_hook)
        case LinearAdapter():
            return site.module.register_forward_hook(adapter.after_hook)
    raise TypeError(f"{type(adapter).__name__} is no adapter")


def fold(block: Block, name: str, adapter: Any) -> None:
    """Let the site's linears absorb an adapter: equation 11, in float64, rounded once. MergeError if it is not linear."""
    name, _, number = name.partition("_")
    linears = block.sites["qkv" if name in PARTS else name].linears
    if isinstance(adapter, TrainedRows | TrainedColumns):
        adapter.fold(linears[0])
        return
    rows = _rows(block, name) if name in PARTS else slice(None)
    if isinstance(adapter, LoRA):
        linears = (linears[int(number or 1) - 1],)
    for linear in linears:
        assign(linear, adapter.folded(affine(linear, rows), before=name in BEFORE), rows)


def _rows(block: Block, part: str) -> Tensor:
    """The fused projection's output channels that hold q, k or v."""
    return block.layout.rows()[PARTS.index(part)].flatten()


class PartHook:
    """A forward hook of the fused projection for what concerns only q, only k or only v."""

    def __init__(self, layout: FusedLayout, part: int, adapter: LoRA | LinearAdapter) -> None:
        self.rows, self.adapter = layout.rows()[part].flatten(), adapter

    def hook(self, projection: nn.Linear, inputs: tuple[Tensor, ...], projected: Tensor) -> Tensor:
        """Beside: W x + s U D x. Before: W (x + s U D x) = W x + s W U D x."""
        self.rows = self.rows.to(projected.device)
        more = self.adapter.branch(inputs[0])
        if not isinstance(self.adapter, LoRA):
            more = F.linear(more, projection.weight[self.rows])
        return projected.index_add(
            -1, self.rows, more.to(projected.dtype), alpha=self.adapter.scale
        )
