"""What must be known of a model beside its weights?

Saving, evaluation and prediction need the same facts. The `Spec` of a model holds these facts. A
`Spec` never changes: `dataclasses.replace` makes another `Spec`.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from zeroi2v.config import ClipConfig, ModelConfig, ViewsConfig
from zeroi2v.errors import ConfigError, how_many


@dataclass(frozen=True, kw_only=True)
class Spec:
    """How a model was made, what the model takes and what it answers."""

    model: ModelConfig  # the tower and the method
    labels: tuple[str, ...]  # names of the classes, in the order of the logits
    clip: ClipConfig  # how a clip is cut out of a video
    views: ViewsConfig = field(default_factory=ViewsConfig)  # the scores of the views are averaged
    image_size: int  # S, pixels along a side of a frame
    mean: tuple[float, ...]  # of the pixels, per colour, for pixels of 0..1
    std: tuple[float, ...]
    multi_label: bool = False  # a video may have several labels: scores are sigmoid, not softmax
    # whether label 2k + 1 stands for clips of label 2k played backwards; all clips are then blurred
    directions: bool = False
    merged: bool = False  # whether the linears of the tower have absorbed the adapters
    # Measured results that the model card shows, by name.
    results: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        counts = Counter(self.labels)
        repeated = [label for label, count in counts.items() if count > 1]
        if repeated:
            raise ConfigError(
                f"labels: {repeated[0]!r} names two classes; give each class a name of its own"
            )
        if self.directions and len(self.labels) % 2:
            raise ConfigError(
                f"directions: labels come in pairs, got {how_many(len(self.labels), 'label')}; "
                "give each label a label of the clips played backwards"
            )

    def with_labels(self, labels: Sequence[str]) -> Spec:
        """The same `Spec` with other names of the classes.

        ConfigError if the number of names is not the number of classes, or if two names are equal.
        """
        if isinstance(labels, str) or len(labels) != len(self.labels):
            raise ConfigError(
                f"labels: the model has {how_many(len(self.labels), 'class', 'classes')}, "
                f"got {labels!r}; give one name for each class"
            )
        return dataclasses.replace(self, labels=tuple(map(str, labels)))


def numbered_labels(count: int) -> tuple[str, ...]:
    """Names for `count` classes without names: "0", "1" ... ConfigError if `count` is below 1."""
    if count < 1:
        raise ConfigError(f"num_classes must be at least 1, got {count}")
    return tuple(map(str, range(count)))
