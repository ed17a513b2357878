"""What a step keeps less of changes no value and no gradient."""

from __future__ import annotations

import gc
import weakref

import pytest
import torch
from torch import Tensor, nn
from torch.autograd import gradcheck

from zeroi2v.method.adapters import LinearAdapter
from zeroi2v.method.gradients import add_linear, keep_norm_input, quick_gelu, remember_norm_input


@pytest.mark.parametrize("bias", [True, False])
def test_a_linear_map_is_added_with_its_own_gradients(bias: bool) -> None:
    torch.manual_seed(0)
    linear = nn.Linear(3, 5, bias=bias).double()
    x, z = (torch.randn(2, 4, width, dtype=torch.float64, requires_grad=True) for width in (5, 3))
    torch.testing.assert_close(add_linear(x, z, linear, 0.7), x + 0.7 * linear(z))
    weights = list(linear.parameters())
    assert gradcheck(lambda x, z, *_: add_linear(x, z, linear, 0.7), (x, z, *weights))


def test_the_sum_is_made_of_what_it_is_given_and_leaves_it_as_it_was() -> None:
    linear = nn.Linear(3, 5)
    z = torch.randn(2, 3, 3)
    for x in (
        torch.randn(2, 6, 5)[:, ::2],
        torch.randn(3, 2, 5).transpose(0, 1),
    ):  # neither is contiguous
        before = x.clone()
        torch.testing.assert_close(add_linear(x, z, linear, 1.0), x + linear(z))
        torch.testing.assert_close(x, before, rtol=0, atol=0)


def test_quick_gelu_is_its_formula_to_the_bit_and_so_is_its_gradient() -> None:
    x = torch.linspace(-12, 12, 501, dtype=torch.float64, requires_grad=True)
    plain = x * torch.sigmoid(1.702 * x)
    assert torch.equal(quick_gelu(x), plain)
    assert torch.equal(quick_gelu(x.detach()), plain)
    assert gradcheck(quick_gelu, (x,))


def normed(channels: int = 8) -> tuple[nn.LayerNorm, Tensor]:
    """A frozen norm that remembers, and an input that wants a gradient."""
    torch.manual_seed(0)
    norm = nn.LayerNorm(channels).requires_grad_(False)
    norm.register_forward_hook(remember_norm_input)
    return norm, torch.randn(2, 3, channels, requires_grad=True)


def test_an_adapter_after_a_norm_keeps_the_norms_input_instead_of_its_output() -> None:
    norm, x = normed()
    frozen, adapter = (
        nn.Linear(8, 8).requires_grad_(False),
        LinearAdapter(8, 2, scale=1.0, dropout=0.0, bias=True),
    )
    nn.init.normal_(adapter.up.weight)
    output = norm(x)
    kept = weakref.ref(output)
    total = frozen(adapter(output)).square().sum()
    del output
    gc.collect()
    assert kept() is None
    total.backward()
    ours = [x.grad, *(parameter.grad for parameter in adapter.parameters())]

    x.grad = None
    adapter.zero_grad()
    output = nn.functional.layer_norm(x, (8,), norm.weight, norm.bias, norm.eps)
    inner = adapter.up(adapter.down(output))
    frozen(output + inner).square().sum().backward()
    for one, other in zip(
        ours, [x.grad, *(parameter.grad for parameter in adapter.parameters())], strict=True
    ):
        torch.testing.assert_close(one, other)


def test_a_norms_input_that_was_changed_in_between_is_an_error_not_a_wrong_gradient() -> None:
    norm, _ = normed()
    x = torch.randn(2, 3, 8)  # without a gradient of its own, nothing else would notice
    linear = nn.Linear(8, 2)
    output = norm(x)
    with keep_norm_input(output):
        total = linear(output).sum()
    x += 1
    with pytest.raises(RuntimeError, match="changed in place"):
        total.backward()


def test_a_norms_output_that_was_changed_is_kept_as_it_is() -> None:
    norm, x = normed()
    linear = nn.Linear(8, 2)
    output = norm(x)
    output += 1
    with keep_norm_input(output):
        total = linear(output).sum()
    total.backward()
    changed = nn.functional.layer_norm(x, (8,), norm.weight, norm.bias, norm.eps) + 1
    torch.testing.assert_close(linear.weight.grad, changed.flatten(0, 1).sum(0).expand(2, -1))
