"""What is drawn of a map?"""

from __future__ import annotations

import pytest
import torch

from zeroi2v.errors import ConfigError
from zeroi2v.explain.overlay import colour, enlarge, outline, overlay


def test_a_frame_is_enlarged_a_whole_number_of_times() -> None:
    assert enlarge(torch.zeros(3, 48, 64, dtype=torch.uint8)).shape == (3, 192, 256)
    frame = torch.randint(
        0, 256, (3, 200, 300), generator=torch.Generator().manual_seed(0), dtype=torch.uint8
    )
    assert torch.equal(enlarge(frame), frame), "a large one is left as it is"


def test_a_heat_map_colours_the_patches_that_it_names() -> None:
    frame = torch.full((3, 48, 48), 128, dtype=torch.uint8)
    heat = torch.zeros(6, 6)
    heat[2, 3] = 0.1
    drawn = overlay(frame, heat)
    assert drawn.dtype == torch.uint8
    assert drawn.shape == (3, 192, 192)
    chroma = drawn.amax(0).int() - drawn.amin(0)
    expected = torch.zeros(192, 192, dtype=torch.bool)
    expected[64:96, 96:128] = True
    assert torch.equal(chroma > 20, expected)
    assert torch.equal(drawn, overlay(frame, heat * 7)), "only the proportions matter"
    assert torch.isfinite(overlay(frame, torch.zeros(6, 6)).float()).all()
    marked = outline(drawn, (5, 0), 6)
    changed = (marked != drawn).any(0)
    assert changed[160:, :32].any()
    assert not changed[:160].any()
    assert not changed[:, 32:].any()
    with pytest.raises(ConfigError, match=r"within 0 to 5, got \(6, 0\)"):
        outline(frame, (6, 0), 6)


def test_the_colours_grow_evenly_lighter() -> None:
    linear = colour(torch.linspace(0, 1, 6)[None]).double()[:, 0].pow(2.2)
    lightness = (
        116 * (torch.tensor([0.2126, 0.7152, 0.0722]).double() @ linear).clamp(min=1e-9).pow(1 / 3)
        - 16
    )
    steps = lightness.clamp(min=0).diff()
    assert steps.min() > 0.6 * steps.mean()
    assert steps.max() < 1.6 * steps.mean()
