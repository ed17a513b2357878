"""What does a saved model answer for one video? The mean over its views, or a named error.

The same in several threads, for several videos, and nearly the same in half precision.
"""

from __future__ import annotations

import json
import math
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import Tensor

import zeroi2v
from tests.towers_for_tests import respec
from zeroi2v.config import ViewsConfig
from zeroi2v.data.datasets import open_dataset
from zeroi2v.data.decode import read_clip
from zeroi2v.data.views import read_views
from zeroi2v.errors import CheckpointError, ConfigError, VideoError
from zeroi2v.inference.evaluate import evaluate
from zeroi2v.inference.scores import BATCH
from zeroi2v.models.compiled import DTYPES


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


def test_an_empty_path_is_an_error_and_not_the_current_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    zeroi2v.create_model("zeroi2v_tiny", num_classes=2, frames=2).save_pretrained(tmp_path)
    predictor = zeroi2v.Predictor(tmp_path, device="cpu")
    monkeypatch.chdir(tmp_path)
    Image.new("L", (64, 64)).save("frame_1.png")
    assert len(predictor.predict(".")) == 2
    with pytest.raises(VideoError, match=r"^'': an empty path; give a video file"):
        predictor.predict("")


def test_a_folder_of_videos_is_not_predicted_from_its_cover(tmp_path: Path) -> None:
    zeroi2v.create_model("zeroi2v_tiny", num_classes=2, frames=2).save_pretrained(tmp_path / "m")
    Image.new("L", (64, 64)).save(tmp_path / "cover.jpg")
    (tmp_path / "a.mp4").touch()
    with pytest.raises(VideoError, match=r"holds videos, .*: give .*a\.mp4$"):
        zeroi2v.Predictor(tmp_path / "m", device="cpu").predict(tmp_path)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model whose answers differ from video to video."""
    folder = tmp_path_factory.mktemp("saved") / "model"
    model = zeroi2v.create_model("zeroi2v_tiny", num_classes=8, frames=4, pretrained=True)
    with torch.no_grad():
        model.classifier.weight.normal_(generator=torch.Generator().manual_seed(0))
    respec(model, views=ViewsConfig(clips=2, crops=3))
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def videos(motion_videos: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Video files, a folder of images, and a file that is no video."""
    frames = tmp_path_factory.mktemp("frames") / "clip"
    frames.mkdir()
    files = sorted(motion_videos.glob("val/*/*.mp4"))
    for number, pixels in enumerate(read_clip(files[6], range)):
        Image.fromarray(pixels.movedim(0, -1).numpy()).save(frames / f"{number:03d}.png")
    broken = frames.parent / "broken.mp4"
    broken.write_bytes(b"nothing")
    return [*files[:6], frames, broken]


def answers(predictor: zeroi2v.Predictor, video: Path) -> list[zeroi2v.Prediction] | str:
    try:
        return predictor.predict(video, top_k=8)
    except VideoError as error:
        return str(error)


def test_four_threads_get_what_one_thread_gets(folder: Path, videos: list[Path]) -> None:
    predictor = zeroi2v.Predictor(folder, device="cpu")
    alone = [answers(predictor, video) for video in videos]
    assert len({str(answer) for answer in alone}) == len(videos), "or a mix would not show"
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(lambda video: answers(predictor, video), videos * 6))
    assert together == alone * 6


@pytest.mark.parametrize("workers", [0, 1, 3, 20])
def test_videos_that_are_decoded_ahead_get_the_same_answers_in_the_same_order(
    workers: int, folder: Path, videos: list[Path]
) -> None:
    predictor = zeroi2v.Predictor(folder, device="cpu")
    expected = [answers(predictor, video) for video in videos]
    results = predictor.predict_each(videos, top_k=8, workers=workers)
    given = [str(result) if isinstance(result, VideoError) else result for result in results]
    assert given == expected


@pytest.mark.parametrize("dtype", ["bf16", "fp16"])
def test_half_precision_answers_nearly_the_same(
    dtype: str, folder: Path, videos: list[Path]
) -> None:
    half = zeroi2v.Predictor(folder, device="cpu", dtype=dtype)
    whole = zeroi2v.Predictor(folder, device="cpu")
    assert {weight.dtype for weight in half.model.parameters()} == {DTYPES[dtype]}
    for video in videos[:3]:
        expected = {one.label: one.score for one in whole.predict(video, top_k=8)}
        scores = {one.label: one.score for one in half.predict(video, top_k=8)}
        assert scores == pytest.approx(expected, abs=0.05)
        assert scores != expected
        assert sum(scores.values()) == pytest.approx(1.0)


def test_an_unknown_precision_and_an_empty_folder_are_refused(folder: Path) -> None:
    with pytest.raises(ConfigError, match="fp32, bf16, fp16, got 'bf61', did you mean 'bf16'"):
        zeroi2v.Predictor(folder, dtype="bf61")
    with pytest.raises(CheckpointError, match="the name of the model's folder is empty"):
        zeroi2v.Predictor("")


def test_prediction_imports_neither_the_engine_nor_accelerate(
    folder: Path, videos: list[Path]
) -> None:
    program = (
        "import json, sys, zeroi2v\n"
        "zeroi2v.Predictor(sys.argv[1]).predict(sys.argv[2])\n"
        "print(json.dumps([*sys.modules]))"
    )
    command = [sys.executable, "-c", program, str(folder), str(videos[0])]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    modules = json.loads(done.stdout)
    assert "zeroi2v.deploy.predict" in modules
    training = ("accelerate", "zeroi2v.engine", "zeroi2v.experiments", "zeroi2v.measure")
    assert [name for name in modules if name.startswith(training)] == []
