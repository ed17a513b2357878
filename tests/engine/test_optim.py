"""AdamW against its steps by hand, weight decay, and the learning rate along a run."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

import zeroi2v
from tests.towers_for_tests import small_model
from zeroi2v.engine.optim import (
    autocast_dtype,
    build_optimizer,
    learning_rate_share,
    set_learning_rate,
)


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


def rates_and_decays(
    strategy: str, shares: dict[str, float] | None = None, **settings: Any
) -> dict[str, tuple[float, float]]:
    """The learning rate and the weight decay of each weight that trains."""
    model = small_model("zeroi2v_tiny", strategy=strategy, **settings)
    names = {parameter: name for name, parameter in model.named_parameters()}
    optimizer = build_optimizer(
        model, learning_rate=1.0, weight_decay=0.05, learning_rate_shares=shares
    )
    set_learning_rate(optimizer, 0.5)
    found = {
        names[parameter]: (group["lr"], group["weight_decay"])
        for group in optimizer.param_groups
        for parameter in group["params"]
    }
    assert found.keys() == {name for name, p in model.named_parameters() if p.requires_grad}
    return found


def test_every_weight_of_evl_decays_as_in_its_authors_code() -> None:
    found = rates_and_decays("evl")
    assert any("query_norm" in name for name in found)
    assert {decay for _, decay in found.values()} == {0.05}


def test_aim_decays_its_temporal_embedding_and_spares_the_last_norm() -> None:
    found = rates_and_decays("aim")
    spared = {name for name, (_, decay) in found.items() if not decay}
    assert spared == {"tower.norm.weight", "tower.norm.bias"}
    assert "temporal_embedding" in found


def test_st_adapter_spares_all_biases() -> None:
    found = rates_and_decays("st_adapter_published", sites=("block", "mlp"))
    spared = {name for name, (_, decay) in found.items() if not decay}
    assert spared == {name for name in found if name.endswith(".bias")}
    # The row of Table 2 was trained as all rows of the table.
    row = rates_and_decays("st_adapter")
    assert row["adapters.0.qkv.conv.bias"][1] == 0.05


def test_parts_of_a_model_have_their_shares_of_the_learning_rate() -> None:
    def shares(*arguments: Any, **settings: Any) -> dict[str, float]:
        found = rates_and_decays(*arguments, **settings)
        return {name.partition(".")[0]: rate / 0.5 for name, (rate, _) in found.items()}

    whole = {"tower": 1.0, "adapters": 1.0, "temporal_embedding": 1.0, "classifier": 1.0}
    assert shares("zeroi2v") == whole
    slow = {"tower": 0.1, "temporal_embedding": 0.1, "classifier": 1.0}
    assert shares("full") == shares("joint") == slow
    assert shares("full", {"tower": 1.0, "classifier": 3.0}) == {
        "tower": 1.0,
        "temporal_embedding": 0.1,
        "classifier": 3.0,
    }
    assert shares("evl", {"adapters": 0.1}) == {"adapters": 0.1, "classifier": 1.0}


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
