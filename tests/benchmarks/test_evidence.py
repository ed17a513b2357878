"""Does the plan of the evidence keep tested clips out of every choice, and judge pairs rightly?"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import save_file

from benchmarks import evidence_plan as script
from benchmarks.evidence_clips import FOLDS, Clips, direction_test, labels_test
from benchmarks.evidence_training import TOWER, Inputs, Regime, _renumbered


def finished(job: script.Job, loss: float) -> dict[str, Any]:
    """The line of a training whose loss is the same on all folds held out."""
    return {"job": asdict(job), "folds": {str(fold): {"loss": loss} for fold in job.held_out}}


def run(loss_of: Callable[[script.Job], float], seeds: int) -> list[dict[str, Any]]:
    """The lines of the whole plan, if a training has the loss that `loss_of` says."""
    lines: list[dict[str, Any]] = []
    while waiting := script.jobs("r", range(seeds), lines):
        lines += [finished(job, loss_of(job)) for job in waiting]
    return lines


def test_rates_come_first_and_every_fold_is_tested_with_every_seed() -> None:
    first = script.jobs("r", range(3), [])
    assert len(first) == 2 * 4 * 3 * 3
    assert all(len(job.held_out) == 2 for job in first)
    lines = run(lambda job: abs(job.rate - 1e-3), 3)
    assert len(lines) == len(first) + 2 * 4 * 5 * 3
    tested = [job for job in map(script.Job.of, lines) if len(job.held_out) == 1]
    assert {job.rate for job in tested} == {1e-3}
    assert len({*tested}) == len(tested)


@pytest.mark.parametrize(("best", "tried"), [(3e-2, 3e-2), (1e-5, 3e-5)])
def test_the_grid_grows_at_an_end_that_is_the_best(best: float, tried: float) -> None:
    lines = run(lambda job: abs(job.rate - best), 1)
    jobs = [*map(script.Job.of, lines)]
    assert {job.rate for job in jobs if len(job.held_out) == 1} == {tried}


def test_the_rate_of_a_fold_is_chosen_without_the_clips_of_the_fold() -> None:
    for fold, judge in script.JUDGE.items():
        pair = script._pair_of(fold, judge)
        assert fold in pair, "the training that chooses has not seen the fold"
        assert judge in pair
        assert judge != fold

    def loss_of(job: script.Job) -> float:
        return abs(job.rate - (3e-4 if job.held_out == (0, 1) else 1e-3)) + (job.rate < 3e-4)

    tested = [job for job in map(script.Job.of, run(loss_of, 1)) if len(job.held_out) == 1]
    assert {job.rate for job in tested if job.held_out[0] in (0, 1)} == {3e-4}
    assert {job.rate for job in tested if job.held_out[0] in (2, 3, 4)} == {1e-3}


def test_the_tested_fold_does_not_extend_the_grid_of_its_own_rate() -> None:
    def line(job: script.Job) -> dict[str, Any]:
        # By fold 0, higher rates are always better. By fold 1, 1e-3 is the best rate of the grid,
        # and 1e-2, which only fold 0 asks for, would be better still.
        losses = {0: -job.rate, 1: {1e-3: 0.5, 1e-2: 0.4}.get(job.rate, 0.6)}
        folds = {str(fold): {"loss": losses.get(fold, job.rate)} for fold in job.held_out}
        return {"job": asdict(job), "folds": folds}

    lines: list[dict[str, Any]] = []
    while waiting := script.jobs("r", range(1), lines):
        assert len({*waiting}) == len(waiting)
        lines += [line(job) for job in waiting]
    jobs = [*map(script.Job.of, lines)]
    assert {job.rate for job in jobs if job.held_out == (0, 1)} == {3e-4, 1e-3, 3e-3, 1e-2, 3e-2}
    assert {job.rate for job in jobs if job.held_out == (0,)} == {1e-3}
    assert {job.rate for job in jobs if job.held_out == (1,)} == {3e-2}


def small_clips() -> Clips:
    names = ("left", "square", "star", "up")
    groups = tuple(group for groups in FOLDS["gestures"] for group in groups)
    count = len(groups) * len(names)
    pixels = torch.randint(256, (count, 8, 3, 16, 16), dtype=torch.uint8)
    labels = torch.arange(count) % len(names)
    of_clips = tuple(group for group in groups for _ in names)
    return Clips("gestures", pixels, labels, of_clips, names)


def test_both_directions_of_a_clip_are_in_one_fold_and_ambiguous_labels_are_left_out() -> None:
    clips = small_clips()
    test = direction_test(clips)
    assert test.class_count == 4, "square and star, as they are and backwards"
    half = len(test.labels) // 2
    assert torch.equal(test.clips[:half], test.clips[half:])
    assert torch.equal(test.folds[:half], test.folds[half:])
    assert torch.equal(test.labels[:half] + 1, test.labels[half:])
    assert (~test.backwards[:half]).all()
    assert test.backwards[half:].all()
    for one in (test, labels_test(clips)):
        folds = dict(zip(one.groups, one.folds.tolist(), strict=True))
        assert [folds[group] for group in one.groups] == one.folds.tolist()
        assert {*folds.values()} == {0, 1, 2, 3, 4}


def test_an_answer_within_a_pair_compares_the_two_directions_of_the_true_label() -> None:
    test = direction_test(small_clips())
    sample = int((test.labels == 2).nonzero()[0])
    logits = torch.tensor([[9.0, 0.0, 1.0, 0.0], [9.0, 0.0, 1.0, 2.0], [9.0, 0.0, 1.0, 1.0]])
    right = test.is_right(logits, torch.tensor([sample] * 3))
    assert right.tolist() == [True, False, False]


def test_the_upper_blocks_take_the_weights_of_the_last_blocks() -> None:
    assert _renumbered("blocks.8.attn.qkv.weight", 8) == "blocks.0.attn.qkv.weight"
    assert _renumbered("blocks.3.norm1.bias", 8) == "blocks.-5.norm1.bias", "no tensor of the tower"
    assert _renumbered("norm.weight", 8) == "norm.weight"


def test_the_upper_blocks_on_kept_tokens_are_the_whole_tower(tmp_path: Path) -> None:
    torch.manual_seed(0)
    tower = timm.create_model(TOWER, num_classes=0, img_size=28, pretrained=False)
    for weight in tower.parameters():  # layer scales and class tokens start near zero
        torch.nn.init.normal_(weight, std=0.05)
    save_file(tower.state_dict(), tmp_path / "tower.safetensors")
    test, cpu = labels_test(small_clips()), torch.device("cpu")
    features = []
    for blocks in (4, 12):
        regime = Regime(tmp_path / "tower.safetensors", blocks, 28, 1, cpu)
        model = regime.model("no time", test.class_count).eval()
        with torch.no_grad():
            features.append(model.features(Inputs(test, regime).testing(torch.arange(3))))
    distance = (features[0] - features[1]).norm() / features[1].norm()
    assert distance < 0.02, "the kept tokens are bfloat16"
