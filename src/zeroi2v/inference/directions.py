"""Does a model tell in which direction a clip is played, and what may be claimed from that?

Labels come in pairs (`data/directions.py`): 2k is label k forwards, 2k + 1 is label k backwards.

Shapes: n clips, V views, T frames, K classes.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from random import Random
from typing import Final

import torch
from torch import Tensor

from zeroi2v.errors import how_many
from zeroi2v.inference.linear import linear_reader

FOLDS: Final = 5
FEWEST_PAIRS: Final = 4  # with fewer pairs, guessing is often right everywhere or nowhere


def right_within_pairs(logits: Tensor, labels: Tensor) -> Tensor:
    """Whether each answer is right if only the two directions of the true label compete: (n,).

    1.0: the logit of the label (n,), mean over views of (n, V, K), is above the logit of the same
    label in the other direction. 0.5: both logits are equal.
    """
    means = logits.double().mean(1)
    own, other = (means.gather(1, column[:, None])[:, 0] for column in (labels, labels ^ 1))
    return ((own > other).double() + (own >= other).double()) / 2


def direction_by_sharpness(
    sharpness: Tensor, labels: Tensor, sources: Sequence[Hashable]
) -> float | None:
    """How often a linear reader of T sharpness numbers (n, T) tells the direction of a clip.

    The reader is tested on clips that the fit has not seen: the sources of the clips, their videos,
    are divided into at most `FOLDS` folds. None if there are fewer than two sources.
    """
    numbers = {source: number for number, source in enumerate(dict.fromkeys(sources))}
    if len(numbers) < 2:
        return None
    places = [*range(len(numbers))]
    Random(0).shuffle(places)  # the order of the videos may be the order of the classes
    folds = torch.tensor([places[numbers[source]] % FOLDS for source in sources])
    directions = labels % 2
    right = 0
    for fold in folds.unique():
        asked, known = folds == fold, folds != fold
        logits = linear_reader(sharpness[known], directions[known], sharpness[asked], 2)
        right += int((logits.argmax(1) == directions[asked]).sum())
    return right / len(labels)


def reading(within_pairs: float, sharpness: float | None, pairs: int) -> str:
    """One sentence: what the accuracy within pairs means, and whether it may be claimed.

    `sharpness` is the accuracy of `direction_by_sharpness`, None for one pair. An accuracy counts
    as near 50 % within the distance that guessing, with one guess for each pair, keeps in 19 of 20
    trials.
    """
    margin = min(1.96 * math.sqrt(0.25 / pairs), 0.5)
    if sharpness is None or pairs < FEWEST_PAIRS:
        too_few = how_many(pairs, "pair is", "pairs are")
        claim = f"claim nothing: {too_few} too few; at least {FEWEST_PAIRS} are needed"
    elif abs(sharpness - 0.5) > margin:
        claim = (
            f"claim nothing, because the sharpness of the frames alone tells {sharpness:.1%} of "
            "the directions, so the model may read compression instead of motion"
        )
    elif within_pairs > 0.5 + margin:
        claim = (
            f"time matters in these videos and the model sees it; sharpness alone tells only "
            f"{sharpness:.1%} of the directions"
        )
    elif within_pairs < 0.5 - margin:
        claim = (
            "claim nothing: the model takes most clips for the wrong direction; training and "
            "validation videos differ, or their labels do"
        )
    else:
        claim = "time does not matter in these videos, or the model cannot see it"
    return (
        f"within pairs {within_pairs:.1%} right, where guessing gives 50% +- {margin:.0%} on "
        f"{how_many(pairs, 'pair')}: {claim}"
    )
