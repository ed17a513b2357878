"""What a saved model answers for one video: softmax averaged over the views that it was saved with."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from torch import Tensor

import zeroi2v
from tests.towers_for_tests import respec
from zeroi2v.config import ViewsConfig
from zeroi2v.data.datasets import open_dataset
from zeroi2v.data.loader import read_views
from zeroi2v.inference.evaluate import BATCH, evaluate


def test_scores_are_the_mean_of_the_softmax_of_each_view(
    motion_videos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = zeroi2v.create_model("zeroi2v_tiny", num_classes=3, frames=2, pretrained=True)
    respec(model, labels=("left", "right", "up"), views=ViewsConfig(clips=2, crops=3))
    model.save_pretrained(tmp_path)
    predictor = zeroi2v.Predictor(tmp_path, device="cpu")
    logits = [[9.0, 0.0, 0.0], *[[0.0, 2.0, 0.0]] * 2, *[[0.0, 1.0, 1.5]] * 3]  # of the six views
    seen: list[Tensor] = []

    def answer(clips: Tensor) -> Tensor:
        seen.append(clips)
        return torch.tensor(logits)

    monkeypatch.setattr(predictor.model, "forward", answer)
    video = open_dataset(motion_videos).val[0].path
    found = predictor.predict(video)
    shares = [[math.exp(logit) / sum(map(math.exp, view)) for logit in view] for view in logits]
    by_hand = {
        label: sum(share[place] for share in shares) / 6 for place, label in enumerate(model.labels)
    }
    assert {one.label: one.score for one in found} == pytest.approx(by_hand)
    assert [one.label for one in found] == sorted(by_hand, key=by_hand.__getitem__, reverse=True)
    assert found[0].label != model.labels[torch.tensor(logits).mean(0).argmax()], (
        "or the order would not matter"
    )
    assert [one.label for one in predictor.predict(video, top_k=1)] == [found[0].label]

    mean, std = (torch.tensor(values).view(3, 1, 1) for values in model.normalisation)
    views = read_views(video, clip=model.clip, views=model.views, size=48).float()
    torch.testing.assert_close(seen[0], (views / 255 - mean) / std)


def test_many_views_are_taken_in_parts_and_score_as_in_an_evaluation(
    motion_videos: Path, tmp_path: Path
) -> None:
    model = zeroi2v.create_model("zeroi2v_tiny", num_classes=3, frames=2, pretrained=True)
    respec(model, views=ViewsConfig(clips=7, crops=3))
    model.save_pretrained(tmp_path)
    predictor = zeroi2v.Predictor(tmp_path, device="cpu")
    clips: list[int] = []
    predictor.model.register_forward_pre_hook(lambda module, inputs: clips.append(len(inputs[0])))
    video = open_dataset(motion_videos).val[0]
    found = {one.label: one.score for one in predictor.predict(video.path)}
    assert clips == [BATCH, 21 - BATCH]
    whole = evaluate(predictor.model, [video], batch_size=21)
    assert clips[2:] == [21]
    assert [found[label] for label in model.labels] == pytest.approx(whole.scores[0].tolist())
