"""What can a linear classifier read from some numbers? Logistic regression.

Shapes: n samples, D numbers of a sample, K classes.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def logistic_regression(
    inputs: Tensor, labels: Tensor, classes: int, penalty: float
) -> tuple[Tensor, Tensor]:
    """Weight (K, D) and bias (K) that minimise cross-entropy + penalty * |weight|^2.

    The inputs are (n, D) in float64. The minimiser is L-BFGS.
    """
    weight = torch.zeros(
        classes, inputs.shape[1], dtype=inputs.dtype, device=inputs.device, requires_grad=True
    )
    bias = torch.zeros(classes, dtype=inputs.dtype, device=inputs.device, requires_grad=True)
    optimizer = torch.optim.LBFGS([weight, bias], max_iter=200, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = F.cross_entropy(inputs @ weight.T + bias, labels) + penalty * weight.square().sum()
        loss.backward()
        return loss

    optimizer.step(closure)
    return weight.detach(), bias.detach()


def standardised_regression(
    inputs: Tensor, labels: Tensor, classes: int, penalty: float
) -> tuple[Tensor, Tensor]:
    """Weight (K, D) and bias (K) of the `logistic_regression` of standardised inputs.

    The inputs are (n, D) in float64. The standardisation is folded into the weight and the bias,
    which take inputs as they are.
    """
    mean, deviation = inputs.mean(0), inputs.std(0) + 1e-6
    with torch.enable_grad():
        weight, bias = logistic_regression(
            (inputs - mean) / deviation, labels.to(inputs.device), classes, penalty
        )
    weight = weight / deviation
    return weight, bias - weight @ mean


def linear_reader(inputs: Tensor, labels: Tensor, asked: Tensor, classes: int) -> Tensor:
    """The logits (m, K) of a linear classifier for other samples `asked` (m, D).

    The classifier learns from the inputs (n, D), float64, by `standardised_regression`.
    """
    weight, bias = standardised_regression(inputs, labels, classes, 1e-3)
    return asked @ weight.T + bias
