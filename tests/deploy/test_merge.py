"""A merged model is written only if it answers like the adapted one."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import zeroi2v
from zeroi2v import VideoClassifier
from zeroi2v.deploy.merge import TOLERANCE, merge_folder
from zeroi2v.errors import MergeError


@pytest.mark.parametrize(
    ("error", "data"),
    [(3 * TOLERANCE, False), (-3 * TOLERANCE, True), (float("nan"), False), (TOLERANCE / 3, False)],
)
def test_a_merge_that_moves_a_logit_is_refused_and_nothing_is_written(
    error: float, data: bool, motion_videos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = zeroi2v.create_model("zeroi2v_tiny", num_classes=3, frames=2, pretrained=True)
    model = model.with_labels(["left", "right", "up"])
    model.save_pretrained(tmp_path / "model")
    (tmp_path / "list.csv").write_text(
        f"path,label\n{next(motion_videos.glob('val/left/*.mp4'))},left\n"
    )
    merge = VideoClassifier.merge

    def moved(self: VideoClassifier) -> VideoClassifier:
        merged = merge(self)
        with torch.no_grad():
            merged.classifier.bias[1] += (
                error  # no logit is above 1 here, so that the tolerance is the smallest
            )
        return merged

    monkeypatch.setattr(VideoClassifier, "merge", moved)
    out, videos = tmp_path / "merged", tmp_path / "list.csv" if data else None
    if abs(error) < TOLERANCE:
        proof = merge_folder(str(tmp_path / "model"), out, data=videos)
        assert proof["largest_logit_difference"] == pytest.approx(error, rel=0.1)
        assert proof["clips"] == (1 if data else 16)
        assert zeroi2v.load(out).spec.merged
    else:
        with pytest.raises(MergeError, match="merging changed a logit by"):
            merge_folder(str(tmp_path / "model"), out, data=videos)
        assert not out.exists()


@pytest.mark.parametrize(
    ("strategy", "reason"), [("zeroi2v", "merged already"), ("gelu_adapter", "")], ids=str
)
def test_a_model_that_cannot_be_merged_is_named(strategy: str, reason: str, tmp_path: Path) -> None:
    model = zeroi2v.create_model("zeroi2v_tiny", num_classes=3, frames=2, strategy=strategy)
    (model.merge() if reason else model).save_pretrained(tmp_path / "model")
    with pytest.raises(MergeError) as caught:
        merge_folder(str(tmp_path / "model"), tmp_path / "merged")
    assert str(caught.value).startswith(f"{tmp_path / 'model'}: ")
    assert reason in str(caught.value)
    assert not (tmp_path / "merged").exists()
