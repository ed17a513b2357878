"""An adapter alone: its formula, how it starts, and where its dropout acts."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import nn

from tests.towers_for_tests import new_call
from zeroi2v.method.adapters import GELUAdapter, LinearAdapter, LoRA, STAdapter
from zeroi2v.method.call import in_call

KINDS: dict[str, Callable[..., Any]] = {
    "linear": lambda channels, width, **settings: LinearAdapter(
        channels, width, bias=True, **settings
    ),
    "lora": lambda channels, width, **settings: LoRA(
        channels, width, channels, bias=False, **settings
    ),
    "gelu": lambda channels, width, **settings: GELUAdapter(channels, width, bias=True, **settings),
    "st": lambda channels, width, **settings: STAdapter(
        channels, width, bias=True, prefix=0, **settings
    ),
}


@pytest.fixture(autouse=True)
def call() -> Iterator[None]:
    """ST-Adapters ask the call in progress how many frames a clip has: here 1."""
    with in_call(new_call(clips=2, frames=1)):
        yield


def identity(x: float) -> float:
    return x


def gelu(x: float) -> float:
    """x times the share of the normal distribution below x."""
    return x * (1 + math.erf(x / math.sqrt(2))) / 2


INNER = {
    "linear": identity,
    "lora": identity,
    "gelu": gelu,
    "st": gelu,
}  # between an adapter's two linears


@pytest.mark.parametrize("kind", KINDS)
def test_an_adapters_branch_is_its_formula(kind: str) -> None:
    torch.manual_seed(0)
    adapter = KINDS[kind](6, 4, scale=0.5, dropout=0.5).double().eval()
    with torch.no_grad():
        for linear in (adapter.down, adapter.up):
            for parameter in linear.parameters():
                parameter.normal_()
        x = torch.randn(2, 3, 6, dtype=torch.float64)
        expected = adapter.up(adapter.down(x).apply_(INNER[kind]))  # one number after the other
        torch.testing.assert_close(adapter.branch(x), expected)
        if kind != "lora":
            torch.testing.assert_close(adapter(x), x + 0.5 * expected)


@pytest.mark.parametrize("kind", KINDS)
def test_an_adapter_starts_small_before_its_bottleneck_and_at_zero_after_it(kind: str) -> None:
    torch.manual_seed(0)
    adapter = KINDS[kind](400, 100, scale=1.0, dropout=0.0)
    assert adapter.down.weight.std().item() == pytest.approx(0.02, rel=0.02)
    assert abs(adapter.down.weight.mean().item()) < 1e-3
    zeros = [
        adapter.up.weight,
        *(linear.bias for linear in (adapter.down, adapter.up) if linear.bias is not None),
    ]
    assert not any(parameter.any() for parameter in zeros)
    assert len(zeros) == (1 if kind == "lora" else 3)


@pytest.mark.parametrize("kind", KINDS)
def test_dropout_acts_on_the_bottleneck_and_only_in_training(kind: str) -> None:
    """A bottleneck of ones, and an up projection that shows it: what is kept is divided by the share that is kept."""
    adapter = KINDS[kind](64, 64, scale=1.0, dropout=0.75)
    for linear in (adapter.down, adapter.up):
        nn.init.eye_(linear.weight)
    x = torch.ones(16, 8, 64)
    inner = INNER[kind](1.0)
    torch.testing.assert_close(adapter.eval().branch(x), torch.full_like(x, inner))
    torch.manual_seed(0)
    shown = adapter.train().branch(x)
    kept = shown != 0
    torch.testing.assert_close(shown[kept], torch.full_like(shown[kept], inner / 0.25))
    assert kept.double().mean().item() == pytest.approx(0.25, abs=0.02)
