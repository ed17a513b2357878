"""Does a captured training step, or a step in bfloat16, learn what a plain step learns?"""

from __future__ import annotations

import copy
import gc
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from tests.models.test_calls import SETTINGS, WINDOWED, model_of
from tests.towers_for_tests import noisy, random_clip, small_model
from zeroi2v import VideoClassifier, create_model
from zeroi2v.config import ClipConfig, Recipe, TrainConfig
from zeroi2v.data.datasets import open_dataset
from zeroi2v.engine import run
from zeroi2v.engine.captured import CapturedSteps, can_capture
from zeroi2v.engine.cast import CastWeights, cast_weights
from zeroi2v.engine.folder import RunFolder
from zeroi2v.engine.optim import build_optimizer
from zeroi2v.engine.processes import Processes
from zeroi2v.engine.spare import spared
from zeroi2v.engine.step import Learner, take_step
from zeroi2v.inference.scores import normalise
from zeroi2v.log import Log
from zeroi2v.measure.count import count_kernels
from zeroi2v.measure.pretended import pretended
from zeroi2v.method import kernels

TOWER = "vit_small_plus_patch16_dinov3_qkvb"


def learner_of(model: VideoClassifier, device: str, **settings: Any) -> Learner:
    """A learner with AdamW for a model."""
    config = TrainConfig(batch_size=4, **{"precision": "fp32", "compile": True, **settings})
    model = model.to(device).train()
    learner = Learner(
        processes=Processes(torch.device(device)),
        model=model,
        spec=model.spec,
        optimizer=build_optimizer(model, learning_rate=1e-3, weight_decay=0.05),
        scaler=torch.amp.GradScaler(device, enabled=config.precision == "fp16"),
        settings=config,
    )
    clip_shape = (model.frames, 3, model.image_size, model.image_size)
    return Learner(**{**vars(learner), "cast": cast_weights(model, learner.dtype, clip_shape)})


def batches(model: VideoClassifier, *sizes: int) -> list[tuple[Tensor, Tensor]]:
    """Random clips of pixels and labels, batch by batch."""
    generator = torch.Generator().manual_seed(3)
    side = model.image_size
    return [
        (
            torch.randint(
                256, (size, model.frames, 3, side, side), generator=generator, dtype=torch.uint8
            ),
            torch.randint(5, (size,), generator=generator),
        )
        for size in sizes
    ]


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("tower", ["vit_base_patch16_clip_quickgelu_224", TOWER])
def test_weights_in_bfloat16_give_gradients_in_float32(tower: str, checkpointing: bool) -> None:
    """Against float64. Autocast, which rounds fewer tensors, sets the measure of the distance."""
    model = noisy(small_model(tower)).train()
    exact = copy.deepcopy(model).double()
    pixels, labels = batches(model, 2)[0]
    clip = torch.randn(pixels.shape)
    cross_entropy = torch.nn.functional.cross_entropy
    cross_entropy(exact(clip.double()), labels).backward()
    automatic = copy.deepcopy(model)
    with torch.autocast("cpu", torch.bfloat16):
        logits = automatic(clip)
    cross_entropy(logits.float(), labels).backward()
    before = {name: weight.detach().clone() for name, weight in model.named_parameters()}

    def learn(cast: torch.nn.Module) -> Tensor:
        assert all(weight.dtype == torch.bfloat16 for weight in cast.parameters())
        loss = cross_entropy(cast(clip.bfloat16()).float(), labels)
        loss.backward()
        return loss.detach()

    with spared(model, TrainConfig(checkpointing=checkpointing)):
        CastWeights(model, torch.bfloat16).call(learn)
    for (name, weight), (_, expected) in zip(
        model.named_parameters(), exact.named_parameters(), strict=True
    ):
        assert torch.equal(weight, before[name])
        assert (weight.grad is None) == (expected.grad is None) == (not weight.requires_grad), name
        assert weight.grad is None or weight.grad.dtype == torch.float32
    gradient, by_autocast, exact_gradient = map(all_gradients, (model, automatic, exact))
    distance, distance_by_autocast = (
        (vector - exact_gradient).norm() for vector in (gradient, by_autocast)
    )
    assert distance < 3 * distance_by_autocast
    assert distance < 0.2 * exact_gradient.norm()


def all_gradients(model: torch.nn.Module) -> Tensor:
    """The gradients of all weights that train, as one vector."""
    gradients = [weight.grad for weight in model.parameters() if weight.grad is not None]
    return torch.cat([gradient.flatten().double() for gradient in gradients])


@pytest.mark.parametrize(
    ("tower", "needs_cast_buffers"),
    [
        ("vit_tiny_patch16_224", False),
        ("vit_relpos_small_patch16_224", True),  # a small network reads a buffer of positions
        ("swin_tiny_patch4_window7_224", True),  # a mask of shifted windows is a buffer
    ],
)
def test_buffers_are_cast_where_a_tower_cannot_compute_otherwise(
    tower: str, needs_cast_buffers: bool
) -> None:
    model = model_of(tower).train()
    clip = random_clip(model, clips=1)
    before = copy.deepcopy(model.state_dict())
    assert CastWeights(model, torch.bfloat16).fit(clip) is not needs_cast_buffers
    assert CastWeights(model, torch.bfloat16, casts_buffers=True).fit(clip)
    assert model.training
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


class HostCopies(TorchDispatchMode):
    """While active, keeps the operations that copy a tensor between the host and a GPU."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # PyTorch's
        self.names: list[str] = []

    def __torch_dispatch__(
        self, operation: Any, types: Any, arguments: Any = (), settings: Any = None
    ) -> Any:
        outputs = operation(*arguments, **(settings or {}))
        inputs, made = (
            {leaf.device.type for leaf in tree_leaves(values) if isinstance(leaf, Tensor)}
            for values in ((arguments, settings), outputs)
        )
        reads_number = "_local_scalar_dense" in str(operation)
        if reads_number or ("copy" in str(operation) and inputs and made and inputs != made):
            self.names.append(str(operation))
        return outputs


@pytest.mark.parametrize(
    ("tower", "settings"),
    [
        *(("vit_base_patch16_clip_quickgelu_224", settings) for settings in SETTINGS.values()),
        *((tower, {}) for tower in WINDOWED),
    ],
)
def test_no_forward_pass_makes_the_host_wait_for_a_gpu(
    tower: str, settings: dict[str, Any]
) -> None:
    model = model_of(tower, **settings).train()
    spec = model.spec
    size = (2, model.frames, 3, model.image_size, model.image_size)
    with pretended(model, "cuda") as on_gpu, spared(on_gpu, TrainConfig()):
        pixels = torch.empty(size, dtype=torch.uint8, device="cuda")
        on_gpu(normalise(pixels, spec.mean, spec.std))  # the first call may copy constants
        with HostCopies() as copies:
            on_gpu(normalise(pixels, spec.mean, spec.std))
    assert copies.names == []


@pytest.mark.parametrize(("by_kernel", "kernels_at_most"), [(False, 1000), (True, 892)])
def test_a_step_in_bfloat16_is_a_thousand_kernels(
    by_kernel: bool, kernels_at_most: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """ViT-B/16, 8 clips of 8 frames, before the optimiser moves the weights."""
    if by_kernel:
        pytest.importorskip("triton")
        monkeypatch.setattr(kernels, "MOVES", True)
        monkeypatch.setattr(kernels, "moves", lambda *_: True)
    with torch.device("meta"):
        model = create_model(
            "vit_base_patch16_clip_quickgelu_224", num_classes=400, frames=8, heads=[-1, 1]
        ).train()
    with pretended(model, "cpu") as counted, spared(counted, TrainConfig()):
        counted.moves_by_index = True  # as on a GPU, for which autograd pretends no backward pass
        weights = CastWeights(counted, torch.bfloat16)
        pixels = torch.empty(8, 8, 3, 224, 224, dtype=torch.uint8)
        labels = torch.zeros(8, dtype=torch.long)

        def learn(cast: torch.nn.Module) -> Tensor:
            clips = normalise(pixels, model.spec.mean, model.spec.std, torch.bfloat16)
            loss = torch.nn.functional.cross_entropy(cast(clips).float(), labels)
            loss.backward()
            return loss.detach()

        weights.call(learn)  # the first step works out what the next steps use
        counted.zero_grad()
        count = count_kernels(lambda: weights.call(learn))
    assert len(count.kernels) <= kernels_at_most
    assert count.moved <= 46e9


def test_batch_norms_keep_their_statistics_in_float32() -> None:
    norm = torch.nn.BatchNorm2d(4)
    model = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 1), norm)
    weights = CastWeights(model, torch.bfloat16, casts_buffers=True)
    pixels = torch.randn(2, 3, 4, 4)
    expected = copy.deepcopy(model)(pixels)

    def learn(cast: torch.nn.Module) -> Tensor:
        output: Tensor = cast(pixels.bfloat16())
        output.square().sum().backward()
        return output.detach()

    output = weights.call(learn)
    assert output.dtype == torch.bfloat16
    torch.testing.assert_close(output.float(), expected, rtol=0.05, atol=0.05)
    mean = norm.running_mean
    assert mean is not None
    assert mean.dtype == torch.float32
    assert mean.abs().max() > 0  # the model's own statistics move
    assert all(weight.grad is not None for weight in model.parameters())


def test_only_one_process_on_a_gpu_captures() -> None:
    learner = learner_of(small_model("zeroi2v_tiny"), "cpu")
    assert not can_capture(learner)
    assert learner.cast is None


def test_a_failed_capture_frees_the_cast_weights(
    motion_videos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No GPU is here: that steps can be captured is pretended, and that the capture fails."""
    monkeypatch.setattr(run, "can_capture", lambda _: True)
    cast = CastWeights(small_model("zeroi2v_tiny"), torch.bfloat16)
    held = weakref.ref(cast)
    made = [cast]
    monkeypatch.setattr(run, "cast_weights", lambda *_: made.pop())
    del cast
    recipe = Recipe(clip=ClipConfig(frames=4), train=TrainConfig(workers=0))
    training = run.Training(
        recipe=recipe,
        dataset=open_dataset(motion_videos),
        excluded=(),
        folder=RunFolder(tmp_path, writes=True),
        resumes=False,
        processes=Processes(torch.device("cpu")),
        log=Log(silent=True),
    )
    training.speed_up()
    gc.collect()
    captured = training.captured
    assert captured is not None
    assert held() is captured.learner.cast is not None
    captured.give_up(RuntimeError("out of memory"))
    gc.collect()
    assert captured.failed
    assert held() is None


@pytest.mark.gpu
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("settings", [{}, {"accumulate": 2}, {"gradient_clip": 0.1}])
def test_captured_steps_learn_what_plain_steps_learn(
    precision: str, settings: dict[str, Any]
) -> None:
    """Ragged batches lie between the full batches, and the learning rate changes."""
    start = noisy(small_model("vit_base_patch16_clip_quickgelu_224"))
    plain, captured = (
        learner_of(copy.deepcopy(start), "cuda", precision=precision, **settings) for _ in range(2)
    )
    assert can_capture(captured)
    replay = CapturedSteps(captured, Log(silent=True))
    losses: list[tuple[float, float]] = []
    with spared(plain.model, plain.settings), spared(captured.model, captured.settings):  # type: ignore[arg-type]
        for number, (clips, labels) in enumerate(batches(start, 4, 4, 3, 4, 1, 4)):
            rate = 1e-3 * (number + 1)
            losses.append(
                (
                    float(take_step(plain, clips, labels, rate).loss),
                    float(replay(clips, labels, rate).loss),
                )
            )
    assert replay.captured is not None
    tolerance = 1e-4 if precision == "fp32" else 2e-2
    for expected, loss in losses:
        assert loss == pytest.approx(expected, rel=tolerance)
    for expected_weight, weight in zip(
        plain.model.parameters(), captured.model.parameters(), strict=True
    ):
        assert (weight - expected_weight).abs().max() <= 0.02


@pytest.mark.gpu
def test_a_capture_leaves_weights_moments_and_random_numbers_alone() -> None:
    learner = learner_of(noisy(small_model("zeroi2v_tiny")), "cuda")
    (first, labels), (second, other_labels) = batches(learner.model, 4, 4)  # type: ignore[arg-type]
    take_step(learner, first, labels, 1e-3)
    weights = [weight.detach().clone() for weight in learner.model.parameters()]
    moments = [
        value.clone() for state in learner.optimizer.state.values() for value in state.values()
    ]
    random = torch.cuda.get_rng_state()
    replay = CapturedSteps(learner, Log(silent=True))
    replay._capture(second, other_labels)
    assert all(map(torch.equal, weights, learner.model.parameters()))
    states = learner.optimizer.state.values()
    assert all(map(torch.equal, moments, (v for state in states for v in state.values())))
    assert torch.equal(random, torch.cuda.get_rng_state())


@pytest.mark.gpu
def test_steps_that_make_the_host_wait_are_not_captured() -> None:
    learner = learner_of(noisy(small_model("zeroi2v_tiny")), "cuda")
    learner.model.register_forward_hook(lambda _, __, logits: logits * float(logits.sum() * 0 + 1))
    replay = CapturedSteps(learner, Log(silent=True))
    (clips, labels), (others, other_labels) = batches(learner.model, 4, 4)  # type: ignore[arg-type]
    before = copy.deepcopy(learner.model.state_dict())
    replay._capture(clips, labels)
    assert replay.failed
    after = learner.model.state_dict()
    assert all(torch.equal(tensor, after[name]) for name, tensor in before.items())
    assert float(replay(others, other_labels, 1e-3).loss) > 0


@pytest.mark.gpu
def test_fp16_and_settings_take_steps_one_by_one() -> None:
    model = small_model("zeroi2v_tiny")
    assert not can_capture(learner_of(model, "cuda", precision="fp16"))
    assert not can_capture(learner_of(model, "cuda", compile=False))
