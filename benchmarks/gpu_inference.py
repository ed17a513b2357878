"""How fast and how exact is a merged model on a GPU, beside its image transformer and peers?

A form of relocation is a way in which heads read other frames (see `forms`). Each case is a row or
a few rows of a result; `gpu.py` runs the cases and writes the rows.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any, Final, TypeAlias

import torch
from torch import Tensor, nn

from benchmarks.gpu_place import Place
from zeroi2v import VideoClassifier, create_model
from zeroi2v.measure.cost import count_macs, plain_tower
from zeroi2v.measure.subjects import PlainTower
from zeroi2v.measure.timing import fast_ratio, interleave, spread
from zeroi2v.models.compiled import DTYPES
from zeroi2v.models.exchange import FrameAttention, put_offsets

TOWER: Final = "vit_base_patch16_clip_quickgelu_224"
CLASSES: Final = 400
ROUNDS: Final = 40
PEERS: Final = ("st_adapter_published", "evl", "aim")

Row: TypeAlias = dict[str, Any]
# A case: what its rows have in common, and a function that measures the rows.
Case: TypeAlias = tuple[Row, Callable[[], Iterator[Row]]]
Calls: TypeAlias = Mapping[str, Callable[[Tensor], Tensor]]


class Plain(nn.Module):
    """The image transformer of a model, the mean over frames and the classifier."""

    def __init__(self, model: VideoClassifier) -> None:
        super().__init__()
        self.tower = PlainTower(plain_tower(model), model.spec.model.tubelet)
        self.classifier = model.classifier

    def forward(self, clip: Tensor) -> Tensor:
        """Logits (B, K) of a clip (B, F, 3, S, S)."""
        feature = self.tower(clip).unflatten(0, (len(clip), -1))
        logits: Tensor = self.classifier(feature.mean(1))
        return logits


class Forms:
    """The plain image transformer, and a model in each form, by name.

    `moved`: merged, and hooks move keys and values by two copies for each move. `indexed`: the same
    by an index, which moves everything at once. `reads`: merged, and attention reads other frames
    by itself. `reads, offsets 0`: the same with all heads spatial and no temporal embedding, so
    that a faster kernel does not hide what relocation costs. A peer has its own name.
    """

    def __init__(
        self,
        place: Place,
        tower: str = TOWER,
        *,
        strategy: str = "zeroi2v",
        dtype: str = "bf16",
        tower_options: Mapping[str, Any] | None = None,
        **options: Any,
    ) -> None:
        torch.manual_seed(0)
        options["tower_options"] = {**(tower_options or {}), **place.tower_options(tower)}
        model = create_model(tower, num_classes=CLASSES, strategy=strategy, **options)
        model = model.to(place.device, DTYPES[dtype]).eval().requires_grad_(False)
        self.model, self.place, self.dtype = model, place, dtype
        calls: dict[str, Callable[[Tensor], Tensor]] = {"plain": Plain(model)}
        if strategy == "zeroi2v":
            self._add_forms(calls)
        else:
            calls[strategy] = model
        self.calls = calls
        self.gmacs = {name: self._gmacs(name) for name in calls}

    def _add_forms(self, calls: dict[str, Callable[[Tensor], Tensor]]) -> None:
        model = self.model
        with torch.no_grad():  # as after a training: adapters and temporal embedding matter
            for weight in (*model.adapters.parameters(), model.temporal_embedding):
                weight.add_(0.02 * torch.randn_like(weight))
        merged, moved, indexed, still = (model.merge() for _ in range(4))
        moved.attention_reads = indexed.attention_reads = moved.moves_by_index = False
        indexed.moves_by_index = True
        still._embedding_hook.remove()
        for module in still.tower.modules():
            if isinstance(module, FrameAttention):
                module.head_offsets = (0,) * module.num_heads
                put_offsets(module)
        calls |= {"moved": moved, "indexed": indexed, "adapted": model}
        if merged.attention_reads:
            calls |= {"reads": merged, "reads, offsets 0": still}

    def _gmacs(self, name: str) -> float:
        """10^9 multiply-adds for a clip."""
        run: Any = self.calls[name]
        reads = isinstance(run, VideoClassifier) and run.attention_reads
        if reads:  # a count does not see the kernel that reads other frames
            run.attention_reads = False
        macs = count_macs(run, self.clips(1))
        if reads:
            run.attention_reads = True
        return macs / 1e9

    def clips(self, count: int) -> Tensor:
        """Random clips as the model takes them."""
        size = self.model.image_size
        return self.place.clips(count, frames=self.model.frames, size=size, dtype=self.dtype)

    def timed(
        self, mode: str, count: int, *, names: tuple[str, ...] = (), rounds: int = ROUNDS
    ) -> Row:
        """The milliseconds of forms in a mode, and their ratios to the plain image transformer.

        `names` are the forms; without names, all forms. A form that fails costs only itself.
        """
        clips, began = self.clips(count), time.monotonic()
        ready, errors = {}, {}
        for name in self.calls:
            if names and name not in names:
                continue
            try:
                ready[name] = in_mode(self.place, self.calls[name], mode, clips)
                ready[name]()
            except Exception as error:  # noqa: BLE001  only this form fails: time the other forms
                errors[name] = str(error)[:500]
                ready.pop(name, None)
        row: Row = {
            "clips": len(clips),
            "mode": mode,
            "preparation_s": time.monotonic() - began,
            "errors": errors,
        }
        if "plain" not in ready:
            return row
        times = interleave(ready, rounds=self.place.rounds(rounds), warmup=5)
        figures = {name: spread(series) for name, series in times.items()}
        operations = {name: 2e9 * self.gmacs[name] * len(clips) for name in times}
        return {
            **row,
            "rounds": self.place.rounds(rounds),
            "ms": figures,
            "times_plain": {name: fast_ratio(times, name, "plain") for name in times},
            "tflops": {name: operations[name] / figures[name]["median"] / 1e9 for name in times},
        }


def in_mode(
    place: Place, run: Callable[[Tensor], Tensor], mode: str, clips: Tensor
) -> Callable[[], Tensor]:
    """A call of `run` on clips: eager, captured, compiled, or compiled and captured."""
    if mode.startswith("compiled"):
        run = place.compiled(run)
    if mode.endswith("captured"):
        run = place.captured(run, clips)
    return torch.no_grad()(lambda: run(clips))


def inference(place: Place) -> Iterator[Case]:
    """The comparison of the paper in each form of relocation, eager and captured."""
    forms = Forms(place)
    for mode in ("captured", "eager"):
        for count in (1, 32):
            yield {}, partial(_one, forms, mode, count)


def _one(forms: Forms, mode: str, count: int, names: tuple[str, ...] = ()) -> Iterator[Row]:
    yield forms.timed(mode, count, names=names)


def compiled(place: Place) -> Iterator[Case]:
    """The comparison of the paper by torch.compile, captured and not."""
    forms = Forms(place)
    for count in (1, 32):
        for mode in ("compiled and captured", "compiled"):
            yield {}, partial(_one, forms, mode, count, ("plain", "reads", "moved", "indexed"))


def agreement(place: Place) -> Iterator[Case]:
    """How far do logits of the forms lie from logits in float64, by dtype?"""
    for dtype in DTYPES:
        yield {"dtype": dtype}, partial(_agreement, place, dtype)


@torch.no_grad()
def _agreement(place: Place, dtype: str) -> Iterator[Row]:
    forms = Forms(place, dtype=dtype)
    clips = forms.clips(2)
    logits = {name: run(clips).double() for name, run in forms.calls.items()}
    model = forms.calls["moved"]
    assert isinstance(model, VideoClassifier)
    exact = model.double()(clips.double())
    yield {
        "largest_logit": exact.abs().max().item(),
        "difference": {
            name: (logits[name] - exact).abs().max().item()
            for name in ("moved", "indexed", "reads", "adapted")
            if name in logits
        },
    }


def peers(place: Place) -> Iterator[Case]:
    """The peers beside the plain image transformer, under the same compiler."""
    for strategy in PEERS:
        yield {"strategy": strategy}, partial(_peer, place, strategy)


def _peer(place: Place, strategy: str) -> Iterator[Row]:
    forms = Forms(place, strategy=strategy)
    for mode, count in (
        ("compiled and captured", 32),
        ("captured", 32),
        ("captured", 1),
        ("eager", 32),
        ("eager", 1),
    ):
        yield forms.timed(mode, count, rounds=20)


OTHERS: Final[tuple[Row, ...]] = (
    {"tower": TOWER, "dtype": "fp16"},
    {"tower": "vit_large_patch14_clip_quickgelu_224", "frames": 32},
    {"tower": "vit_small_patch14_reg4_dinov2", "tower_options": {"img_size": 224}},
    {"tower": "swin_base_patch4_window7_224", "tubelet": 2, "frames": 16},
    {"tower": TOWER, "dtype": "fp32"},
)


def others(place: Place) -> Iterator[Case]:
    """Other dtypes and towers, eager and captured."""
    for case in OTHERS:
        yield case, partial(_other, place, case)


def _other(place: Place, case: Row) -> Iterator[Row]:
    forms = Forms(place, **case)
    for mode, count in (("captured", 8), ("captured", 1), ("eager", 8), ("eager", 1)):
        yield forms.timed(mode, count, rounds=20)
