"""How does a configuration become a model? Open the tower, make the plan, make the model."""

from __future__ import annotations

import dataclasses
import logging
import os
from collections.abc import Mapping, Sequence
from typing import Any

from zeroi2v.config import ClipConfig, ModelConfig, ViewsConfig
from zeroi2v.method.heads import Heads
from zeroi2v.models.plan import Plan, strategy_of
from zeroi2v.models.spec import numbered_labels
from zeroi2v.models.survey import survey
from zeroi2v.models.towers import TowerSource
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
    """Turn an image tower into a video classifier.

    Before training, and where all offsets are 0, the model's features of a frame are exactly the
    tower's. But EVL and the published ST-Adapter have one feature for all frames of a clip.

    - `tower`: a name of `supported_towers()`, or of `partly_covered_towers()`; for the latter a
      warning names the blocks that stay spatial.
    - `heads`: the head layout; see `zeroi2v.method.heads.parse_heads`.
    - `operator`, and the option `ratio`: a row of Table 1a; or "hr_v" or "shift_v", which move the
      values alone.
    - `strategy`, and the option `sites`: a row of Table 2, or a peer.
    - `pretrained`: fetch timm's weights of the tower.
    - `weights`: a file, or a folder with one file, that holds weights of the tower in the layout of
      timm, OpenAI CLIP, open_clip or transformers. Position embeddings of another image size are
      resized as timm resizes pretrained ones.
    - `tower_options`: options that timm takes, such as `img_size`.
    - `tubelet`, an option: the number of neighbouring frames that make one picture (Swin in
      Table 11: 2). Offsets then count pictures, and heads=None takes the layout for the
      number of pictures.
    - `options`: the other fields of `ModelConfig`.

    ConfigError, HeadsError, TowerError or CheckpointError names the setting or the file that is
    wrong.
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
    directions: bool = False,
) -> VideoClassifier:
    """The model of a configuration, for classes of these names and for clips of this kind."""
    strategy_of(config)  # refuses a wrong strategy before any weights are fetched
    source = TowerSource(
        name=config.tower,
        pretrained=config.pretrained,
        weights=config.weights,
        options=config.tower_options,
        tubelet=config.tubelet,
    )
    tower = source.open()
    if config.weights is not None:
        # A saved model brings these weights along, so its configuration names no weights.
        config = dataclasses.replace(config, pretrained=False, weights=None)
    plan = Plan(config, survey(tower, config.tower), clip.frames, num_classes=len(labels))
    model = VideoClassifier(tower, plan)

    _warn_of_spatial_blocks(model)
    model.spec = dataclasses.replace(
        model.spec,
        labels=tuple(labels),
        clip=clip,
        views=views or ViewsConfig(),
        multi_label=multi_label,
        directions=directions,
    )
    return model


def _warn_of_spatial_blocks(model: VideoClassifier) -> None:
    """Log which attention blocks of a partly covered tower stay spatial."""
    spatial = model.plan.tower.spatial_blocks
    if spatial:
        logger.warning(
            "%s is partly covered: heads cannot be temporal in %d of its %d attention blocks, "
            "which stay spatial: %s",
            model.plan.config.tower,
            len(spatial),
            len(spatial) + len(model.plan.blocks),
            ", ".join(spatial),
        )
