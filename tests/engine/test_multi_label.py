"""Training, evaluation and prediction where a video may have several labels."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path
from random import Random

import pytest
import torch

import zeroi2v
from tests.towers_for_tests import respec
from tests.training_for_tests import interrupted_after
from tests.videos_for_tests import blocks_dataset
from zeroi2v.cli.main import main
from zeroi2v.config import ClipConfig, DataConfig, ModelConfig, PixelsConfig, Recipe, TrainConfig
from zeroi2v.data.datasets import Video, VideoDataset, open_dataset
from zeroi2v.data.loader import train_loader
from zeroi2v.data.views import read_views
from zeroi2v.engine.run import Run, train
from zeroi2v.files import read_json_lines
from zeroi2v.inference.evaluate import Evaluation, evaluate
from zeroi2v.inference.scores import average_precision, normalise, view_scores

RECIPE = Recipe(
    model=ModelConfig(pretrained=False, tower_options={"depth": 2}),
    data=DataConfig(multi_label=True),
    clip=ClipConfig(frames=2),
    pixels=PixelsConfig(flip=0.5),
    train=TrainConfig(epochs=2, batch_size=4, warmup_epochs=0.5, workers=0, precision="fp32"),
)


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Five videos to train on, three to validate on, with one to three of the labels a, b, c."""
    folder = tmp_path_factory.mktemp("videos")
    blocks_dataset(folder, train=8, val=0, frames=4)
    labels = ["a", "a|b", "c", "b|c", "a|b|c", "b", "a|c", "c"]
    rows = [
        f"{number}.mp4,{text},{'train' if number < 5 else 'val'}"
        for number, text in enumerate(labels)
    ]
    (folder / "list.csv").write_text("\n".join(["path,label,split", *rows]))
    return folder / "list.csv"


@pytest.fixture(scope="module")
def dataset(manifest: Path) -> VideoDataset:
    return open_dataset(manifest, RECIPE.data)


@pytest.fixture(scope="module")
def run(dataset: VideoDataset, tmp_path_factory: pytest.TempPathFactory) -> Run:
    return train(RECIPE, dataset, tmp_path_factory.mktemp("runs") / "run")


def area_under_steps(scores: list[float], has: list[bool]) -> float:
    """Average precision by a slow second route.

    The threshold falls from score to score. Each time, precision times the rise of recall is added.
    """
    area = recall = 0.0
    for threshold in sorted(set(scores), reverse=True):
        taken = [has_it for score, has_it in zip(scores, has, strict=True) if score >= threshold]
        new_recall = sum(taken) / sum(has)
        area += (new_recall - recall) * sum(taken) / len(taken)
        recall = new_recall
    return area


def test_average_precision_by_hand() -> None:
    scores, has = torch.tensor([0.9, 0.8, 0.7, 0.1]), torch.tensor([1.0, 0.0, 1.0, 0.0])
    assert average_precision(scores, has) == pytest.approx((1 / 1 + 2 / 3) / 2)
    assert average_precision(scores, 1 - has) == pytest.approx((1 / 2 + 2 / 4) / 2)
    assert average_precision(torch.zeros(4), torch.tensor([1.0, 0.0, 0.0, 0.0])) == 0.25, (
        "equal scores say nothing"
    )
    assert average_precision(scores, torch.zeros(4)) is None


@pytest.mark.parametrize("seed", range(20))
def test_average_precision_is_the_area_under_the_steps(seed: int) -> None:
    random = Random(seed)
    scores = [random.randrange(8) / 8 for _ in range(random.randrange(2, 40))]  # many are equal
    has = [random.random() < 0.3 for _ in scores]
    has[random.randrange(len(has))] = True
    assert average_precision(torch.tensor(scores), torch.tensor(has).float()) == pytest.approx(
        area_under_steps(scores, has)
    )


def test_the_figure_is_the_mean_over_classes_of_the_mean_sigmoid_over_views() -> None:
    logits = torch.randn(6, 3, 4, generator=torch.Generator().manual_seed(0))
    labels = torch.tensor(
        [[1, 0, 0, 0], [1, 1, 0, 0], [0, 1, 1, 0], [0, 0, 1, 0], [1, 0, 1, 0], [0, 1, 0, 0]]
    ).float()
    videos = tuple(
        Video.of(Path(str(n)), row.nonzero().flatten().tolist()) for n, row in enumerate(labels)
    )
    evaluation = Evaluation(logits, labels, videos, ())
    by_hand = [
        [sum(1 / (1 + math.exp(-view[label])) for view in views) / 3 for label in range(4)]
        for views in logits.tolist()
    ]
    torch.testing.assert_close(evaluation.scores, torch.tensor(by_hand, dtype=torch.float64))
    precisions = [
        area_under_steps([row[k] for row in by_hand], (labels[:, k] > 0).tolist()) for k in range(3)
    ]
    expected = [*map(pytest.approx, precisions), None]
    assert evaluation.per_class() == expected, "the last class has no video"
    mean = pytest.approx(sum(precisions) / 3)
    assert evaluation.to_dict() == {"mAP": mean, "videos": 6, "skipped": []}


def test_the_loss_is_the_mean_binary_cross_entropy(dataset: VideoDataset, tmp_path: Path) -> None:
    """By its definition, -y log p - (1 - y) log(1 - p), for a model that hardly moves."""
    settings = dataclasses.replace(RECIPE.train, epochs=1, learning_rate=1e-12)
    run = train(dataclasses.replace(RECIPE, train=settings), dataset, tmp_path / "run")
    model = zeroi2v.load(run.folder)
    loader = train_loader(
        dataset.train,
        clip=RECIPE.clip,
        pixels=RECIPE.pixels,
        size=model.image_size,
        labels=dataset.classes,
        batch_size=5,
        seed=0,
        workers=0,
        broken="stop",
        multi_label=True,
    )
    ((clips, labels),) = loader.epoch(1)
    with torch.no_grad():
        shares = 1 / (1 + (-model(normalise(clips, *model.normalisation)).double()).exp())
    by_hand = -(labels * shares.log() + (1 - labels) * (1 - shares).log()).mean().item()
    assert read_json_lines(run.folder / "log.jsonl")[0]["loss"] == pytest.approx(by_hand, rel=1e-6)


def test_the_run_keeps_its_best_epoch_by_map_and_the_folder_knows(
    run: Run, dataset: VideoDataset
) -> None:
    log = read_json_lines(run.folder / "log.jsonl")
    figures = [entry["mAP"] for entry in log]
    assert not any("top1" in entry for entry in log)
    assert run.best == max(figures) == figures[run.best_epoch - 1]
    model = zeroi2v.load(run.folder)
    assert model.spec.multi_label
    assert model.merge().spec.multi_label
    assert evaluate(model, dataset.val).figures == {"mAP": run.best}
    assert model.spec.results["validation mAP"] == run.best
    card = (run.folder / "README.md").read_text()
    assert f"| validation mAP | {run.best:.4g} |" in card
    assert "sigmoid" in card


def test_a_stopped_run_goes_on_to_the_same_weights(
    run: Run, dataset: VideoDataset, tmp_path: Path
) -> None:
    with interrupted_after(3):
        train(RECIPE, dataset, tmp_path / "run")
    train(RECIPE, dataset, tmp_path / "run", resume=True)
    for name in ("last.safetensors", "model.safetensors"):
        assert (tmp_path / "run" / name).read_bytes() == (run.folder / name).read_bytes()


def test_predict_gives_the_mean_sigmoid(run: Run, dataset: VideoDataset) -> None:
    predictor = zeroi2v.Predictor(run.folder, device="cpu")
    model, video = predictor.model, dataset.val[0].path
    views = read_views(video, clip=model.clip, views=model.views, size=model.image_size)
    with torch.no_grad():
        logits = model(normalise(views, *model.normalisation)).tolist()
    by_hand = {
        label: sum(1 / (1 + math.exp(-view[number])) for view in logits) / len(logits)
        for number, label in enumerate(model.labels)
    }
    scores = {prediction.label: prediction.score for prediction in predictor.predict(video)}
    assert scores == pytest.approx(by_hand)
    assert abs(sum(scores.values()) - 1) > 0.01, "these scores are not a softmax"


def test_eval_needs_no_setting_and_says_map(
    run: Run, manifest: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["eval", str(manifest), "--model", str(run.folder)]
    assert main([*words, "--json", "--scores", str(tmp_path / "scores.csv")]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["mAP"] == pytest.approx(run.best)
    assert (result["videos"], result["skipped"], result["split"]) == (3, [], "val")
    assert set(result["per_class"]) == {*"abc"}
    rows = (tmp_path / "scores.csv").read_text().splitlines()
    assert [row.split(",")[1] for row in rows] == ["label", "b", "a|c", "c"]
    assert main(words) == 0
    assert capsys.readouterr().out == f"mAP {run.best:.2%} on 3 videos\n"
    assert main([*words, "--confusion", str(tmp_path / "confusion.csv")]) == 1
    assert capsys.readouterr().err.startswith(
        "error: --confusion is for models of one label a video"
    )


def test_a_model_of_one_label_refuses_videos_with_several(
    manifest: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = zeroi2v.create_model("zeroi2v_tiny", num_classes=3, frames=2)
    respec(model, labels=("a", "b", "c"))
    model.save_pretrained(tmp_path / "model")
    words = ["eval", str(manifest), "--model", str(tmp_path / "model")]
    assert main([*words, "--set", "data.multi_label=true"]) == 1
    assert "the model was trained with one label a video" in capsys.readouterr().err
    assert main(words) == 1
    assert "has no class 'a|" in capsys.readouterr().err


def test_a_classifier_of_one_label_starts_anew_for_several(
    run: Run, dataset: VideoDataset, tmp_path: Path
) -> None:
    """The logits of one label a video are compared with each other, not with zero."""
    settings = dataclasses.replace(
        RECIPE.train, epochs=1, learning_rate=1e-12, start_from=str(run.folder)
    )
    kept = train(dataclasses.replace(RECIPE, train=settings), dataset, tmp_path / "kept")
    alone = dataclasses.replace(
        dataset,
        splits={
            split: tuple(Video(video.path, video.label) for video in videos)
            for split, videos in dataset.splits.items()
        },
    )
    recipe = dataclasses.replace(RECIPE, data=DataConfig(), train=settings)
    anew = train(recipe, alone, tmp_path / "anew")
    before = zeroi2v.load(run.folder).classifier.weight
    torch.testing.assert_close(zeroi2v.load(kept.folder).classifier.weight, before)
    assert not torch.allclose(zeroi2v.load(anew.folder).classifier.weight, before, atol=1e-3)


def test_scores_of_sure_answers_keep_their_order() -> None:
    """In float32 the sigmoid of both is 1."""
    scores = view_scores(torch.tensor([[20.0, 30.0]]), multi_label=True)
    assert scores[0] < scores[1]
