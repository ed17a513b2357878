"""Which labels does a left-right flip exchange?

Some data sets know pairs of such labels. Elsewhere the names of the classes may look like pairs.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterable
from dataclasses import replace

from zeroi2v.config import PixelsConfig, Recipe
from zeroi2v.data.datasets import VideoDataset
from zeroi2v.data.mirror_names import mirror_names
from zeroi2v.errors import first_names
from zeroi2v.files import json_text
from zeroi2v.log import Log


def with_flip_pairs(recipe: Recipe, dataset: VideoDataset, log: Log) -> Recipe:
    """The recipe with the pairs of the data set, unless the recipe names pairs itself."""
    if not dataset.flip_pairs or recipe.pixels.flip_pairs:
        return recipe
    log.say(f"{dataset.format}: a flip exchanges the labels {json_text(dataset.flip_pairs)}")
    return replace(recipe, pixels=replace(recipe.pixels, flip_pairs=dataset.flip_pairs))


def point_out_mirror_names(classes: Iterable[str], pixels: PixelsConfig, log: Log) -> None:
    """Say which classes look like mirror images by their names, and which setting suits them.

    A class in `pixels.flip_pairs` is not named. A warning says where a flip makes labels wrong, and
    where `pixels.flip_pairs` has no effect.
    """
    known = {label for pair in pixels.flip_pairs for label in pair}
    if known and not pixels.flip:
        log.say(
            "pixels.flip_pairs has no effect, because no clip is flipped (pixels.flip = 0); "
            "to flip half of the clips: --set flip=0.5"
        )
    names = mirror_names(classes)
    pairs = [pair for pair in names.pairs if known.isdisjoint(pair)]
    alone = [name for name in names.alone if name not in known]
    listed = first_names([" and ".join(map(repr, pair)) for pair in pairs])
    setting = shlex.quote(f"flip_pairs={json_text([*pixels.flip_pairs, *pairs])}")
    if pixels.flip and alone:
        log.warn(
            "a flip mirrors the side that these classes show, and keeps the label: "
            f"{first_names(alone)}; to flip no clip: --set flip=0"
        )
    if pixels.flip and pairs:
        log.warn(
            f"a flip turns these classes into each other, and keeps the label: {listed}; "
            f"to exchange the labels: --set {setting}; to flip no clip: --set flip=0"
        )
    elif pairs and not alone:
        log.say(
            f"classes that look like mirror images: {listed}; no clip is flipped (pixels.flip = 0);"
            f" to flip half of the clips and exchange the labels: --set flip=0.5 --set {setting}"
        )
