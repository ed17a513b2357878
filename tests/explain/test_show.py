"""What does `zeroi2v show` write, and what does it refuse?"""

from __future__ import annotations

import base64
import io
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import zeroi2v
from tests.towers_for_tests import noisy, respec, small_model
from tests.videos_for_tests import sequential, upright
from zeroi2v.config import ClipConfig, ViewsConfig
from zeroi2v.data.decode import read_clip
from zeroi2v.errors import ConfigError, VideoError
from zeroi2v.explain.show import FILES, show
from zeroi2v.inference.scores import normalise


def labelled(tower: str = "zeroi2v_tiny", heads: Any = "-1*2, 1*1") -> zeroi2v.VideoClassifier:
    model = noisy(small_model(tower, heads=heads, num_classes=3))
    clip = ClipConfig(frames=model.frames, sampling="segment")
    respec(model, labels=("left", "<b>right</b>", "up"), clip=clip)
    return model


@pytest.fixture(scope="module")
def video(motion_videos: Path) -> Path:
    return next(motion_videos.glob("val/left/*.mp4"))


def test_it_writes_a_picture_a_video_and_a_page_of_every_map(video: Path, tmp_path: Path) -> None:
    model = labelled()
    result = show(video, model, tmp_path / "deep" / "out", block=2, label="<b>right</b>")
    folder = tmp_path / "deep" / "out"
    assert sorted(path.name for path in folder.iterdir()) == sorted(FILES)
    groups = ["spatial heads", "temporal heads", "all heads", "offset -1", "offset +1"]
    assert [*result["groups"]] == groups
    with Image.open(folder / FILES[0]) as sheet:
        assert sheet.size == (176 + 4 * 196, (1 + 2 * len(groups)) * (192 + 24))
    moments = [upright(frame) for frame in sequential(folder / FILES[1])]
    assert len(moments) == model.frames
    assert moments[0].shape == (3, 2 * (192 + 24), 6 * 192)
    page = (folder / FILES[2]).read_text(encoding="utf-8")
    assert not re.search(r"https?:|<script|url\(|@import|<b>right</b></b>", page)
    assert "<b>&lt;b&gt;right&lt;/b&gt;</b>" in page
    pictures = re.findall(r"base64,([^\"]+)", page)
    assert len(pictures) == 4 * (1 + 2 * len(groups))
    first = np.asarray(Image.open(io.BytesIO(base64.b64decode(pictures[0]))))
    assert first.shape == (192, 192, 3)


def test_it_says_which_frame_each_head_reads_and_who_reads_a_frame(
    video: Path, tmp_path: Path
) -> None:
    result = show(video, labelled(), tmp_path, block=1)
    assert result["heads"] == [
        {"offset": 0, "heads": dict.fromkeys(range(4, 13), 1.0), "reads": [1, 2, 3, 4]},
        {"offset": -1, "heads": {1: 1.0, 2: 1.0}, "reads": [1, 1, 2, 3]},
        {"offset": 1, "heads": {3: 1.0}, "reads": [2, 3, 4, 4]},
    ]
    assert result["groups"]["offset -1"]["read_by"] == [[1, 2], [3], [4], []]
    assert result["groups"]["temporal heads"]["read_by"] == [[1, 2], [1, 3], [2, 4], [3, 4]]
    assert result["groups"]["offset -1"]["grad_cam"][3] == 0
    split = show(video, labelled(heads="-1*1/2"), tmp_path)["heads"]
    assert split[0]["heads"] == {1: 0.5, **dict.fromkeys(range(2, 13), 1.0)}
    assert split[1]["heads"] == {1: 0.5}


def test_the_class_is_the_predicted_one_unless_named(video: Path, tmp_path: Path) -> None:
    model = labelled()
    with torch.no_grad():
        model.classifier.bias.copy_(torch.tensor([0.0, 0.0, 50.0]))
    result = show(video, model, tmp_path)
    assert (result["label"], result["predicted"], result["block"]) == ("up", "up", 6)
    assert result["score"] == pytest.approx(1)
    other = show(video, model, tmp_path, label="left")
    assert (other["label"], other["predicted"]) == ("left", "up")
    assert other["groups"]["all heads"]["grad_cam"] != result["groups"]["all heads"]["grad_cam"]


def test_scores_of_several_labels_are_those_of_predict(video: Path, tmp_path: Path) -> None:
    model = labelled()
    respec(model, multi_label=True)
    model.save_pretrained(tmp_path / "model")
    answers = {
        prediction.label: prediction.score
        for prediction in zeroi2v.Predictor(tmp_path / "model", device="cpu").predict(video)
    }
    for label in model.labels:
        result = show(video, model, tmp_path, label=label)
        assert result["score"] == pytest.approx(answers[label])
    assert abs(sum(answers.values()) - 1) > 0.01, "or softmax would have done"


def test_the_clip_is_the_middle_one_whatever_the_protocol_of_the_model(
    video: Path, tmp_path: Path
) -> None:
    model = labelled()
    respec(model, clip=ClipConfig(frames=4, sampling="dense", stride=2))
    seen = []
    model.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    for views in (ViewsConfig(), ViewsConfig(clips=3, crops=3)):
        respec(model, views=views)
        show(video, model, tmp_path)
    frames = read_clip(
        video, lambda n: [(n - 7) // 2 + 2 * i for i in range(4)], short_side=model.image_size
    )
    by_hand = normalise(frames[None], *model.normalisation)
    assert by_hand.shape == seen[0].shape, "square, or the crop would matter"
    torch.testing.assert_close(seen[0], by_hand)
    assert torch.equal(seen[0], seen[1])


def test_windows_and_tubelets_are_drawn(video: Path, tmp_path: Path) -> None:
    options = {
        "img_size": 64,
        "embed_dim": 32,
        "depths": (2, 2),
        "num_heads": (4, 8),
        "window_size": 4,
    }
    torch.manual_seed(0)
    tower = "swin_tiny_patch4_window7_224"
    model = noisy(
        zeroi2v.create_model(
            tower, num_classes=2, frames=4, tubelet=2, heads="-1*1", tower_options=options
        )
    )
    result = show(video, model, tmp_path)
    assert (result["frames"], result["heads"][1]["reads"]) == (2, [1, 1])
    assert "2 neighbouring frames as one" in (tmp_path / FILES[2]).read_text(encoding="utf-8")


def test_what_is_wrong_is_named_and_nothing_is_written(video: Path, tmp_path: Path) -> None:
    model, out = labelled(), tmp_path / "out"
    for block in (0, 7):
        with pytest.raises(
            ConfigError, match=f"block must be 1 to 6 for zeroi2v_tiny, got {block}"
        ):
            show(video, model, out, block=block)
    with pytest.raises(ConfigError, match="no class is called 'lefd', did you mean 'left'"):
        show(video, model, out, label="lefd")
    broken = tmp_path / "broken.mp4"
    broken.write_bytes(b"hello " * 100)
    with pytest.raises(VideoError, match=r"broken\.mp4"):
        show(broken, model, out)
    assert not out.exists()
