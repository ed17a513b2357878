"""Which clips does the evidence rest on, how are they split, and what tells without any motion?

A packed data set is one file: the sampled frames of all clips, each frame a JPEG of its own. So a
frame tells nothing about the frames beside it, and the file is small enough to travel.

Shapes: n clips, T frames, S pixels a side, K classes.
"""

from __future__ import annotations

import csv
import dataclasses
import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor
from torchvision.transforms.functional import gaussian_blur

from zeroi2v.config import ClipConfig
from zeroi2v.data.sampling import frames_of_clips
from zeroi2v.experiments.probe import logistic_regression
from zeroi2v.files import write_files

FRAMES: Final = 8
PACKED: Final = 160  # pixels a side of a packed frame
QUALITY: Final = 95
BLUR: Final = (0.3, 2.0)  # pixels: the deviations of the random blur, from and to

# The groups of each fold: recordings of `gestures`, persons of `signs`. No group is in two folds,
# and the folds have about the same number of clips.
FOLDS: Final[Mapping[str, tuple[tuple[str, ...], ...]]] = {
    "gestures": (
        ("E_mpeg4_30",),
        ("D_high_30", "H_3gp_22"),
        ("I_base_mp42", "G_3gp_24.9"),
        ("C_high_24-25", "B_high_16.7"),
        ("A_high_10", "F_3gp_15.4"),
    ),
    "signs": tuple(tuple(f"s{person:02}" for person in range(fold, 27, 5)) for fold in range(1, 6)),
}
# The labels that playing a clip backwards turns into each other, or nearly so
REVERSED_LABELS: Final[Mapping[str, frozenset[str]]] = {
    "gestures": frozenset(("up", "down", "left", "right")),
    "signs": frozenset(),
}


@dataclass(frozen=True)
class Clips:
    """A packed data set."""

    name: str
    pixels: Tensor  # uint8 (n, T, 3, S, S)
    labels: Tensor  # (n,) int64
    groups: tuple[str, ...]  # the recording or the person of each clip
    classes: tuple[str, ...]


def pack(folder: Path, out: Path) -> None:
    """Decode the clips of a data set once, and write them to one file.

    The folder has an index.csv with the columns path, label and subject. Each clip gives T frames,
    sampled by segments. The shorter side is scaled to S pixels, and the middle square is kept.
    """
    from zeroi2v.data.decode import read_clip  # a machine without PyAV reads packed clips

    with (folder / "index.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    pictures: list[bytes] = []
    for row in rows:
        frames = read_clip(folder / row["path"], _middle_frames, short_side=PACKED)
        height, width = frames.shape[2:]
        top, left = (height - PACKED) // 2, (width - PACKED) // 2
        for frame in frames[:, :, top : top + PACKED, left : left + PACKED]:
            picture = io.BytesIO()
            Image.fromarray(frame.permute(1, 2, 0).numpy()).save(picture, "JPEG", quality=QUALITY)
            pictures.append(picture.getvalue())
    arrays = {
        "pictures": np.frombuffer(b"".join(pictures), np.uint8),
        "sizes": np.array([len(picture) for picture in pictures]),
        "labels": np.array([row["label"] for row in rows]),
        "groups": np.array([row["subject"] for row in rows]),
    }
    target = out / f"{folder.name}.npz"

    def write(path: Path) -> None:
        with path.open("wb") as file:
            np.savez(file, allow_pickle=False, **arrays)

    write_files({target: write})


def _middle_frames(num_frames: int) -> list[int]:
    return frames_of_clips(num_frames, ClipConfig(frames=FRAMES), 1)


def unpack(path: Path) -> Clips:
    """The clips of a packed data set."""
    with np.load(path) as arrays:
        ends = np.cumsum(arrays["sizes"])
        pictures = arrays["pictures"].tobytes()
        labels, groups = arrays["labels"].tolist(), arrays["groups"].tolist()
    frames = []
    for end, size in zip(ends.tolist(), np.diff(ends, prepend=0).tolist(), strict=True):
        with Image.open(io.BytesIO(pictures[end - size : end])) as picture:
            frames.append(torch.from_numpy(np.array(picture)).permute(2, 0, 1))
    classes = tuple(sorted({*labels}))
    return Clips(
        path.stem,
        torch.stack(frames).unflatten(0, (-1, FRAMES)).contiguous(),
        torch.tensor([classes.index(label) for label in labels]),
        tuple(groups),
        classes,
    )


@dataclass(frozen=True)
class Test:
    """A question to the clips: samples with a label each, and how an answer is judged.

    Sample i is clip `clips[i]`, played backwards if `backwards[i]`.
    """

    name: str
    pixels: Tensor  # uint8 (n, T, 3, S, S)
    clips: Tensor  # (m,) int64: the clip of each sample
    backwards: Tensor  # (m,) bool
    labels: Tensor  # (m,) int64
    folds: Tensor  # (m,) int64: the fold in which a sample is tested
    groups: tuple[str, ...]  # (m,)
    class_count: int
    within_pairs: bool  # whether only the two directions of the true label are compared

    def is_right(self, logits: Tensor, samples: Tensor) -> Tensor:
        """Whether each answer is right, from the logits (b, K) of the samples (b,).

        Within pairs, an answer is right if the logit of the sample's label is above the logit of
        the same label in the other direction.
        """
        labels = self.labels[samples]
        if not self.within_pairs:
            return logits.argmax(1) == labels
        own, other = self._directions(logits, labels).unbind(1)
        return own > other

    def loss(self, logits: Tensor, samples: Tensor) -> Tensor:
        """The mean cross entropy of the samples (b,): of all labels, or within pairs of the two."""
        labels = self.labels[samples]
        if self.within_pairs:
            logits, labels = self._directions(logits, labels), torch.zeros_like(labels)
        return F.cross_entropy(logits, labels)

    @staticmethod
    def _directions(logits: Tensor, labels: Tensor) -> Tensor:
        """The logits (b, 2) of each label and of the same label in the other direction."""
        return logits.gather(1, torch.stack([labels, labels ^ 1], 1))


def labels_test(clips: Clips) -> Test:
    """Every clip with its own label."""
    count = len(clips.labels)
    return Test(
        clips.name,
        clips.pixels,
        torch.arange(count),
        torch.zeros(count, dtype=torch.bool),
        clips.labels,
        _folds(clips),
        clips.groups,
        len(clips.classes),
        within_pairs=False,
    )


def direction_test(clips: Clips) -> Test:
    """Every clip as it is and backwards: 2K classes, judged within pairs.

    Both directions of a clip are in one fold. Label 2k is class k as it is, label 2k + 1 is class k
    backwards. Classes that playing backwards turns into each other are left out. A model that
    cannot tell the order of frames is right in half of the answers, whatever else it sees.

    Frames are disguised (`disguised`): otherwise compression, or light that drifts, would betray
    the place of a frame. What remains are pictures that differ in content: a hand comes into view
    and leaves. So a row that sees the order of frames can pass without motion, by its temporal
    embedding. Only the difference between two rows with this embedding is a claim.
    """
    left_out = REVERSED_LABELS[clips.name]
    kept = [number for number, name in enumerate(clips.classes) if name not in left_out]
    chosen = torch.isin(clips.labels, torch.tensor(kept)).nonzero()[:, 0]
    numbers = torch.tensor([kept.index(label) for label in clips.labels[chosen].tolist()])
    groups = tuple(clips.groups[clip] for clip in chosen.tolist())
    return Test(
        f"{clips.name}-direction",
        disguised(clips.pixels),
        chosen.repeat(2),
        torch.arange(2).repeat_interleave(len(chosen)) == 1,
        torch.cat([2 * numbers, 2 * numbers + 1]),
        _folds(clips)[chosen].repeat(2),
        groups * 2,
        2 * len(kept),
        within_pairs=True,
    )


def _folds(clips: Clips) -> Tensor:
    fold_of = {group: fold for fold, groups in enumerate(FOLDS[clips.name]) for group in groups}
    return torch.tensor([fold_of[group] for group in clips.groups])


def disguised(pixels: Tensor) -> Tensor:
    """The frames (n, T, 3, S, S) without the numbers that betray the place of a frame in a clip.

    Each frame is blurred with a deviation drawn at random from `BLUR`. Then its brightness and its
    contrast (mean and deviation over pixels and colours) become the means of its clip.
    """
    generator = torch.Generator().manual_seed(0)
    low, high = BLUR
    deviations = low + (high - low) * torch.rand(pixels.shape[:2], generator=generator)
    clips = []
    for clip, of_frames in zip(pixels.float(), deviations.tolist(), strict=True):
        frames = [
            gaussian_blur(frame, [13, 13], [deviation, deviation])
            for frame, deviation in zip(clip, of_frames, strict=True)
        ]
        soft = torch.stack(frames)
        deviation, mean = torch.std_mean(soft, (1, 2, 3), keepdim=True)
        alike = (soft - mean) / (deviation + 1e-6) * deviation.mean() + mean.mean()
        clips.append(alike.round().clamp(0, 255).byte())
    return torch.stack(clips)


def shortcuts(test: Test) -> dict[str, float]:
    """The share of right answers of readers that see no motion, tested fold by fold.

    - sharpness: logistic regression on a number for each frame, the logarithm of the variance of
      its Laplacian;
    - brightness, contrast: the same on the mean, or on the deviation, of each frame's pixels;
    - thumbnail: the nearest clip by its middle frame, 16 x 16 pixels, grey;
    - thumbnails: the nearest clip by all frames in their order, 16 x 16 pixels, grey.

    Within pairs the three regressions are asked for the direction of all clips at once.
    """
    pixels = test.pixels[test.clips].float().mean(2)  # (m, T, S, S), grey
    pixels[test.backwards] = pixels[test.backwards].flip(1)
    kernel = torch.tensor([[0.0, 1.0, 0.0], [1.0, -4.0, 1.0], [0.0, 1.0, 0.0]])[None, None]
    edges = F.conv2d(pixels.flatten(0, 1)[:, None], kernel).unflatten(0, pixels.shape[:2])
    contrast, brightness = torch.std_mean(pixels, (2, 3))
    numbers = {
        "sharpness": edges.flatten(2).var(-1).log1p(),
        "brightness": brightness,
        "contrast": contrast,
    }
    small = F.interpolate(pixels, (16, 16), mode="area").flatten(2)
    direction = dataclasses.replace(test, labels=test.labels % 2, class_count=2)
    asked = direction if test.within_pairs else test
    return {
        **{
            name: _share_right(asked, _regression, of_frames.double())
            for name, of_frames in numbers.items()
        },
        "thumbnail": _share_right(test, _nearest, small[:, FRAMES // 2].double()),
        "thumbnails": _share_right(test, _nearest, small.flatten(1).double()),
    }


# Inputs and labels to learn from, inputs to answer, number of classes -> logits
Reader = Callable[[Tensor, Tensor, Tensor, int], Tensor]


def _regression(inputs: Tensor, labels: Tensor, asked: Tensor, classes: int) -> Tensor:
    mean, deviation = inputs.mean(0), inputs.std(0) + 1e-6
    weight, bias = logistic_regression((inputs - mean) / deviation, labels, classes, 1e-3)
    return (asked - mean) / deviation @ weight.T + bias


def _nearest(inputs: Tensor, labels: Tensor, asked: Tensor, classes: int) -> Tensor:
    """Minus the distance to the nearest clip of each class."""
    distances = torch.cdist(asked, inputs)
    of_class = [distances[:, labels == label].min(1).values for label in range(classes)]
    return -torch.stack(of_class, 1)


def _share_right(test: Test, reader: Reader, inputs: Tensor) -> float:
    right = 0
    for fold in test.folds.unique().tolist():
        asked = (test.folds == fold).nonzero()[:, 0]
        known = test.folds != fold
        logits = reader(inputs[known], test.labels[known], inputs[asked], test.class_count)
        right += int(test.is_right(logits, asked).sum())
    return right / len(test.labels)


def groups_of(test: Test) -> dict[str, str]:
    """For each fold the groups of its samples, in their order, with spaces between."""
    folds = test.folds.tolist()
    return {
        str(fold): " ".join(
            group for group, own in zip(test.groups, folds, strict=True) if own == fold
        )
        for fold in sorted({*folds})
    }


def tests_of(clips: Sequence[Clips]) -> dict[str, Test]:
    """Both tests of each data set, by name."""
    tests = [make(data) for data in clips for make in (labels_test, direction_test)]
    return {test.name: test for test in tests}
