"""Which settings are there, and which values may each setting have?

Every setting is a field of a frozen dataclass. The dataclass checks the values of its fields when
an instance is made. `recipes.py` reads settings from files. Tables and appendices that comments
name are those of the ZeroI2V paper.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass, field
from typing import Any, Final, Literal

from zeroi2v.errors import ConfigError, nearest

# Flags of `zeroi2v train` that take a tower for videos of one's own, trained on photographs: the
# paper's ViT-B/16, and a ViT-S/14 that needs a third of the multiply-adds.
REAL_TOWERS: Final = (
    "--tower vit_base_patch16_clip_quickgelu_224.openai",
    "--tower vit_small_patch14_dinov2.lvd142m --set tower_options.img_size=224",
)
OffsetList = tuple[int, ...]
Decoder = Literal["pyav", "torchcodec"]
# The parts of a model that can have learning rates of their own.
MODEL_PARTS: Final = ("tower", "adapters", "temporal_embedding", "classifier")
# Strategies that compute or train otherwise in folders of format 1.
CHANGED_STRATEGIES: Final = ("full", "joint", "st_adapter", "evl", "aim", "st_adapter_published")
Operator = Literal["stdha", "hr_v", "hr_qkv", "shift_kv", "shift_v", "shift_qkv", "cls_shift"]
# The operators that move whole heads, or parts of heads, as a head layout says.
HEAD_OPERATORS: Final = ("stdha", "hr_v", "hr_qkv")


def _require(condition: bool, message: str) -> None:
    """ConfigError with the message unless the condition is true."""
    if not condition:
        raise ConfigError(message)


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """The tower, and how the tower is adapted. The number of frames belongs to `ClipConfig`."""

    tower: str = "zeroi2v_tiny"  # a toy for the quickstart; for other videos: REAL_TOWERS
    pretrained: bool = True
    # A file or folder of weights to use instead of the pretrained weights (docs/weights.md).
    weights: str | None = None
    # Head layouts (`method/heads.py`). None: the layout of Table 6a.
    heads: str | OffsetList | tuple[str | OffsetList | None, ...] | None = field(
        default=None,
        metadata={  # the words of a message for the type
            "type": "none, text such as 'ssv2' or '-1*1, 1*1/2', "
            "a list of offsets such as [-1, 1], or a list with such a value for each block"
        },
    )
    # A row of Table 1a; or hr_v or shift_v, which move only the values and are not in the paper.
    operator: Operator = "stdha"
    # Share of the channels that read another frame: half of these channels read frame t - 1, half
    # read frame t + 1. With an operator of HEAD_OPERATORS, `ratio` replaces `heads`.
    ratio: float | None = None
    strategy: str = "zeroi2v"  # a row of Table 2, or a peer
    # Sites of the adapters. None: the sites of the strategy.
    sites: tuple[str, ...] | None = None
    # Number of blocks with adapters, counted from the last block. Nothing below these blocks
    # trains. None: all blocks have adapters.
    adapted_blocks: int | None = None
    # Bottleneck width / channels of the tower. None: the strategy's ratio, mostly 0.25.
    adapter_ratio: float | None = None
    # Factor of the adapter's branch. None: the strategy's scale, mostly 1.
    adapter_scale: float | None = None
    # Dropout between the two linear layers of an adapter; for EVL, in the MLPs of the decoder.
    # None: the strategy's, mostly 0.
    adapter_dropout: float | None = None
    # Dropout before the classifier. None: the strategy's, 0.5 for most peers, else 0.
    classifier_dropout: float | None = None
    # AIM: probability with which a training step leaves out the temporal and the joint adapter for
    # a token of the last block. The probability rises linearly from 0 in the first block. None: 0.2
    drop_path: float | None = None
    # EVL: number of layers of the decoder. Each layer reads one of the last blocks of the tower.
    # None: 4, as for Kinetics, or all blocks of a tower with fewer blocks. Something-Something: 12.
    decoder_layers: int | None = None
    # "authors": a strategy computes and trains as its authors' code does. "0.1.0": by the rules of
    # older folders, which differ (`method/strategies.py`). Models in such folders keep these rules.
    strategy_rules: Literal["authors", "0.1.0"] = "authors"
    # "zero": the temporal embedding stays zero, so only the heads can tell the order of frames.
    temporal_embedding: Literal["trained", "zero"] = "trained"
    # Number of neighbouring frames from which the patch embedding makes one picture. Swin in
    # Table 11: 2.
    tubelet: int = 1
    tower_options: dict[str, Any] = field(default_factory=dict)  # arguments for timm

    def __post_init__(self) -> None:
        moves_heads = self.operator in HEAD_OPERATORS
        if self.ratio is not None:
            _require(0 < self.ratio <= 1, f"ratio must be above 0 and at most 1, got {self.ratio}")
        _require(
            moves_heads or self.ratio is not None,
            f"operator {self.operator} needs ratio, the share of channels that move",
        )
        _require(
            self.heads is None or (moves_heads and self.ratio is None),
            "heads can be set only with operator stdha, hr_v or hr_qkv, and only without ratio; "
            f"got operator {self.operator}, ratio {self.ratio}",
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
        for name in ("adapter_dropout", "classifier_dropout", "drop_path"):
            value = getattr(self, name)
            holds = value is None or 0 <= value < 1
            _require(holds, f"{name} must be at least 0 and below 1, got {value}")
        _require(
            self.decoder_layers is None or self.decoder_layers >= 1,
            f"decoder_layers must be at least 1, got {self.decoder_layers}",
        )


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """How zeroi2v finds the videos of a data set, and their labels (docs/data.md)."""

    # A row of FORMATS (data/formats/registry.py). "auto": the first format that fits the data set.
    format: str = "auto"
    split: Literal[1, 2, 3] = 1  # number of the official split, where a data set has several
    videos: str | None = None  # folder of the videos, if the videos are not beside the lists
    # File of class names, one name a line, for lists and tar files whose labels are numbers.
    classes: str | None = None
    # Whether a video may have several labels. The model then judges each class by itself.
    multi_label: bool = False
    leave_out: tuple[str, ...] = ()  # classes whose videos are left out
    # Whether every clip also appears played backwards, as a class of its own (docs/directions.md).
    directions: bool = False

    def __post_init__(self) -> None:
        for name in ("format", "videos", "classes"):
            _require(getattr(self, name) != "", f"{name} must not be empty")
        _require(
            not (self.directions and self.multi_label),
            "directions is for one label a video; with multi_label it must be false",
        )


@dataclass(frozen=True, kw_only=True)
class ClipConfig:
    """Which frames of a video make a clip."""

    frames: int = 8
    # "segment": one frame of each of T equal segments. "dense": T frames, `stride` apart.
    sampling: Literal["segment", "dense"] = "segment"
    stride: int = 16  # video frames from one frame of a dense clip to the next
    # The library that decodes video files. torchcodec must be installed (docs/videos.md).
    decoder: Decoder = "pyav"

    def __post_init__(self) -> None:
        _require(self.frames >= 1, f"frames must be at least 1, got {self.frames}")
        _require(self.stride >= 1, f"stride must be at least 1, got {self.stride}")


@dataclass(frozen=True, kw_only=True)
class PixelsConfig:
    """How the frames of a training clip are cropped, flipped, augmented and erased.

    All frames of a clip are treated alike.

    The defaults suit videos of which nothing is known. No clip is flipped, because a flip may turn
    a video of one class into a video of another, such as left into right. A crop keeps at least
    half of the frame's area, about 0.7 of each side, so that a motion through the frame stays in
    view. The recipes of the paper set flip = 0.5 and crops of 8 % to 100 % of the area.
    """

    crop_area: tuple[float, float] = (0.5, 1.0)  # share of the frame's area that a crop keeps
    crop_aspect: tuple[float, float] = (0.75, 4 / 3)  # width / height of the crop
    flip: float = 0.0  # probability of a left-right flip
    flip_pairs: tuple[tuple[str, str], ...] = ()  # pairs of labels that a flip exchanges
    # RandAugment's n, the number of operations that are drawn from its 14 operations. The paper: 4.
    augment_operations: int = 0
    augment_magnitude: float = 7.0  # RandAugment's m, of 10
    augment_jitter: float = 0.5  # standard deviation of m
    augment_probability: float = 0.5  # of applying each operation that was drawn
    # When frames are augmented. The authors' code for Something-Something: after the flip.
    augment_place: Literal["before_crop", "after_flip"] = "before_crop"
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
        labels = [label for pair in self.flip_pairs for label in pair]
        _require(
            len(labels) == len(set(labels)),
            f"flip_pairs must name each label once, got {self.flip_pairs}",
        )


@dataclass(frozen=True, kw_only=True)
class ViewsConfig:
    """How many views of a video are evaluated. The scores of the views are averaged."""

    clips: int = 1
    # Crops of a clip. 1: the centre. 3: the two ends and the centre of the longer side.
    crops: Literal[1, 3] = 1

    def __post_init__(self) -> None:
        _require(self.clips >= 1, f"clips must be at least 1, got {self.clips}")


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """How a model is trained: AdamW, with a linear warm-up and a cosine down to zero."""

    epochs: int = 30
    batch_size: int = 16  # clips of a step, of all processes together
    # Number of parts into which a process divides its clips of a step. The process takes the parts
    # one after the other. More parts need less memory and give the same gradient.
    accumulate: int = 1
    learning_rate: float = 1e-3  # the highest of the run
    # Part of the model, one of MODEL_PARTS -> factor of the learning rate of this part. The factor
    # of a part that is not named is the strategy's: 0.1 for the tower and the temporal embedding of
    # strategies full and joint, else 1.
    learning_rate_shares: dict[str, float] = field(default_factory=dict)
    weight_decay: float = 0.05  # of linear layers, convolutions and adapters (`engine/optim.py`)
    warmup_epochs: float = 2.5
    warmup_start: float = 0.1  # share of the learning rate at the first step
    label_smoothing: float = 0.0
    # Greatest length of the gradient of all weights, taken as one vector. A step shortens a longer
    # gradient to this length. 0: no gradient is shortened.
    gradient_clip: float = 0.0
    # Precision of matrix products. "auto": bf16 where the device (GPU or CPU) multiplies bf16
    # numbers natively, else fp32.
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    # On a GPU, where one process trains in fp32 or bf16: capture a step once as a CUDA graph, and
    # replay the graph. In bf16, cast the weights once a step instead of using autocast. A captured
    # step was never run on a GPU to the end.
    compile: bool = False
    # Whether a step keeps only the input of each block, and computes the other activations again
    # for the gradient: less memory, more time.
    checkpointing: bool = False
    # Share of the patches of a frame that a step uses; the same patches in all frames of a clip.
    token_share: float = 1.0
    few_frames: int = 0  # frames of a clip in the first `few_frames_epochs`; 0: `clip.frames`
    few_frames_epochs: int = 0
    # Processes that decode videos. -1: one for each core beyond the first, at most 8.
    workers: int = -1
    seed: int = 0
    # A file that lists videos to leave out, as `zeroi2v data check --out` writes the file.
    exclude: str | None = None
    # "stop": a video that cannot be read ends the run. "skip": the video is left out and listed.
    broken: Literal["stop", "skip"] = "stop"
    validate_every: int = 1  # epochs
    # Number of validations without a new best epoch after which the run ends. 0: the run never ends
    # early.
    patience: int = 0
    # Minutes between two saves of the run's state within an epoch. 0: only after each epoch.
    save_every_minutes: float = 10.0
    start_from: str | None = None  # the folder of an earlier run whose weights this run starts from
    # "full": each of several processes keeps a part of the weights (FSDP).
    sharding: Literal["none", "full"] = "none"
    tensorboard: bool = False  # whether the figures of each epoch also go to RUN/tensorboard

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
            0 <= self.warmup_start <= 1,
            f"warmup_start must be at least 0 and at most 1, got {self.warmup_start}",
        )
        for part, share in self.learning_rate_shares.items():
            _require(
                part in MODEL_PARTS,
                f"learning_rate_shares: a model has the parts {', '.join(MODEL_PARTS)}, "
                f"got {part!r}{nearest(part, MODEL_PARTS)}",
            )
            _require(
                0 < share < math.inf,
                f"learning_rate_shares.{part} must be above 0 and finite, got {share}",
            )
        _require(
            0 <= self.label_smoothing < 1,
            f"label_smoothing must be at least 0 and below 1, got {self.label_smoothing}",
        )
        _require(
            self.gradient_clip >= 0, f"gradient_clip must be at least 0, got {self.gradient_clip}"
        )
        _require(0 <= self.seed < 2**63, f"seed must be at least 0 and below 2^63, got {self.seed}")
        _require(self.workers >= -1, f"workers must be -1 (automatic) or more, got {self.workers}")
        _require(
            self.sharding == "none" or self.precision != "fp16",
            "sharding needs precision auto, fp32 or bf16, because the loss scale of fp16 cannot be "
            f"shared by the processes; got {self.precision}",
        )
        _require(
            self.sharding == "none" or self.accumulate == 1,
            "sharding needs accumulate 1, because all processes must take their clips in "
            f"equally many parts; got {self.accumulate}",
        )


@dataclass(frozen=True, kw_only=True)
class ReencodeConfig:
    """How `zeroi2v data reencode` writes copies of videos. These settings are in no recipe."""

    short_side: int = 256  # pixels; a smaller video keeps its size
    keyframes: int = 16  # most frames from one key frame to the next
    crf: int = 20  # 0: lossless, 51: worst

    def __post_init__(self) -> None:
        even = self.short_side >= 2 and self.short_side % 2 == 0
        _require(even, f"short_side must be even and at least 2, got {self.short_side}")
        _require(self.keyframes >= 1, f"keyframes must be at least 1, got {self.keyframes}")
        _require(0 <= self.crf <= 51, f"crf must be 0 to 51, got {self.crf}")


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """All settings of a training run, apart from the path of the data and the folder of the run."""

    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    clip: ClipConfig = field(default_factory=ClipConfig)
    pixels: PixelsConfig = field(default_factory=PixelsConfig)
    views: ViewsConfig = field(default_factory=ViewsConfig)
    train: TrainConfig = field(default_factory=TrainConfig)

    def __post_init__(self) -> None:
        few = self.train.few_frames
        together = bool(few) == bool(self.train.few_frames_epochs)
        _require(
            together,
            "few_frames and few_frames_epochs must both be above 0 or both be 0, "
            f"got {few} and {self.train.few_frames_epochs}",
        )
        _require(
            few <= self.clip.frames,
            f"few_frames must be at most clip.frames ({self.clip.frames}), got {few}",
        )
        smoothed = self.data.multi_label and self.train.label_smoothing > 0
        _require(
            not smoothed,
            "label_smoothing is for one label a video; with data.multi_label it must be 0",
        )
        fewest = few or self.clip.frames
        _require(
            not self.data.directions or fewest >= 2,
            "data.directions needs clips of at least 2 frames, because a frame has no order; "
            f"got clip.frames {self.clip.frames} and few_frames {few}",
        )

    def clip_in_epoch(self, epoch: int) -> ClipConfig:
        """The settings of training clips in an epoch. The first epoch is 1.

        In the first `train.few_frames_epochs` epochs a clip has fewer frames. Its stride is longer
        in proportion, so the clip spans the same stretch of the video.
        """
        if epoch > self.train.few_frames_epochs:
            return self.clip
        few, all_frames = self.train.few_frames, self.clip.frames
        stride = round(self.clip.stride * all_frames / few)
        return dataclasses.replace(self.clip, frames=few, stride=stride)
