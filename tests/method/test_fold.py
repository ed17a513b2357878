"""A folded layer equals the two layers that it replaces, one after the other."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import nn

from zeroi2v.method.adapters import LinearAdapter
from zeroi2v.method.fold import affine, assign, compose


@pytest.mark.parametrize(
    ("first_bias", "second_bias"), list(itertools.product([True, False], repeat=2))
)
def test_composing_is_one_after_the_other(first_bias: bool, second_bias: bool) -> None:
    torch.manual_seed(0)
    first, second = (
        nn.Linear(5, 7, bias=first_bias).double(),
        nn.Linear(7, 3, bias=second_bias).double(),
    )
    folded = compose(affine(second), affine(first))
    x = torch.randn(11, 5, dtype=torch.float64)
    composed = x @ folded.weight.T + (0 if folded.bias is None else folded.bias)
    torch.testing.assert_close(composed, second(first(x)), rtol=1e-12, atol=1e-12)
    assert (folded.bias is None) == (not first_bias and not second_bias)


@pytest.mark.parametrize("before", [True, False])
@pytest.mark.parametrize("bias", [True, False])
def test_an_adapter_folds_into_the_linear_beside_it(before: bool, bias: bool) -> None:
    torch.manual_seed(1)
    linear = nn.Linear(6, 9, bias=bias).double()
    adapter = LinearAdapter(6 if before else 9, 4, scale=0.5, dropout=0.0, bias=bias).double()
    for parameter in adapter.parameters():
        nn.init.normal_(parameter)
    x = torch.randn(11, 6, dtype=torch.float64)
    expected = linear(adapter(x)) if before else adapter(linear(x))
    assign(linear, adapter.folded(affine(linear), before=before))
    torch.testing.assert_close(linear(x), expected, rtol=1e-12, atol=1e-12)


def test_an_adapter_is_the_identity_at_first_and_then_equation_11() -> None:
    torch.manual_seed(2)
    adapter = LinearAdapter(8, 3, scale=0.5, dropout=0.0, bias=True)
    x = torch.randn(4, 8)
    torch.testing.assert_close(adapter(x), x, rtol=0, atol=0)
    for parameter in adapter.parameters():
        nn.init.normal_(parameter)
    down, up = adapter.down, adapter.up
    by_hand = x + 0.5 * ((x @ down.weight.T + down.bias) @ up.weight.T + up.bias)
    torch.testing.assert_close(adapter(x), by_hand)
