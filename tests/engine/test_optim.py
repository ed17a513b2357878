"""AdamW against its steps by hand, weight decay, and the learning rate along a run."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import zeroi2v
from tests.towers_for_tests import small_model
from zeroi2v.engine.optim import autocast_dtype, build_optimizer, learning_rate_share


def test_the_learning_rate_warms_up_and_falls_along_a_cosine() -> None:
    shares = [
        learning_rate_share(step, steps=100, warmup_steps=10, warmup_start=0.1)
        for step in range(101)
    ]
    assert shares[0] == pytest.approx(0.1)
    assert shares[5] == pytest.approx(0.55)
    assert shares[10] == 1
    assert shares[55] == pytest.approx(0.5)
    assert shares[100] == pytest.approx(0)
    assert learning_rate_share(0, steps=3, warmup_steps=0, warmup_start=0.1) == 1


def test_norms_and_embeddings_have_no_weight_decay() -> None:
    model = zeroi2v.create_model("zeroi2v_tiny", num_classes=3)
    names = {parameter: name for name, parameter in model.named_parameters()}
    groups = build_optimizer(model, learning_rate=1.0, weight_decay=0.05).param_groups
    decayed = {
        group["weight_decay"]: {names[parameter] for parameter in group["params"]}
        for group in groups
    }
    assert decayed[0.0] == {"temporal_embedding", "tower.norm.weight", "tower.norm.bias"}
    assert (
        decayed[0.05]
        == {name for name, p in model.named_parameters() if p.requires_grad} - decayed[0.0]
    )


def test_three_steps_are_adamw_by_hand() -> None:
    """w <- (1 - rate * decay) w - rate * m / (sqrt(v) + 1e-8), with decoupled weight decay.

    The averages m and v start at zero and are corrected for this start.
    """
    torch.manual_seed(0)
    model = small_model("zeroi2v_tiny").double()
    rate, decay = 0.01, 0.3
    optimizer = build_optimizer(model, learning_rate=rate, weight_decay=decay)
    norm = model.tower.get_submodule("norm")
    decays = {
        model.classifier.weight: decay,
        model.classifier.bias: decay,
        norm.get_parameter("weight"): 0.0,
        norm.get_parameter("bias"): 0.0,
    }
    for parameter in decays:
        nn.init.normal_(parameter)
    expected = {parameter: parameter.detach().clone() for parameter in decays}
    gradients = {parameter: [torch.randn_like(parameter) for _ in range(3)] for parameter in decays}
    for step in range(3):
        for parameter, of_parameter in gradients.items():
            parameter.grad = of_parameter[step]
        optimizer.step()
    for parameter, of_parameter in gradients.items():
        mean = square = torch.zeros_like(parameter)
        for step, gradient in enumerate(of_parameter, start=1):
            mean = 0.9 * mean + 0.1 * gradient
            square = 0.999 * square + 0.001 * gradient**2
            moved = mean / (1 - 0.9**step) / ((square / (1 - 0.999**step)).sqrt() + 1e-8)
            expected[parameter] = (1 - rate * decays[parameter]) * expected[
                parameter
            ] - rate * moved
        torch.testing.assert_close(parameter.detach(), expected[parameter])


def test_the_precision_asked_for_is_the_one_of_the_matrix_products() -> None:
    cpu = torch.device("cpu")
    dtypes = [autocast_dtype(precision, cpu) for precision in ("fp32", "bf16", "fp16")]
    assert dtypes == [None, torch.bfloat16, torch.float16]
    assert autocast_dtype("auto", cpu) in (None, torch.bfloat16)
