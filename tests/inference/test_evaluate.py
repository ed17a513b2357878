"""Figures of an evaluation, by hand; the order-blind probe; and several views of one video."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

import zeroi2v
from tests.towers_for_tests import respec
from zeroi2v.config import ViewsConfig
from zeroi2v.data.datasets import Video, open_dataset
from zeroi2v.data.views import read_views
from zeroi2v.errors import DatasetError
from zeroi2v.experiments.probe import fit_probe, set_classifier
from zeroi2v.inference.evaluate import Evaluation, evaluate
from zeroi2v.inference.linear import linear_reader, logistic_regression, standardised_regression
from zeroi2v.inference.scores import normalise


def evaluation(logits: list[list[list[float]]], labels: list[int]) -> Evaluation:
    videos = tuple(Video(Path(str(index)), label) for index, label in enumerate(labels))
    return Evaluation(torch.tensor(logits), torch.tensor(labels), videos, ())


def test_scores_are_the_mean_of_softmax_not_the_softmax_of_the_mean() -> None:
    views = [[6.0, 0.0, 0.0], [0.0, 2.0, 0.0], [0.0, 2.0, 0.0]]  # their mean is highest for class 0
    found = evaluation([views, views[:1] * 3], [1, 0])
    shares = [[math.exp(logit) / sum(map(math.exp, view)) for logit in view] for view in views]
    by_hand = [sum(share[label] for share in shares) / 3 for label in range(3)]
    assert found.scores[0].tolist() == pytest.approx(by_hand)
    assert found.scores[1].tolist() == pytest.approx(shares[0])
    assert max(range(3), key=by_hand.__getitem__) == 1
    assert torch.tensor(views).mean(0).argmax() == 0, "or the order would not matter"
    assert found.top(1) == 1.0


def test_top_k_confusion_and_the_choice_between_two_by_hand() -> None:
    rows = [[3.0, 2.0, 1.0], [3.0, 2.0, 1.0], [1.0, 2.0, 3.0], [1.0, 3.0, 2.0]]
    found = evaluation([[row] for row in rows], [0, 1, 1, 2])
    assert found.top(1) == 0.25
    assert found.top(2) == 1.0
    assert found.top(5) == 1.0
    assert found.confusion().tolist() == [[1, 0, 0], [1, 0, 1], [0, 1, 0]]
    assert found.between(0, 1) == pytest.approx(
        2 / 3
    )  # videos 0 (right), 1 (wrong), 2 (right: 2 > 1)
    assert found.between(1, 0) == found.between(0, 1)
    assert found.between(1, 2) == pytest.approx(1 / 3)  # videos 1 (right), 2 (wrong), 3 (wrong)


def test_a_tie_between_two_classes_is_the_second() -> None:
    """So a model without an opinion is right for all videos of one class, and for no other video.

    Rounding then decides nothing.
    """
    found = evaluation([[[1.0, 1.0, 5.0]]] * 4, [0, 1, 1, 1])
    assert found.between(0, 1) == 0.75
    assert found.between(1, 0) == 0.25


def test_every_view_counts_and_is_read_as_predicted(motion_videos: Path) -> None:
    model = zeroi2v.create_model("zeroi2v_tiny", num_classes=8, frames=4, pretrained=True).eval()
    with torch.no_grad():
        model.classifier.weight.normal_(generator=torch.Generator().manual_seed(0))
    respec(model, views=ViewsConfig(clips=2, crops=3))
    videos = open_dataset(motion_videos).val[:3]
    found = evaluate(model, videos, batch_size=2)
    assert found.logits.shape == (3, 6, 8)
    views = read_views(videos[1].path, clip=model.clip, views=model.views, size=model.image_size)
    with torch.no_grad():
        alone = torch.cat([model(normalise(view[None], *model.normalisation)) for view in views])
    torch.testing.assert_close(found.logits[1], alone)


def test_a_batch_counts_clips_of_all_views_and_the_model_is_in_eval_mode(
    motion_videos: Path,
) -> None:
    videos = open_dataset(motion_videos).val[:5]
    model = zeroi2v.create_model(
        "zeroi2v_tiny", num_classes=8, frames=2, strategy="full", classifier_dropout=0.9
    )
    respec(model, views=ViewsConfig(clips=1, crops=3))
    clips: list[int] = []
    modes: list[bool] = []
    model.register_forward_pre_hook(lambda module, inputs: clips.append(len(inputs[0])))
    model.dropout.register_forward_pre_hook(lambda module, _: modes.append(module.training))
    model.tower.register_forward_pre_hook(lambda module, _: modes.append(module.training))
    first = evaluate(model.train(), videos, batch_size=7)
    assert clips == [6, 6, 3]
    assert not any(modes)
    assert torch.equal(evaluate(model.train(), videos, batch_size=7).logits, first.logits)
    clips.clear()
    respec(model, views=ViewsConfig(clips=2, crops=3))
    parts = evaluate(model, videos[:2], batch_size=4)
    assert clips == [4, 2] * 2, "a video of more views than a batch is taken in parts"
    torch.testing.assert_close(parts.logits, evaluate(model, videos[:2], batch_size=12).logits)
    assert clips[4:] == [12]


def test_nothing_readable_is_an_error(tmp_path: Path) -> None:
    model = zeroi2v.create_model("zeroi2v_tiny", num_classes=2, frames=4)
    with pytest.raises(DatasetError, match="none of the videos can be read \\(1 video tried\\)"):
        evaluate(model, [Video(tmp_path / "missing.mp4", 0)])


def test_logistic_regression_is_at_its_minimum() -> None:
    generator = torch.Generator().manual_seed(0)
    inputs, labels = (
        torch.randn(200, 5, generator=generator).double(),
        torch.randint(0, 3, (200,), generator=generator),
    )
    weight, bias = logistic_regression(inputs, labels, 3, 1e-2)
    weight.requires_grad_(True)
    bias.requires_grad_(True)
    (F.cross_entropy(inputs @ weight.T + bias, labels) + 1e-2 * weight.square().sum()).backward()
    assert weight.grad is not None
    assert bias.grad is not None
    assert max(weight.grad.abs().max(), bias.grad.abs().max()) < 1e-4


def test_a_standardised_regression_takes_inputs_as_they_are_with_or_without_gradients() -> None:
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(60, 3, generator=generator).double()
    labels = (inputs[:, 0] > inputs[:, 1]).long()
    scaled = inputs * torch.tensor([1.0, 50.0, 0.02]) + torch.tensor([5.0, -100.0, 0.0])
    with torch.no_grad():
        weight, bias = standardised_regression(inputs, labels, 2, 1e-3)
        other_weight, other_bias = standardised_regression(scaled, labels, 2, 1e-3)
    assert not weight.requires_grad
    logits = inputs @ weight.T + bias
    assert (logits.argmax(1) == labels).double().mean() > 0.9
    torch.testing.assert_close(scaled @ other_weight.T + other_bias, logits, rtol=0, atol=0.01)
    classifier = torch.nn.Linear(3, 2).double()
    set_classifier(classifier, inputs, labels, 1e-3)
    torch.testing.assert_close(classifier(inputs), logits)
    torch.testing.assert_close(linear_reader(inputs, labels, inputs, 2), logits)


def test_the_probe_is_blind_to_the_order_of_frames_and_better_than_nothing(
    motion_videos: Path,
) -> None:
    dataset = open_dataset(motion_videos)
    model = zeroi2v.create_model(
        "zeroi2v_tiny", num_classes=8, strategy="linear_probe", heads=[], pretrained=True
    )
    fit_probe(model, dataset.train)
    assert evaluate(model, dataset.train).top(1) > 0.25, "it has seen these"
    clip = torch.randn(2, 8, 3, 48, 48, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        torch.testing.assert_close(model(clip), model(clip.flip(1)))
