"""An adapter computes its formula, starts as the identity, and drops bottleneck channels."""

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
    "st, gelu": lambda channels, width, **settings: STAdapter(
        channels, width, bias=True, prefix=0, gelu=True, **settings
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


# The function between the two linear layers of an adapter. The convolution of an ST-Adapter does
# nothing here (`still`).
INNER = {"linear": identity, "lora": identity, "gelu": gelu, "st": identity, "st, gelu": gelu}


def still(adapter: Any) -> Any:
    """The adapter; the convolution of an ST-Adapter gives the frame that it is given."""
    if isinstance(adapter, STAdapter):
        nn.init.ones_(adapter.conv.weight[:, :, 1])
    return adapter


@pytest.mark.parametrize("kind", KINDS)
def test_an_adapters_branch_is_its_formula(kind: str) -> None:
    torch.manual_seed(0)
    adapter = still(KINDS[kind](6, 4, scale=0.5, dropout=0.5)).double().eval()
    with torch.no_grad():
        for linear in (adapter.down, adapter.up):
            for parameter in linear.parameters():
                parameter.normal_()
        x = torch.randn(2, 3, 6, dtype=torch.float64)
        expected = adapter.up(adapter.down(x).apply_(INNER[kind]))  # INNER maps single numbers
        torch.testing.assert_close(adapter.branch(x), expected)
        if kind != "lora":
            torch.testing.assert_close(adapter(x), x + 0.5 * expected)


@pytest.mark.parametrize("kind", ["linear", "lora", "gelu"])
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


def test_an_st_adapter_starts_with_a_convolution_of_zero() -> None:
    torch.manual_seed(0)
    adapter = KINDS["st"](400, 100, scale=1.0, dropout=0.0)
    x = torch.randn(2, 3, 400)
    assert torch.equal(adapter(x), x)
    assert not any(weight.any() for weight in (adapter.conv.weight, adapter.conv.bias))
    for linear in (adapter.down, adapter.up):  # even from -1 to 1, over the root of the inputs
        bound = linear.in_features**-0.5
        assert linear.weight.abs().max().item() == pytest.approx(bound, rel=1e-3)
        assert linear.weight.std().item() == pytest.approx(bound / 3**0.5, rel=0.02)
        assert not linear.bias.any()


@pytest.mark.parametrize("kind", KINDS)
def test_dropout_acts_on_the_bottleneck_and_only_in_training(kind: str) -> None:
    """Dropout divides the channels that it keeps by the share of channels that it keeps.

    The bottleneck is all ones, and the up projection is the identity, so the branch shows it.
    """
    adapter = still(KINDS[kind](64, 64, scale=1.0, dropout=0.75))
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
