"""Does a captured training step, or a step in bfloat16, learn what a plain step learns?"""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.towers_for_tests import noisy, small_model
from zeroi2v import VideoClassifier
from zeroi2v.config import TrainConfig
from zeroi2v.engine.captured import CapturedSteps, can_capture
from zeroi2v.engine.cast import CastWeights, cast_weights
from zeroi2v.engine.optim import build_optimizer
from zeroi2v.engine.processes import Processes
from zeroi2v.engine.spare import spared
from zeroi2v.engine.step import Learner, take_step
from zeroi2v.log import Log

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
    return Learner(**{**vars(learner), "cast": cast_weights(model, learner.dtype)})


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
    model = noisy(small_model(tower)).train()
    exact = copy.deepcopy(model).double()
    pixels, labels = batches(model, 2)[0]
    clip = torch.randn(pixels.shape)
    cross_entropy = torch.nn.functional.cross_entropy
    cross_entropy(exact(clip.double()), labels).backward()
    before = {name: weight.detach().clone() for name, weight in model.named_parameters()}

    def learn(cast: torch.nn.Module) -> Tensor:
        assert all(weight.dtype == torch.bfloat16 for weight in cast.parameters())
        loss = cross_entropy(cast(clip.bfloat16()).float(), labels)
        loss.backward()
        return loss.detach()

    with spared(model, TrainConfig(checkpointing=checkpointing)):
        CastWeights(model, torch.bfloat16).call(learn)
    gradients, exact_gradients = [], []
    for (name, weight), (_, expected) in zip(
        model.named_parameters(), exact.named_parameters(), strict=True
    ):
        assert torch.equal(weight, before[name])
        assert (weight.grad is None) == (expected.grad is None) == (not weight.requires_grad), name
        if weight.grad is not None and expected.grad is not None:
            assert weight.grad.dtype == torch.float32
            gradients.append(weight.grad.flatten())
            exact_gradients.append(expected.grad.flatten())
    exact_gradient = torch.cat(exact_gradients)
    difference = (torch.cat(gradients) - exact_gradient).norm() / exact_gradient.norm()
    assert difference < 0.1


def test_only_one_process_on_a_gpu_captures() -> None:
    learner = learner_of(small_model("zeroi2v_tiny"), "cpu")
    assert not can_capture(learner)
    assert learner.cast is None


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
def test_fp16_and_settings_take_steps_one_by_one() -> None:
    model = small_model("zeroi2v_tiny")
    assert not can_capture(learner_of(model, "cuda", precision="fp16"))
    assert not can_capture(learner_of(model, "cuda", compile=False))
