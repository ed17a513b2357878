"""What does a saved model's page say? README.md, as the Hub shows it: how it was made, what it takes, how well it did."""

from __future__ import annotations

import json
from dataclasses import dataclass
from fractions import Fraction

from zeroi2v.config import ClipConfig
from zeroi2v.method.heads import HeadLayout, shares
from zeroi2v.method.strategies import STRATEGIES
from zeroi2v.models.spec import Spec

PAPER = "https://arxiv.org/abs/2310.01324"
SHOWN_LABELS = 50


@dataclass(frozen=True)
class CardFacts:
    """What a card says of a model beside its `Spec`."""

    parameters: int
    trained: int  # parameters that train
    heads: tuple[HeadLayout, ...]  # of every attention block
    spatial_blocks: tuple[str, ...]  # paths of the attention modules that stay spatial


def model_card(spec: Spec, facts: CardFacts) -> str:
    """Markdown with the Hub's YAML head. The figures are `spec.results`; without any, the card says that there are none."""
    config = spec.model
    state = (
        "merged: plain image transformer weights, no adapters"
        if spec.merged
        else f"adapted: {facts.trained:,} of them trained"
    )
    rows = {
        "tower": f"`{config.tower}`"
        + ("" if config.pretrained or spec.merged else ", not pretrained"),
        "strategy": config.strategy,
        "operator": config.operator
        + ("" if config.ratio is None else f", ratio {config.ratio:.4g}"),
        "temporal heads": ", ".join(dict.fromkeys(offsets(layout) for layout in facts.heads)),
        "parameters": f"{facts.parameters:,} ({state})",
        "input": f"{spec.clip.frames} frames of {spec.image_size} x {spec.image_size} pixels, {sampling(spec.clip)}",
        "normalisation": f"mean {rounded(spec.mean)}, standard deviation {rounded(spec.std)}, for pixels of 0..1",
        "views in evaluation": f"{spec.clip.frames} frames x {spec.views.crops} crops x {spec.views.clips} clips",
        "scores": "sigmoid, a video may have several labels"
        if spec.multi_label
        else "softmax, a video has one label",
    }
    if spatial := facts.spatial_blocks:
        rows["attention that stays spatial"] = ", ".join(f"`{name}`" for name in spatial)
    measured = {} if spec.results.get("epoch") == 0 else spec.results
    figures = {name: f"{value:.4g}" for name, value in measured.items()} or {
        "none": "not evaluated when it was saved"
    }
    labels = ", ".join(spec.labels[:SHOWN_LABELS])
    if len(spec.labels) > SHOWN_LABELS:
        labels += f" and {len(spec.labels) - SHOWN_LABELS} more (`config.json` has all)"
    method = (
        f"[ZeroI2V]({PAPER})"
        if STRATEGIES[config.strategy].peer is None
        else f"strategy {config.strategy}"
    )
    head = {
        "library_name": "zeroi2v",
        "pipeline_tag": "video-classification",
        "tags": ["zeroi2v", "video-classification"],
    }
    lines = [
        "---",
        *(f"{key}: {json.dumps(value)}" for key, value in head.items()),
        "---",
        "",
        f"# {config.tower} for video, {len(spec.labels)} classes",
        "",
        f"An image transformer adapted to video with {method}, by the library zeroi2v.",
        "",
        "```python",
        "import zeroi2v",
        "",
        'for prediction in zeroi2v.Predictor("this folder, or its name on the Hub").predict("video.mp4"):',
        "    print(prediction.label, prediction.score)",
        "```",
        "",
        "## How it was made",
        "",
        *table(rows),
        "",
        "## How well it did",
        "",
        *table(figures),
        "",
        "## Labels",
        "",
        labels,
        "",
    ]
    return "\n".join(lines)


def table(rows: dict[str, str]) -> list[str]:
    """A Markdown table of two columns without a heading."""
    return ["| | |", "| --- | --- |", *(f"| {key} | {value} |" for key, value in rows.items())]


def offsets(layout: HeadLayout) -> str:
    """A layout as the paper writes it: {-1*1, 1*1, 0*10}."""
    counts: dict[int, Fraction] = {}
    for head in layout:
        for offset, share in shares(head):
            counts[offset] = counts.get(offset, Fraction(0)) + share
    return "{" + ", ".join(f"{offset}*{count}" for offset, count in counts.items()) + "}"


def sampling(clip: ClipConfig) -> str:
    """How a clip is cut out of a video, in words."""
    return (
        "one of each of as many equal segments"
        if clip.sampling == "segment"
        else f"{clip.stride} video frames apart"
    )


def rounded(values: tuple[float, ...]) -> str:
    """Numbers to four digits."""
    return ", ".join(f"{value:.4g}" for value in values)
