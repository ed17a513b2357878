"""Which settings are there, and which values may each of them have?

Every setting is a field of a frozen dataclass, which checks the value when it is built. `recipes.py` reads settings from files.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Any, Literal

from zeroi2v.errors import ConfigError

OffsetList = tuple[int, ...]
Decoder = Literal["pyav", "torchcodec"]


def _require(holds: bool, message: str) -> None:
    if not holds:
        raise ConfigError(message)


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """Which tower, and what is done to it. The number of frames belongs to `ClipConfig`."""

    tower: str = "zeroi2v_tiny"
    pretrained: bool = True
    weights: str | None = (
        None  # a file or folder of them instead of the pretrained ones (docs/weights.md)
    )
    heads: str | OffsetList | tuple[str | OffsetList | None, ...] | None = (
        None  # None: Table 6a's for this tower
    )
    operator: Literal["stdha", "hr_qkv", "shift_kv", "shift_qkv", "cls_shift"] = (
        "stdha"  # the rows of Table 1a
    )
    ratio: float | None = (
        None  # share of the channels that move, half each way; stdha, hr_qkv: instead of heads
    )
    strategy: str = "zeroi2v"  # a row of Table 2, or a method that the paper compares with
    sites: tuple[str, ...] | None = (
        None  # where the adapters sit; None: where the strategy has them
    )
    adapted_blocks: int | None = (
        None  # how many blocks have them, the last ones; nothing below trains; None: all
    )
    adapter_ratio: float | None = (
        None  # bottleneck width / channels of the tower; None: the strategy's, mostly 0.25
    )
    adapter_scale: float | None = (
        None  # factor of the adapter's branch; None: the strategy's, mostly 1
    )
    adapter_dropout: float = 0.0  # between the adapter's two linears
    classifier_dropout: float = 0.0
    temporal_embedding: Literal["trained", "zero"] = (
        "trained"  # zero: the heads alone can tell the order of frames
    )
    tubelet: int = (
        1  # neighbouring frames that the patch embedding makes one of (Swin in Table 11: 2)
    )
    tower_options: dict[str, Any] = field(default_factory=dict)  # passed on to timm

    def __post_init__(self) -> None:
        moves_heads = self.operator in ("stdha", "hr_qkv")
        if self.ratio is not None:
            _require(0 < self.ratio <= 1, f"ratio must be above 0 and at most 1, got {self.ratio}")
        _require(
            moves_heads or self.ratio is not None,
            f"operator {self.operator} needs ratio, the share of channels that move",
        )
        _require(
            self.heads is None or (moves_heads and self.ratio is None),
            f"heads goes with operator stdha or hr_qkv without ratio, got operator {self.operator}, ratio {self.ratio}",
        )
        _require(self.tubelet >= 1, f"tubelet must be at least 1, got {self.tubelet}")
        _require(
            self.adapted_blocks is None or self.adapted_blocks >= 1,
            f"adapted_blocks must be at least 1, or none for all, got {self.adapted_blocks}",
        )
        if self.adapter_ratio is not None:
            holds = 0 < self.adapter_ratio <= 4
            _require(
                holds, f"adapter_ratio must be above 0 and at most 4, got {self.adapter_ratio}"
            )
        _require(
            self.adapter_scale != 0, "adapter_scale must not be 0: the adapters would do nothing"
        )
        for name in ("adapter_dropout", "classifier_dropout"):
            value = getattr(self, name)
            _require(0 <= value < 1, f"{name} must be at least 0 and below 1, got {value}")


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """How the videos of a data set and their labels are found (docs/data.md)."""

    format: str = "auto"  # a row of FORMATS (data/formats/registry.py); auto: the first that fits
    split: Literal[1, 2, 3] = 1  # which of the official splits, where a data set has several
    videos: str | None = None  # folder of the videos, if they are not beside the lists
    classes: str | None = (
        None  # file of class names, one a line, for lists and tar files that hold numbers
    )
    multi_label: bool = (
        False  # a video may have several labels; each class is then a question of its own
    )

    def __post_init__(self) -> None:
        for name in ("format", "videos", "classes"):
            _require(getattr(self, name) != "", f"{name} must not be empty")


@dataclass(frozen=True, kw_only=True)
class ClipConfig:
    """How one clip is cut out of a video, in time."""

    frames: int = 8
    sampling: Literal["segment", "dense"] = (
        "segment"  # one frame of each of T equal segments, or T frames `stride` apart
    )
    stride: int = 16  # dense only: video frames between two frames of the clip
    decoder: Decoder = (
        "pyav"  # what decodes video files; torchcodec must be installed (docs/videos.md)
    )

    def __post_init__(self) -> None:
        _require(self.frames >= 1, f"frames must be at least 1, got {self.frames}")
        _require(self.stride >= 1, f"stride must be at least 1, got {self.stride}")


@dataclass(frozen=True, kw_only=True)
class PixelsConfig:
    """How the frames of a training clip are cropped, flipped, augmented and erased; all frames of a clip alike."""

    crop_area: tuple[float, float] = (
        0.08,
        1.0,
    )  # share of the frame's area that a random crop keeps
    crop_aspect: tuple[float, float] = (0.75, 4 / 3)  # width / height of that crop
    flip: float = 0.5  # probability of a left-right flip
    flip_pairs: tuple[tuple[str, str], ...] = ()  # labels that a flip exchanges
    augment_operations: int = (
        0  # RandAugment's n, how many of its 14 operations are drawn; the paper: 4
    )
    augment_magnitude: float = 7.0  # RandAugment's m, of 10
    augment_jitter: float = 0.5  # standard deviation of m
    augment_probability: float = 0.5  # of each operation that was drawn
    augment_place: Literal["before_crop", "after_flip"] = (
        "before_crop"  # official: Something-Something after the flip
    )
    erase: float = 0.0  # probability that a rectangle is erased
    erase_fill: Literal["noise", "grey"] = "noise"
    erase_area: tuple[float, float] = (0.02, 1 / 3)  # share of the view's area that is erased
    erase_aspect: tuple[float, float] = (0.3, 10 / 3)  # width / height of the rectangle

    def __post_init__(self) -> None:
        for name in ("crop_area", "erase_area"):
            low, high = getattr(self, name)
            _require(
                0 < low <= high <= 1, f"{name} must be 0 < low <= high <= 1, got {low}, {high}"
            )
        for name in ("crop_aspect", "erase_aspect"):
            low, high = getattr(self, name)
            _require(0 < low <= high, f"{name} must be 0 < low <= high, got {low}, {high}")
        for name in ("flip", "erase", "augment_probability"):
            _require(
                0 <= getattr(self, name) <= 1,
                f"{name} must be a probability, got {getattr(self, name)}",
            )
        number, magnitude, jitter = (
            self.augment_operations,
            self.augment_magnitude,
            self.augment_jitter,
        )
        _require(0 <= number <= 14, f"augment_operations must be 0 to 14, got {number}")
        _require(0 <= magnitude <= 10, f"augment_magnitude must be 0 to 10, got {magnitude}")
        _require(jitter >= 0, f"augment_jitter must be at least 0, got {jitter}")
        named = [label for pair in self.flip_pairs for label in pair]
        _require(
            len(named) == len(set(named)),
            f"flip_pairs must name each label once, got {self.flip_pairs}",
        )


@dataclass(frozen=True, kw_only=True)
class ViewsConfig:
    """How many views of a video are evaluated; their scores are averaged."""

    clips: int = 1
    crops: Literal[1, 3] = 1  # the centre, or three along the longer side

    def __post_init__(self) -> None:
        _require(self.clips >= 1, f"clips must be at least 1, got {self.clips}")


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """The training schedule: AdamW, linear warm-up, cosine to zero."""

    epochs: int = 30
    batch_size: int = 16  # clips of a step, of all processes together
    accumulate: int = 1  # parts that each process's clips of a step are taken in, one after the other: less memory, same result
    learning_rate: float = 1e-3
    weight_decay: float = 0.05  # not applied to norms and embeddings
    warmup_epochs: float = 2.5
    warmup_start: float = 0.1  # share of the learning rate at the first step
    label_smoothing: float = 0.0
    gradient_clip: float = (
        0.0  # longest gradient, all weights as one vector, that a step may take; 0: any
    )
    precision: Literal["auto", "fp32", "bf16", "fp16"] = (
        "auto"  # auto: bf16 where the processor multiplies it natively
    )
    checkpointing: bool = (
        False  # keep each block's input alone and work out the rest again: less memory, more time
    )
    token_share: float = 1.0  # of a clip's patches that a step sees, the same in all frames
    few_frames: int = 0  # frames of a clip in the first few_frames_epochs; 0: as many as later
    few_frames_epochs: int = 0
    workers: int = -1  # processes that decode; -1: one per core beyond the first, at most 8
    seed: int = 0
    exclude: str | None = (
        None  # file that lists videos to leave out, as `zeroi2v data check --out` writes it
    )
    broken: Literal["stop", "skip"] = (
        "stop"  # a video that cannot be read ends the run, or is left out and listed
    )
    validate_every: int = 1  # epochs
    patience: int = 0  # end after so many validations without a better one; 0: never
    save_every_minutes: float = (
        10.0  # where the run stands, within an epoch too; 0: after each epoch alone
    )
    start_from: str | None = None  # the folder of an earlier run, whose weights these start as
    sharding: Literal["none", "full"] = (
        "none"  # full: of several processes each keeps a part of the weights (FSDP)
    )
    tensorboard: bool = False  # write the figures of each epoch into RUN/tensorboard too

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size", "accumulate", "validate_every"):
            _require(
                getattr(self, name) >= 1, f"{name} must be at least 1, got {getattr(self, name)}"
            )
        for name in ("patience", "save_every_minutes", "few_frames", "few_frames_epochs"):
            _require(
                getattr(self, name) >= 0, f"{name} must be at least 0, got {getattr(self, name)}"
            )
        _require(
            0 < self.token_share <= 1,
            f"token_share must be above 0 and at most 1, got {self.token_share}",
        )
        _require(self.learning_rate > 0, f"learning_rate must be above 0, got {self.learning_rate}")
        _require(
            self.weight_decay >= 0, f"weight_decay must be at least 0, got {self.weight_decay}"
        )
        _require(
            self.warmup_epochs >= 0, f"warmup_epochs must be at least 0, got {self.warmup_epochs}"
        )
        _require(
            0 < self.warmup_start <= 1,
            f"warmup_start must be above 0 and at most 1, got {self.warmup_start}",
        )
        _require(
            0 <= self.label_smoothing < 1,
            f"label_smoothing must be 0 to 1, got {self.label_smoothing}",
        )
        _require(
            self.gradient_clip >= 0, f"gradient_clip must be at least 0, got {self.gradient_clip}"
        )
        _require(0 <= self.seed < 2**63, f"seed must be at least 0 and below 2^63, got {self.seed}")
        _require(self.workers >= -1, f"workers must be -1 (automatic) or more, got {self.workers}")
        _require(
            self.sharding == "none" or self.precision != "fp16",
            "sharding goes with precision fp32 or bf16: the scale of fp16's gradients is not shared",
        )
        _require(
            self.sharding == "none" or self.accumulate == 1,
            f"sharding goes with accumulate 1, or processes with fewer clips would not meet the others; got {self.accumulate}",
        )


@dataclass(frozen=True, kw_only=True)
class ReencodeConfig:
    """How `zeroi2v data reencode` writes its copies; no part of a recipe."""

    short_side: int = 256  # pixels; a video that is smaller keeps its size
    keyframes: int = 16  # frames from one key frame to the next, at most
    crf: int = 20  # 0: lossless, 51: worst

    def __post_init__(self) -> None:
        even = self.short_side >= 2 and self.short_side % 2 == 0
        _require(even, f"short_side must be even and at least 2, got {self.short_side}")
        _require(self.keyframes >= 1, f"keyframes must be at least 1, got {self.keyframes}")
        _require(0 <= self.crf <= 51, f"crf must be 0 to 51, got {self.crf}")


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Everything that a training run is told, apart from where the data lies and the folder it writes."""

    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    clip: ClipConfig = field(default_factory=ClipConfig)
    pixels: PixelsConfig = field(default_factory=PixelsConfig)
    views: ViewsConfig = field(default_factory=ViewsConfig)
    train: TrainConfig = field(default_factory=TrainConfig)

    def __post_init__(self) -> None:
        few = self.train.few_frames
        together = bool(few) == bool(self.train.few_frames_epochs)
        _require(together, "few_frames and few_frames_epochs go together, or are both 0")
        _require(
            few <= self.clip.frames,
            f"few_frames must be at most clip.frames ({self.clip.frames}), got {few}",
        )
        smoothed = self.data.multi_label and self.train.label_smoothing > 0
        _require(
            not smoothed,
            "label_smoothing is for one label a video: with data.multi_label it must be 0",
        )

    def clip_in_epoch(self, epoch: int) -> ClipConfig:
        """How a training clip is cut in an epoch, from 1 on: at first, if asked for, fewer frames of as long a stretch of the video."""
        if epoch > self.train.few_frames_epochs:
            return self.clip
        few, whole = self.train.few_frames, self.clip.frames
        return dataclasses.replace(
            self.clip, frames=few, stride=round(self.clip.stride * whole / few)
        )
