"""How does a configuration become a model? The tower is had, the plan is made, and the model attaches itself to the tower."""

from __future__ import annotations

import dataclasses
import logging
import os
from collections.abc import Mapping, Sequence
from typing import Any

from zeroi2v.config import ClipConfig, ModelConfig, ViewsConfig
from zeroi2v.method.heads import Heads
from zeroi2v.models.plan import resolve, strategy_of
from zeroi2v.models.spec import numbered_labels
from zeroi2v.models.towers import open_tower
from zeroi2v.models.video import VideoClassifier
from zeroi2v.recipes import from_dict

logger = logging.getLogger(__name__)


def create_model(
    tower: str,
    *,
    num_classes: int,
    frames: int = 8,
    heads: Heads = None,
    operator: str = "stdha",
    strategy: str = "zeroi2v",
    pretrained: bool = False,
    weights: str | os.PathLike[str] | None = None,
    tower_options: Mapping[str, Any] | None = None,
    **options: Any,
) -> VideoClassifier:
    """Turn an image tower into a video classifier. Attaching changes no output, exactly, where all offsets are 0.

    `tower` is one of `supported_towers()` or, with a warning that names the blocks that stay spatial, of
    `partly_covered_towers()`. `weights` is a file, or a folder with one file, that holds the weights of the tower as timm,
    OpenAI CLIP, open_clip or transformers write them. `heads`: see `zeroi2v.method.heads.parse_heads`. `operator`, `ratio`:
    a row of Table 1a. `strategy`, `sites`: a row of Table 2. `tubelet`: so many neighbouring frames make one picture (Swin
    in Table 11: 2); offsets and heads=None then count the pictures. `options` are the other fields of `ModelConfig`.

    ConfigError, HeadsError, TowerError or CheckpointError names the setting or the file that is wrong.
    """
    settings = {
        "tower": tower,
        "heads": heads,
        "operator": operator,
        "strategy": strategy,
        "pretrained": pretrained,
        "weights": None if weights is None else os.fspath(weights),
        "tower_options": dict(tower_options or {}),
    }
    config = from_dict(ModelConfig, {**settings, **options})
    clip = ClipConfig(frames=frames)
    return build_model(config, labels=numbered_labels(num_classes), clip=clip)


def build_model(
    config: ModelConfig,
    *,
    labels: Sequence[str],
    clip: ClipConfig,
    views: ViewsConfig | None = None,
    multi_label: bool = False,
) -> VideoClassifier:
    """A model from a checked configuration, for clips cut as `clip` says and classes of these names."""
    strategy_of(config)  # a wrong name is said before any weights are fetched
    tower, config = open_tower(config)
    plan = resolve(config, tower, frames=clip.frames, num_classes=len(labels))
    if spatial := plan.tower.spatial_blocks:
        logger.warning(
            "%s is partly covered: %d of its %d attention blocks have no heads that can be moved and stay spatial: %s",
            config.tower,
            len(spatial),
            len(spatial) + len(plan.blocks),
            ", ".join(spatial),
        )
    model = VideoClassifier(tower, plan)
    model.spec = dataclasses.replace(
        model.spec,
        labels=tuple(labels),
        clip=clip,
        views=views or ViewsConfig(),
        multi_label=multi_label,
    )
    return model
