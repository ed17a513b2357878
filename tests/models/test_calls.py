"""Do threads, copies, replicas and graphs of a model give what the model gives?"""

from __future__ import annotations

import copy
import os
import pickle
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.towers_for_tests import FRAMES, TOWERS, noisy, random_clip, small_model
from zeroi2v import VideoClassifier, create_model
from zeroi2v.errors import ConfigError, MergeError, ZeroI2VError

WINDOWED = {
    "swin_tiny_patch4_window7_224": {
        "img_size": 64,
        "window_size": 4,
        "depths": (2, 1, 1, 1),
        "embed_dim": 24,
    },
    "samvit_base_patch16": {
        "img_size": 64,
        "depth": 2,
        "embed_dim": 48,
        "global_attn_indexes": (1,),
        "window_size": 2,
    },
}
KINDS = ["zeroi2v_tiny", "vit_small_plus_patch16_dinov3_qkvb", *WINDOWED]
SETTINGS: dict[str, dict[str, Any]] = {
    "zeroi2v": {"heads": "-1*1, 1*1/2"},
    "parts": {"sites": ("q", "k", "v", "proj")},
    "st_adapter": {"strategy": "st_adapter"},
    "temporal_heads": {"strategy": "temporal_heads"},
    "cls_shift": {"operator": "cls_shift", "ratio": 0.25},
    "evl": {"strategy": "evl"},
    "aim": {"strategy": "aim"},
    "st_adapter_published": {"strategy": "st_adapter_published", "sites": ("block", "mlp")},
    "joint": {"strategy": "joint"},
}


SHALLOW = {"img_size": 32, "depth": 2}  # a graph of two blocks has every kind of operation


def model_of(tower: str, **settings: Any) -> VideoClassifier:
    """A small model whose every weight matters."""
    torch.manual_seed(0)
    options = {"tower_options": {**TOWERS, **WINDOWED}[tower], **settings}
    return noisy(create_model(tower, num_classes=5, frames=FRAMES, **options))


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """PyTorch uses a single thread, because several threads may add numbers in another order."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@torch.no_grad()
def in_threads(model: VideoClassifier, threads: int, calls: int) -> None:
    """Threads call a model with batches of 1 to 5 clips, and get the logits of a single call."""
    clips = [random_clip(model, clips=count, seed=count) for count in range(1, 6)]
    expected = [model(clip) for clip in clips]

    def work(thread: int) -> list[bool]:
        numbers = [(thread + call) % 5 for call in range(calls)]
        with torch.no_grad():
            return [torch.equal(model(clips[number]), expected[number]) for number in numbers]

    with ThreadPoolExecutor(threads) as pool:
        assert all(all(same) for same in pool.map(work, range(threads)))


@pytest.mark.parametrize("merged", [False, True])
@pytest.mark.parametrize("tower", KINDS)
@pytest.mark.filterwarnings("ignore")  # timm's own, of small versions
def test_threads_of_different_batch_sizes_get_what_one_thread_gets(
    tower: str, merged: bool
) -> None:
    model = model_of(tower, heads="-1*1, 1*1/2")
    in_threads(model.merge() if merged else model, threads=8, calls=10)


@pytest.mark.slow
@pytest.mark.parametrize("tower", KINDS)
@pytest.mark.filterwarnings("ignore")
def test_eight_threads_of_fifty_calls_get_what_one_thread_gets(tower: str) -> None:
    in_threads(model_of(tower, heads="-1*1, 1*1/2").merge(), threads=8, calls=50)


@pytest.mark.parametrize("settings", SETTINGS.values(), ids=list(SETTINGS))
def test_every_strategy_can_be_called_from_threads(settings: dict[str, Any]) -> None:
    in_threads(model_of("zeroi2v_tiny", **settings), threads=4, calls=5)


def replica_of(module: nn.Module, weights: dict[str, Tensor]) -> nn.Module:
    """The copy that `torch.nn.parallel.replicate` makes of a module for one device.

    The copy shares all Python objects with the module, but has other weights and no parameters.
    """
    copies: dict[int, nn.Module] = {
        id(inner): inner._replicate_for_data_parallel() for inner in module.modules()
    }
    names = {id(inner): name for name, inner in module.named_modules()}
    for inner in module.modules():
        inner_copy: Any = copies[id(inner)]
        prefix = f"{names[id(inner)]}." if names[id(inner)] else ""
        for name, child in inner._modules.items():
            inner_copy._modules[name] = None if child is None else copies[id(child)]
        for name in (*inner._parameters, *inner._buffers):
            if getattr(inner, name) is not None:
                inner_copy._buffers.pop(name, None)
                setattr(inner_copy, name, weights.get(prefix + name, getattr(inner, name)))
    return copies[id(module)]


@pytest.mark.parametrize("settings", SETTINGS.values(), ids=list(SETTINGS))
def test_a_replica_uses_its_own_weights(settings: dict[str, Any]) -> None:
    model = model_of("zeroi2v_tiny", **settings)
    other = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.add_(torch.randn(parameter.shape), alpha=0.1)
    weights = {name: tensor.clone() for name, tensor in other.named_parameters()}
    replica: Any = replica_of(model, weights)
    clip = random_clip(model)
    torch.testing.assert_close(replica(clip), other(clip))
    assert not torch.allclose(replica(clip), model(clip), atol=1e-3)


@pytest.mark.parametrize("settings", SETTINGS.values(), ids=list(SETTINGS))
def test_copies_and_pickles_are_models_of_their_own(settings: dict[str, Any]) -> None:
    model = model_of("zeroi2v_tiny", **settings)
    clip = random_clip(model)
    expected = model(clip)
    copies = [copy.deepcopy(model), pickle.loads(pickle.dumps(model))]
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(1)
    for copied in copies:
        assert torch.equal(copied(clip), expected)
        assert copied.spec == model.spec


@pytest.mark.parametrize(
    "name",
    [
        "zeroi2v",
        "parts",
        pytest.param("temporal_heads", marks=pytest.mark.slow),
        pytest.param("cls_shift", marks=pytest.mark.slow),
    ],
)
@torch.no_grad()
def test_an_adapted_model_compiles_without_a_graph_break_and_exports(name: str) -> None:
    model = model_of("vit_tiny_patch16_224", tower_options=SHALLOW, **SETTINGS[name])
    torch._dynamo.reset()
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    batch = torch.export.Dim("batch")
    clips = random_clip(model), random_clip(model, clips=3)
    exported = torch.export.export(model, clips[:1], dynamic_shapes={"clip": {0: batch}}).module()
    for clip in clips:
        torch.testing.assert_close(compiled(clip), model(clip))
        torch.testing.assert_close(exported(clip), model(clip))


@pytest.mark.parametrize(
    "settings",
    [
        {"heads": "-1*1, 1*1, 2*1/2"},
        {"heads": [-1, 1], "operator": "hr_qkv"},
        {"heads": [-1, 1], "operator": "hr_v"},
        {"operator": "shift_kv", "ratio": 0.25},
        {"operator": "shift_qkv", "ratio": 1 / 6},
        {"operator": "cls_shift", "ratio": 0.25},
    ],
    ids=str,
)
@torch.no_grad()
def test_the_exported_graph_writes_nothing_in_place(settings: dict[str, Any]) -> None:
    model = model_of("vit_tiny_patch16_224", tower_options=SHALLOW, **settings).merge()
    clip = random_clip(model)
    exported = torch.export.export(model, (clip,))
    names = [str(node.target) for node in exported.graph.nodes if node.op == "call_function"]
    assert names
    for inplace in ("copy_", "index_put", "slice_scatter", "select_scatter", "index_copy"):
        assert not [name for name in names if inplace in name], inplace
    torch.testing.assert_close(exported.module()(clip), model(clip), rtol=1e-6, atol=1e-6)


@pytest.mark.filterwarnings("ignore")  # torch.jit is deprecated
def test_tracing_says_in_one_line_what_to_use() -> None:
    model = model_of("zeroi2v_tiny").merge()
    with pytest.raises(ZeroI2VError, match=r"torch\.export") as raised:
        torch.jit.trace(model, (random_clip(model),))
    assert "\n" not in str(raised.value)
    with pytest.raises(ZeroI2VError, match=r"torch\.export"):
        torch.onnx.export(model, (random_clip(model),), "never-written.onnx", dynamo=False)


def test_outside_of_a_call_the_tower_is_the_image_tower() -> None:
    model = model_of("vit_tiny_patch16_224", heads=[-1, 1])
    plain = small_model("vit_tiny_patch16_224").tower.eval()
    plain.load_state_dict(model.tower.state_dict())
    frames = random_clip(model).flatten(0, 1)
    assert torch.equal(model.tower(frames), plain(frames))


def test_a_hook_added_to_a_model_from_a_pickle_takes_the_place_of_no_other(tmp_path: Path) -> None:
    """In a fresh process PyTorch counts hooks from 0 again."""
    model = model_of("zeroi2v_tiny", heads=[-1, 1])
    clip = random_clip(model)
    torch.save({"model": model, "clip": clip, "logits": model(clip)}, tmp_path / "saved.pt")
    program = f"""
import torch
saved = torch.load({str(tmp_path / "saved.pt")!r}, weights_only=False)
model = saved["model"]
for module in model.modules():
    module.register_forward_hook(lambda *_: None)
    module.register_forward_pre_hook(lambda *_: None)
assert torch.equal(model(saved["clip"]), saved["logits"])
"""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    subprocess.run([sys.executable, "-c", program], check=True, env=environment)


def test_other_labels_make_a_model_of_its_own() -> None:
    model = model_of("zeroi2v_tiny")
    clip = random_clip(model)
    expected = model(clip)
    renamed = model.with_labels(["a", "b", "c", "d", "e"])
    assert (renamed.labels, model.labels[0]) == (("a", "b", "c", "d", "e"), "0")
    assert torch.equal(renamed(clip), expected)
    renamed.resize(frames=8)
    assert model.frames == 4
    assert torch.equal(model(clip), expected)
    for wrong in (["a"], ["a", "a", "b", "c", "d"], "abcde"):
        with pytest.raises(ConfigError, match="labels"):
            model.with_labels(wrong)


def test_a_merged_model_is_merged_once() -> None:
    with pytest.raises(MergeError, match="merged already"):
        model_of("zeroi2v_tiny").merge().merge()


@pytest.mark.parametrize("tower", KINDS)
@pytest.mark.filterwarnings("ignore")  # timm's own, of small versions
def test_the_gradient_of_all_moves_of_a_block_is_one_operation(tower: str) -> None:
    model = model_of(tower, heads="-1*1, 1*1/2")
    waiting = [model(random_clip(model)).sum().grad_fn]
    operations: dict[Any, str] = {}
    while waiting:
        operation = waiting.pop()
        if operation is not None and operation not in operations:
            operations[operation] = operation.name()
            waiting += [following for following, _ in operation.next_functions]
    temporal = [block for block in model.plan.blocks if block.moves]
    names = list(operations.values())
    assert names.count("_RelocateBackward") == len(temporal) > 0
    assert not any(name in ("CopySlices", "AsStridedBackward0") for name in names)
