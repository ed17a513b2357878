"""Do clips of the crossing curve hide the direction from readers of frames without their order?"""

from __future__ import annotations

import math
import re
from dataclasses import asdict
from fractions import Fraction
from typing import Any

import pytest
import torch

from benchmarks import crossing as script
from benchmarks import crossing_clips
from benchmarks.crossing_clips import (
    DIRECTIONS,
    FRAMES,
    GRID,
    crossing_test,
    moving_right,
    shifted,
    textures,
)
from benchmarks.evidence_training import ROWS
from zeroi2v import create_model
from zeroi2v.data.synthetic import REVERSE
from zeroi2v.method.relocate import channel_offsets

EVERY = [(size, camera) for size in script.DISPLACEMENTS for camera in script.CAMERA]


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_the_amplitude_of_a_texture_falls_as_one_over_the_frequency() -> None:
    made = textures(32, (96, 128), seeded())
    power = torch.fft.rfft2(made).abs().square().mean((0, 1))
    frequency = torch.hypot(torch.fft.fftfreq(96)[:, None], torch.fft.rfftfreq(128))
    means = []
    for low in (1 / 32, 1 / 16, 1 / 8, 1 / 4):
        band = (frequency >= low) & (frequency < 1.1 * low)
        means.append(power[band].mean().log2())
    slopes = torch.stack(means).diff()  # for each doubling of the frequency
    torch.testing.assert_close(slopes / 2, torch.full((3,), -1.0), rtol=0, atol=0.1)


def test_a_shift_by_whole_pixels_is_a_roll_and_two_halves_are_a_whole() -> None:
    pictures = textures(2, (24, 31), seeded())
    by = torch.tensor([[[5.0, -3.0], [-31.0, 24.0]]]).repeat(2, 1, 1)
    moved = shifted(pictures, by)
    torch.testing.assert_close(moved[:, 0], pictures.roll((-3, 5), (-2, -1)), rtol=0, atol=1e-4)
    torch.testing.assert_close(moved[:, 1], pictures, rtol=0, atol=1e-4)
    once = shifted(pictures[..., :23, :], torch.full((2, 1, 2), 0.5))[:, 0]  # odd sides: no Nyquist
    twice = shifted(once, torch.full((2, 1, 2), 0.5))[:, 0]
    whole = pictures[..., :23, :].roll((1, 1), (-2, -1))
    torch.testing.assert_close(twice, whole, rtol=0, atol=1e-4)


class EnoughSeen(Exception):
    """Raised where the places are known and the drawing would begin."""


def spied_places(
    monkeypatch: pytest.MonkeyPatch, count: int, displacement: float, camera: bool
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, tuple[int, int]]:
    """Places of the first and of the second object, moves of the scene, and the torus."""
    seen: list[tuple[torch.Tensor, torch.Tensor, torch.Tensor, tuple[int, int]]] = []
    second = crossing_clips._second

    def spying(
        first: torch.Tensor,
        scene: torch.Tensor,
        torus: tuple[int, int],
        patch: int,
        generator: torch.Generator,
    ) -> torch.Tensor:
        places = second(first, scene, torus, patch, generator)
        seen.append((first, places, scene.expand_as(first), torus))
        raise EnoughSeen

    monkeypatch.setattr(crossing_clips, "_second", spying)
    with pytest.raises(EnoughSeen):
        moving_right(count, seeded(), displacement, camera, 4)
    return seen[0]


@pytest.mark.parametrize(("displacement", "camera"), EVERY)
def test_the_first_object_moves_in_the_scene_by_the_displacement_and_never_seems_to_jump(
    displacement: float, camera: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, _, scene, (_, width) = spied_places(monkeypatch, 256, displacement, camera)
    steps = (first - scene).diff(dim=1)
    wanted = torch.tensor([4 * displacement, 0.0]).expand_as(steps)
    torch.testing.assert_close(steps, wanted, rtol=0, atol=1e-4)
    in_picture = first.diff(dim=1)[..., 0]
    # the other way round the torus is longer than the picture
    assert (width - in_picture.abs()).min() >= 4 * GRID - 1e-3
    right = (in_picture > 0).float().mean()
    if camera:
        assert 0.65 < right < 0.85, "the motion in the picture alone"
        assert scene.diff(dim=1).abs().max() > 2 * displacement
    else:
        assert right == 1
        assert (scene == 0).all()


@pytest.mark.parametrize(("displacement", "camera"), EVERY)
def test_every_place_is_equally_likely_at_every_time(
    displacement: float, camera: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So a single frame tells neither the sign of the motion nor its own place in the clip."""
    places = spied_places(monkeypatch, 4000, displacement, camera)
    for objects in places[:2]:
        shares = (objects[..., 0] / places[3][1]) % 1  # (n, T)
        counts = torch.stack([torch.histc(shares[:, t], 8, 0, 1) for t in range(FRAMES)])
        squares = ((counts - 500) ** 2 / 500).sum(1)  # chi square, 7 degrees of freedom
        assert squares.max() < 29, "passed by chance with 99.99 %"


def test_the_second_object_gives_way_when_the_first_passes_whatever_the_direction(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    first, second, scene, (_, width) = spied_places(monkeypatch, 512, 1.0, True)
    distance = first[..., 0] - second[..., 0]
    distance = (distance - width * torch.round(distance / width)).abs()
    aside = (second - first)[..., 1].abs()
    near, far = distance < 4, distance > 4 * 4
    assert aside[near].mean() > aside[far].mean() + 4, "at least a patch of 4 pixels"
    at_rest = (second - scene)[..., 0]
    torch.testing.assert_close(at_rest, at_rest[:, :1].expand_as(at_rest), rtol=0, atol=1e-3)


@pytest.mark.parametrize("camera", script.CAMERA)
def test_a_shuffled_clip_and_its_reversal_are_the_same_frames_with_opposite_labels(
    camera: bool,
) -> None:
    test = crossing_test(6, 2, displacement=1.0, camera=camera, patch=4)
    assert test.pixels.shape == (8, FRAMES, 3, 4 * GRID, 4 * GRID)
    half = len(test.labels) // 2
    assert torch.equal(test.clips[:half], test.clips[half:])
    assert torch.equal(test.folds[:half], test.folds[half:]), "no clip is in both parts"
    assert torch.equal(test.backwards, torch.arange(2 * half) >= half)
    for label, opposite in zip(test.labels[:half], test.labels[half:], strict=True):
        assert REVERSE[DIRECTIONS[label]] == DIRECTIONS[opposite]
    assert test.labels.bincount().tolist() == [4] * len(DIRECTIONS)
    # A reader of frames in any order has one answer for both; so half of its answers are right.
    bag = test.pixels.float().mean((1, 3, 4))[test.clips]
    logits = bag @ torch.randn(3, len(DIRECTIONS), generator=seeded())
    right = test.is_right(logits, torch.arange(2 * half))
    assert right.float().mean() == 0.5


def centre_of_change(clip: torch.Tensor, channel: int) -> torch.Tensor:
    """How far a single bright blob moves from frame to frame, (T - 1, 2)."""
    grid = torch.arange(clip.shape[-1]).float()
    light = clip[:, channel].float()
    light = light * (light > 128)
    x = (light.sum(1) * grid).sum(1) / light.sum((1, 2))
    y = (light.sum(2) * grid).sum(1) / light.sum((1, 2))
    return torch.stack([x, y], 1).diff(dim=0)


@pytest.mark.parametrize("label", range(len(DIRECTIONS)))
def test_a_clip_moves_the_way_that_its_label_says(
    label: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    blob = torch.zeros(1, FRAMES, 3, 32, 32, dtype=torch.uint8)
    for frame in range(FRAMES):
        blob[0, frame, :, 12:18, 4 + 5 * frame : 8 + 5 * frame] = 255  # moves to the right
    monkeypatch.setattr(crossing_clips, "moving_right", lambda *_: blob)
    made = crossing_clips.made(
        torch.tensor([label]), seeded(), displacement=1.0, camera=False, patch=4
    )
    moved = centre_of_change(made[0], 0)
    wanted = {"left": (-5, 0), "right": (5, 0), "up": (0, -5), "down": (0, 5)}[DIRECTIONS[label]]
    torch.testing.assert_close(moved, torch.tensor(wanted).float().expand_as(moved))


@pytest.mark.parametrize("budget", script.BUDGETS, ids=lambda budget: budget.name)
def test_operators_move_equal_shares_of_the_channels(budget: script.Budget) -> None:
    for operator in script.OPERATORS[:3]:
        model = create_model(
            budget.name,
            num_classes=4,
            frames=FRAMES,
            pretrained=False,
            tower_options={"img_size": GRID * budget.patch, "depth": 1},
            **ROWS[budget.rows[operator]],
        )
        block = model.plan.blocks[0]
        offsets = channel_offsets(block.block.layout, block.moves)
        for offset in (-1, 1):  # a channel shift rounds down to whole channels
            share = (offsets == offset).double().mean().item()
            assert share == pytest.approx(Fraction(budget.share) / 2, abs=0.011)


def line(job: script.Job, right: int) -> dict[str, Any]:
    answers = "1" * right + "0" * (100 - right)
    fold = {"right": answers, "probed": "10" * 50, "loss": 1.0}
    return {
        "job": asdict(job),
        "seconds": 50.0,
        "folds": {"1": fold},
        "date": "2026-01-01",
        "machine": {"processor": "P"},
        "versions": {"torch": "T"},
    }


def measured(lead: dict[tuple[float, bool], int], seeds: int = 3) -> list[dict[str, Any]]:
    """Results in which HR KV leads shift KV by so many points."""
    return [
        line(job, 60 + job.seed + lead[job.displacement, job.camera] * (job.operator == "HR KV"))
        for budget in script.BUDGETS
        for job in script.jobs(budget, range(seeds))
    ]


def test_the_plan_is_done_seed_by_seed_and_a_finished_training_is_not_repeated() -> None:
    budget = script.BUDGETS[0]
    planned = script.jobs(budget, range(3))
    assert len(planned) == 3 * 2 * 4 * 3
    assert len({*planned}) == len(planned)
    assert [job.seed for job in planned] == sorted(job.seed for job in planned)
    assert [script.Job.of(line(job, 50)) for job in planned] == planned
    assert not script.results_of(budget, [line(job, 50) for job in planned[:23]])
    some = script.results_of(budget, [line(job, 50) for job in planned[:30]])
    assert {len(runs) for runs in some.values()} == {1}, "only seeds that all rows have"


@pytest.mark.parametrize(
    ("small", "large", "verdict"),
    [
        (-5, 5, "Both came out"),
        (5, -5, "Neither came out"),
        (-5, -5, "Only a part came out with every seed, the first"),
        (5, 5, "Only a part came out with every seed, the second"),
    ],
)
def test_the_page_says_which_part_of_the_hypothesis_came_out(
    small: int, large: int, verdict: str
) -> None:
    lead = {(size, camera): large if size == 4.0 else small for size, camera in EVERY}
    text = re.sub(r"\s+", " ", script.page(measured(lead)))
    assert text.count(verdict) == 2, "for each tower"
    assert f"{small:+.1f} ({small:+.1f} to {small:+.1f})" in text
    assert math.isclose(script.accuracy(measured(lead)[0], "probed"), 0.5)


def test_without_results_the_page_says_so_and_one_seed_says_nothing_about_differences() -> None:
    assert script.page([]).count("Not measured yet") == 2
    lead = dict.fromkeys(EVERY, 5)
    assert script.page(measured(lead, seeds=1)).count("One seed says nothing") == 2
