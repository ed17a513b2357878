"""Accuracy within pairs, the reader of sharpness, and what may be claimed."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from zeroi2v.data.datasets import Video
from zeroi2v.inference.directions import direction_by_sharpness, reading, right_within_pairs
from zeroi2v.inference.evaluate import Evaluation


def test_only_the_two_directions_of_the_true_label_compete() -> None:
    """By hand: labels 0/1 are one pair, 2/3 the other; the highest logit lies elsewhere."""
    logits = torch.tensor(
        [
            [[9.0, 0.0, 2.0, 1.0]],
            [[9.0, 0.0, 1.0, 2.0]],
            [[0.0, 0.0, 1.0, 1.0]],
            [[1.0, 2.0, 9.0, 9.0]],
            [[1.0, 2.0, 9.0, 9.0]],
        ]
    )
    labels = torch.tensor([2, 2, 2, 1, 0])
    assert right_within_pairs(logits, labels).tolist() == [1, 0, 0.5, 1, 0]


def test_views_are_averaged_before_they_compete() -> None:
    logits = torch.tensor([[[3.0, 0.0], [0.0, 2.0]]])
    assert right_within_pairs(logits, torch.tensor([0])).tolist() == [1]
    assert right_within_pairs(logits, torch.tensor([1])).tolist() == [0]


def test_what_does_not_depend_on_the_order_is_right_in_exactly_half_of_the_answers() -> None:
    logits = torch.randn(50, 1, 6, generator=torch.Generator().manual_seed(0))
    labels = torch.randint(3, (50,), generator=torch.Generator().manual_seed(1)) * 2
    right = right_within_pairs(logits.repeat(2, 1, 1), torch.cat([labels, labels + 1]))
    assert right.mean() == 0.5


def clips(count: int, slope: float) -> tuple[torch.Tensor, torch.Tensor, list[int]]:
    """Sharpness of clips in both directions; it rises along the clip by `slope` a frame."""
    generator = torch.Generator().manual_seed(0)
    forwards = torch.randn(count, 8, generator=generator).double() + slope * torch.arange(8)
    both = torch.stack([forwards, forwards.flip(1)], 1).flatten(0, 1)
    labels = torch.arange(count).repeat_interleave(2) % 3 * 2 + torch.arange(2).repeat(count)
    return both, labels, torch.arange(count).repeat_interleave(2).tolist()


def test_sharpness_that_rises_tells_the_direction_and_noise_does_not() -> None:
    assert (direction_by_sharpness(*clips(60, 1.0)) or 0) > 0.95
    assert abs((direction_by_sharpness(*clips(200, 0.0)) or 0) - 0.5) < 0.08


def test_a_clip_is_never_asked_of_a_reader_that_saw_its_reversal() -> None:
    """Clips that a reader could only learn by heart: more numbers than clips."""
    sharpness, labels, sources = clips(6, 0.0)
    wide = torch.cat([sharpness, torch.eye(6).repeat_interleave(2, 0).double() * 9], 1)
    wide[1::2, 8:] *= -1
    assert (direction_by_sharpness(wide, labels, sources) or 0) < 0.9


def test_one_pair_gives_no_reader() -> None:
    assert direction_by_sharpness(*clips(1, 1.0)) is None
    assert direction_by_sharpness(*clips(2, 1.0)) is not None


def test_the_reader_of_an_evaluation_is_fitted_once(monkeypatch: pytest.MonkeyPatch) -> None:
    fits = []

    def fitted(*arguments: object) -> float:
        fits.append(arguments)
        return 0.5

    monkeypatch.setattr("zeroi2v.inference.evaluate.direction_by_sharpness", fitted)
    sharpness, labels, sources = clips(6, 0.0)
    videos = tuple(Video(Path(str(source)), 0) for source in sources)
    logits = torch.zeros(len(labels), 1, 6)
    evaluation = Evaluation(logits, labels, videos, skipped=(), sharpness=sharpness)
    for _ in range(2):
        assert evaluation.figures["sharpness"] == 0.5
        assert evaluation.direction_answer()["pairs"] == 6
        assert evaluation.to_dict()["sharpness"] == 0.5
    assert len(fits) == 1


@pytest.mark.parametrize(
    ("within_pairs", "sharpness", "pairs", "claim"),
    [
        (0.9, 0.52, 100, "time matters"),
        (0.52, 0.52, 100, "does not matter in these videos, or the model cannot see it"),
        (0.9, 0.8, 100, "claim nothing, because the sharpness"),
        (0.9, 0.2, 100, "claim nothing, because the sharpness"),
        (0.6, 0.5, 10, "does not matter in these videos, or"),
        (1.0, None, 1, "claim nothing: 1 pair is too few; at least 4 are needed"),
        (1.0, 0.5, 3, "claim nothing: 3 pairs are too few; at least 4 are needed"),
        (1.0, 1.0, 2, "claim nothing: 2 pairs are too few; at least 4 are needed"),
        (1.0, 0.5, 4, "time matters"),
        (0.1, 0.5, 100, "claim nothing: the model takes most clips for the wrong direction"),
        (0.0, 0.5, 4, "claim nothing: the model takes most clips for the wrong direction"),
        (0.41, 0.5, 100, "does not matter in these videos, or"),
        (0.1, 0.9, 100, "claim nothing, because the sharpness"),
    ],
)
def test_the_sentence_claims_only_what_the_numbers_carry(
    within_pairs: float, sharpness: float | None, pairs: int, claim: str
) -> None:
    sentence = reading(within_pairs, sharpness, pairs)
    assert claim in sentence
    assert f"{within_pairs:.1%}" in sentence
    assert "\n" not in sentence
