"""Do the rows of the ablations say what the paper's tables say, and does the page count right?"""

from __future__ import annotations

import dataclasses
import json
import statistics
from fractions import Fraction
from typing import Any

import pytest
import torch

from benchmarks import ablations as script
from zeroi2v.config import Recipe
from zeroi2v.experiments.compare import Row, plan_trials
from zeroi2v.method.heads import shares, temporal_receptive_field
from zeroi2v.method.relocate import FusedLayout, channel_offsets
from zeroi2v.models.build import build_model
from zeroi2v.models.spec import numbered_labels
from zeroi2v.models.video import VideoClassifier

ROWS = [Row(name, settings) for name, settings in script.ROWS.items()]
RECIPES: dict[str, Recipe] = {
    trial.row: trial.recipe for trial in plan_trials(ROWS, script.budget(), [0])
}


def built(name: str) -> VideoClassifier:
    recipe = RECIPES[name]
    with torch.device("meta"):
        return build_model(
            dataclasses.replace(recipe.model, pretrained=False),
            labels=numbered_labels(8),
            clip=recipe.clip,
        )


def rows_of(table: str) -> list[tuple[str, VideoClassifier]]:
    return [
        (label, built(name))
        for title, lines in script.TABLES.items()
        if table in title
        for label, name, _ in lines
    ]


def test_a_row_that_stands_in_several_tables_is_trained_once() -> None:
    settings = [
        json.dumps([recipe.model.__dict__, recipe.clip.__dict__], default=str)
        for recipe in RECIPES.values()
    ]
    assert len(set(settings)) == len(settings)
    named = [name for lines in script.TABLES.values() for _, name, _ in lines]
    assert set(script.ROWS) == {*named, "no-time"}
    assert named.count("base") == 5
    assert {name for pairs in script.QUESTIONS.values() for pair in pairs for name in pair} <= set(
        script.ROWS
    )


def test_a_row_has_the_printed_figure_of_its_name_in_every_table() -> None:
    for lines in script.TABLES.values():
        assert all(script.PRINTED[name] == printed for _, name, printed in lines)


def temporal_share(model: VideoClassifier) -> Fraction:
    """How many of a block's heads are temporal, halves counted."""
    (layout,) = set(model.heads)
    return sum((share for head in layout for offset, share in shares(head) if offset), Fraction(0))


def test_head_counts_of_table_1b() -> None:
    assert [(label, temporal_share(model)) for label, model in rows_of("1b")] == [
        (f"k = {count}", Fraction(count)) for count in (1, 2, 4, 6)
    ]


def test_receptive_fields_of_table_1c() -> None:
    fields = [(label, temporal_receptive_field(model.heads[0])) for label, model in rows_of("1c")]
    assert fields == [(f"{count} frames", count) for count in (2, 3, 4, 5, 3, 4, 5, 6, 7)]


def test_channels_of_table_1a() -> None:
    for title, name in (("1/6", "base"), ("1/4", "hr-kv-quarter")):
        assert temporal_share(built(name)) == 12 * Fraction(title)
    for name in ("shift-qkv-quarter", "shift-kv-quarter"):
        model = built(name)
        (moves,) = {block.moves for block in model.plan.blocks}
        offsets = channel_offsets(FusedLayout(12, 8, 8), moves)
        counts = [(offsets == offset).sum().item() for offset in (-1, 0, 1)]
        assert counts == [12, 72, 12]  # of 96 channels an eighth back, an eighth ahead
    moving = {
        name: recipe.model for name, recipe in RECIPES.items() if recipe.model.ratio is not None
    }
    assert {
        name: (model.operator, Fraction(model.ratio or 0).limit_denominator(99))
        for name, model in moving.items()
    } == {
        "cls-shift": ("cls_shift", Fraction(1, 6)),
        "shift-qkv-quarter": ("shift_qkv", Fraction(1, 4)),
        "hr-qkv": ("hr_qkv", Fraction(1, 6)),
        "shift-kv-quarter": ("shift_kv", Fraction(1, 4)),
        "hr-kv-quarter": ("stdha", Fraction(1, 4)),
    }


def test_widths_of_table_2_and_8_are_those_of_the_paper_at_this_width() -> None:
    for label, model in [*rows_of("Table 2"), *rows_of("Table 8")]:
        width = (
            label.rpartition(", ")[2]
            if ", " in label
            else str(round(768 * float(label)))
            if label[0] == "0"
            else ""
        )
        if not width:
            continue
        adapters: Any = model.adapters
        widths = {
            parameter.shape[0]
            for adapter in adapters[0].values()
            for key, parameter in adapter.named_parameters()
            if key == "down.weight"
        }
        assert widths == {int(width) * 96 // 768}, label


def scores(**better: float) -> dict[str, list[float]]:
    """Every row at 50 %, with two seeds, but for those named."""
    return {name: [0.5 + better.get(name.replace("-", "_"), 0.0)] * 2 for name in script.ROWS}


def test_a_difference_is_taken_seed_by_seed_and_its_sign_told() -> None:
    table = scores()
    table["base"], table["hr-qkv"] = [0.6, 0.7], [0.5, 0.8]
    table["cls-shift"] = [0.5, 0.5]
    assert script.difference(table, [("base", "hr-qkv")]) == pytest.approx([10, -10])
    lines = {line.split(" | ")[0].strip("| "): line for line in script.answers(table)}
    assert lines["STDHA (heads of K and V) against HR QKV (heads of Q too)"].endswith(
        "| +10.0, -10.0 | +0.0 (-127.1 to +127.1) | +1.2 | the seeds disagree |"
    )
    assert (
        "| +10.0, +20.0 | +15.0 (-48.5 to +78.5) | +4.6 | the first with every seed |"
        in lines["STDHA against [cls] shift"]
    )


def test_orders_are_counted_pair_by_pair() -> None:
    title = next(title for title in script.TABLES if "1b" in title)  # 64.8, 66.0, 65.6, 65.6
    text = "\n".join(script.section(title, script.TABLES[title], scores(heads_1=0.1, base=0.2)))
    # As printed: k = 2 above all, 3 pairs. The other way: k = 1 above 4 and 6. Alike: 4 and 6.
    assert "3 pairs are ordered as in the paper with every seed, 2 pairs the other way" in text
    assert "and in 0 pairs the seeds disagree" in text
    assert "| k = 1 | k = 4; k = 6 |" in text
    assert "| k = 2 | 66.0 | 1 | 70.0 (70.0 to 70.0) | 1 |" in text


def test_the_page_is_what_the_result_gives() -> None:
    result = json.loads(script.RESULT.read_text(encoding="utf-8")) if script.RESULT.exists() else {}
    assert script.PAGE.read_text(encoding="utf-8") == script.page(result)


def test_a_page_of_unfinished_rows_says_so() -> None:
    result = {"seeds": [0, 1], "rows": {"base": {"scores": [0.5]}}}
    assert "Not measured yet." in script.page(result)


def test_the_readme_says_what_the_result_gives() -> None:
    result = json.loads(script.RESULT.read_text(encoding="utf-8"))
    scores = {name: row["scores"] for name, row in result["rows"].items()}
    differences = {
        question: script.difference(scores, pairs) for question, pairs in script.QUESTIONS.items()
    }
    readme = " ".join((script.PAGE.parents[1] / "README.md").read_text(encoding="utf-8").split())
    against_none = [
        statistics.mean(points)
        for question, points in differences.items()
        if "against no operator" in question
    ]
    assert f"by {min(against_none):.0f} to {max(against_none):.0f} points" in readme
    linear = script.interval(
        differences["linear adapters against GELU adapters, mean of four pairs"]
    )
    assert linear.replace("(", "points, 95 %: ") in readme
    shift = statistics.mean(differences["STDHA against channel shift of K and V, both at 1/4"])
    assert f"channel shift is {-shift:.0f} points better than STDHA" in readme
    low, high = bounds(differences["STDHA against channel shift of K and V, both at 1/4"])
    assert f"better with every seed (95 %: {-high:+.1f} to {-low:+.1f})" in readme
    for question, name in (
        ("STDHA against [cls] shift", "[cls] shift"),
        ("STDHA (heads of K and V) against HR QKV (heads of Q too)", "HR QKV"),
    ):
        low, high = bounds(differences[question])
        assert low <= 0 <= high
        assert script.same_sign(differences[question]) == 0, "the seeds disagree"
        mean = statistics.mean(differences[question])
        text = f"STDHA against {name}: {mean:.1f} points (95 %: {low:+.1f} to {high:+.1f})"
        assert text in readme
    rows = {label: name for table in script.TABLES.values() for label, name, _ in table}
    linear_rows = scores[rows["linear adapter, four sites, 192"]]
    for label in ("LoRA, Q K V O, 192", "only temporal heads"):
        better = scores[rows[label]]
        assert f"({100 * statistics.mean(better):.1f} %" in readme
        assert all(one > other for one, other in zip(better, linear_rows, strict=True))
    assert f"at four sites ({100 * statistics.mean(linear_rows):.1f} %)" in readme


def test_the_readme_says_which_strategy_compare_found_best() -> None:
    result = script.RESULT.with_name("compare-motion.json")
    rows = {row["row"]: row["scores"] for row in json.loads(result.read_text("utf-8"))["rows"]}
    readme = " ".join((script.PAGE.parents[1] / "README.md").read_text(encoding="utf-8").split())
    lora, linear = (
        " and ".join(f"{100 * score:.1f} %" for score in rows[name]) for name in ("lora", "zeroi2v")
    )
    assert f"LoRA ({lora}) is better than linear adapters ({linear}) with both seeds" in readme
    assert all(one > other for one, other in zip(rows["lora"], rows["zeroi2v"], strict=True))


def bounds(points: list[float]) -> tuple[float, float]:
    """The interval that the page prints."""
    low, high = script.interval(points).rpartition("(")[2].rstrip(")").split(" to ")
    return float(low), float(high)
