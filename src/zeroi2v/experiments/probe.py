"""What do frames tell without their order? A linear classifier on the mean of frozen features.

Shapes: n videos, D channels, K classes.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from zeroi2v.data.datasets import Video
from zeroi2v.inference.evaluate import evaluate
from zeroi2v.inference.linear import standardised_regression
from zeroi2v.log import Log
from zeroi2v.models.video import VideoClassifier


def fit_probe(
    model: VideoClassifier,
    videos: Sequence[Video],
    *,
    workers: int = 0,
    penalty: float = 1e-4,
    log: Log | None = None,
) -> None:
    """Set a model's classifier to the logistic regression of its own features.

    Each video gives one evaluation clip, and is read and run once. The features are standardised
    for the fit, and the standardisation is folded into the classifier. `penalty` is the weight of
    the squared coefficients.
    """
    classes = model.classifier
    features: list[Tensor] = []
    hook = classes.register_forward_pre_hook(lambda _, inputs: features.append(inputs[0].detach()))
    try:
        labels = evaluate(model, videos, workers=workers, log=log).labels
    finally:
        hook.remove()
    set_classifier(classes, torch.cat(features).double(), labels, penalty)


def set_classifier(classifier: nn.Linear, inputs: Tensor, labels: Tensor, penalty: float) -> None:
    """Set a classifier to the `standardised_regression` of inputs (n, D), float64, labels (n,)."""
    weight, bias = standardised_regression(inputs, labels, classifier.out_features, penalty)
    with torch.no_grad():
        classifier.weight.copy_(weight)
        classifier.bias.copy_(bias)
