"""Which labels does a left-right flip exchange? Some data sets know pairs of such labels."""

from __future__ import annotations

from dataclasses import replace

from zeroi2v.config import Recipe
from zeroi2v.data.datasets import VideoDataset
from zeroi2v.files import json_text
from zeroi2v.log import Log


def with_flip_pairs(recipe: Recipe, dataset: VideoDataset, log: Log) -> Recipe:
    """The recipe with the pairs of the data set, unless the recipe names pairs itself."""
    if not dataset.flip_pairs or recipe.pixels.flip_pairs:
        return recipe
    log.say(f"{dataset.format}: a flip exchanges the labels {json_text(dataset.flip_pairs)}")
    return replace(recipe, pixels=replace(recipe.pixels, flip_pairs=dataset.flip_pairs))
