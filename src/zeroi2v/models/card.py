"""What does the card of a saved model say?

The card tells how the model was made, what the model takes, and how well the model did. The card is
the README.md of the folder, which the Hub shows.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Final

from huggingface_hub import ModelCard, ModelCardData

from zeroi2v.config import ClipConfig
from zeroi2v.errors import how_many
from zeroi2v.method.heads import HeadLayout, shares
from zeroi2v.method.strategies import STRATEGIES
from zeroi2v.models.spec import Spec

PAPER: Final = "https://arxiv.org/abs/2310.01324"
SHOWN_LABELS: Final = 50
TEMPLATE: Final = Path(__file__).with_name("card.md")


@dataclass(frozen=True)
class CardFacts:
    """What a model card says of a model beside its `Spec`."""

    parameters: int  # how many
    trained: int  # how many of the parameters train
    heads: tuple[HeadLayout, ...]  # the layout of each block
    spatial_blocks: tuple[str, ...]  # paths of the attention modules that stay spatial
    holds_tower: bool  # whether the folder holds the weights of the whole tower


def model_card(spec: Spec, facts: CardFacts) -> str:
    """The model card in Markdown, with a head in YAML for the Hub."""
    strategy = spec.model.strategy
    is_peer = STRATEGIES[strategy].peer is not None
    card = ModelCard.from_template(
        ModelCardData(
            library_name="zeroi2v",
            pipeline_tag="video-classification",
            tags=["zeroi2v", "video-classification"],
        ),
        template_str=TEMPLATE.read_text(encoding="utf-8"),
        tower=spec.model.tower,
        class_count=how_many(len(spec.labels), "class", "classes"),
        method=f"strategy {strategy}" if is_peer else f"[ZeroI2V]({PAPER})",
        facts=_facts(spec, facts),
        figures=_figures(spec.results),
        labels=_labels(spec.labels),
    )
    return f"{card}\n"


def _facts(spec: Spec, facts: CardFacts) -> dict[str, str]:
    """The rows of a table that says how the model was made and what it takes: {name: text}."""
    config, clip, views, size = spec.model, spec.clip, spec.views, spec.image_size
    holds_tower = facts.holds_tower
    tower_weights = "in this folder" if holds_tower else "fetched by the name of the tower"
    state = f"adapted: {facts.trained:,} of them trained"
    if spec.merged:
        state = "merged: plain image transformer weights, no adapters"
    scores = "softmax, a video has one label"
    if spec.multi_label:
        scores = "sigmoid, a video may have several labels"
    if spec.directions:
        scores += "; clips are judged forwards and backwards, each frame blurred at random"
    rows = {
        "tower": f"`{config.tower}`, its weights {tower_weights}",
        "strategy": config.strategy,
        "operator": config.operator
        + ("" if config.ratio is None else f", ratio {config.ratio:.4g}"),
        "temporal heads": temporal_heads(facts.heads),
        "parameters": f"{facts.parameters:,} ({state})",
        "input": f"{how_many(clip.frames, 'frame')} of {size} x {size} pixels, {sampling(clip)}",
        "normalisation": f"mean {rounded(spec.mean)}, standard deviation {rounded(spec.std)}, "
        "for pixels of 0..1",
        "views in evaluation": f"{how_many(clip.frames, 'frame')} x "
        f"{how_many(views.crops, 'crop')} x {how_many(views.clips, 'clip')}",
        "scores": scores,
    }
    if facts.spatial_blocks:
        names = ", ".join(f"`{name}`" for name in facts.spatial_blocks)
        rows["attention that stays spatial"] = names
    return rows


def _figures(results: Mapping[str, float]) -> dict[str, str]:
    """The rows of a table of figures: {name: text}. A row says so if there are no figures."""
    if not results or results.get("epoch") == 0:
        return {"figures": "none; the model was not evaluated when it was saved"}
    return {name: f"{value:.4g}" for name, value in results.items()}


def _labels(labels: tuple[str, ...]) -> str:
    """The first labels, and the number of the others."""
    text = ", ".join(labels[:SHOWN_LABELS])
    more = len(labels) - SHOWN_LABELS
    return text if more <= 0 else f"{text} and {more} more (`config.json` has all)"


def temporal_heads(layouts: Sequence[HeadLayout]) -> str:
    """The different head layouts of the blocks, in words; "none" if every head is spatial."""
    if all(head == 0 for layout in layouts for head in layout):
        return "none"
    texts = ", ".join(dict.fromkeys(offsets(layout) for layout in layouts))
    return f"{texts}, written {{offset*number of heads}}; a head with offset 0 is spatial"


def offsets(layout: HeadLayout) -> str:
    """A head layout as the paper writes it, offset*number of heads: {-1*1, 1*1, 0*10}."""
    counts: dict[int, Fraction] = {}
    for head in layout:
        for offset, share in shares(head):
            counts[offset] = counts.get(offset, Fraction(0)) + share
    return "{" + ", ".join(f"{offset}*{count}" for offset, count in counts.items()) + "}"


def sampling(clip: ClipConfig) -> str:
    """How a clip is cut out of a video, in words."""
    if clip.sampling == "segment":
        return f"one frame from each of {how_many(clip.frames, 'equal segment')} of the video"
    return f"{clip.stride} video frames apart"


def rounded(values: tuple[float, ...]) -> str:
    """Numbers with four significant digits, in one line."""
    return ", ".join(f"{value:.4g}" for value in values)
