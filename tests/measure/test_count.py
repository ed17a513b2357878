"""Are kernels, bytes and multiply-adds those that a GPU would see? Without a GPU."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.flop_counter import register_flop_formula

from tests.towers_for_tests import TOWERS
from zeroi2v import create_model
from zeroi2v.config import Recipe
from zeroi2v.errors import ConfigError
from zeroi2v.log import Log
from zeroi2v.measure.cost import count_macs
from zeroi2v.measure.count import KernelCount, count_kernels
from zeroi2v.measure.count_models import card_for, count_models, count_subject
from zeroi2v.measure.pretended import pretended
from zeroi2v.measure.subjects import Subject, build_subjects
from zeroi2v.recipes import override

META = torch.device("meta")
QUIET = Log(quiet=True)
H100 = card_for("bf16", bandwidth=None, rate=None)
# Milliseconds of a forward pass of ViT-B/16 on 32 clips of 8 frames in bf16: one H100, torch 2.11
MEASURED = {
    "plain": 30.08,
    "zeroi2v:merged": 31.21,
    "st_adapter_published": 40.50,
    "zeroi2v": 42.45,
    "evl": 48.73,
    "aim": 59.47,
}


def counted(call: Callable[[Tensor], object], *shape: int) -> KernelCount:
    """The kernels of a call with an fp32 tensor of this shape on a GPU that is not there."""
    with pretended(nn.Module(), "cuda"), torch.no_grad():
        x = torch.empty(shape, device="cuda")
        return count_kernels(lambda: call(x))


def bytes_of(call: Callable[[Tensor], object], *shape: int) -> list[int]:
    """The bytes of each kernel of a call, in fp32 numbers."""
    return [kernel.moved // 4 for kernel in counted(call, *shape).kernels]


def test_a_chain_of_layers_is_counted_as_by_hand() -> None:
    rows, narrow, wide = 64, 32, 256
    layers = nn.Sequential(nn.Linear(narrow, wide), nn.ReLU(), nn.Linear(wide, narrow))
    with pretended(layers.bfloat16(), "cuda") as module, torch.no_grad():
        x = torch.empty(rows, narrow, dtype=torch.bfloat16, device="cuda")
        count = count_kernels(lambda: module(x))
    linears = [rows * narrow + narrow * wide + rows * wide + bias for bias in (wide, narrow)]
    assert [kernel.name for kernel in count.kernels] == ["aten.addmm", "aten.relu", "aten.addmm"]
    assert count.moved == 2 * (sum(linears) + 2 * rows * wide)
    assert count.macs == 2 * rows * narrow * wide
    slow = card_for("bf16", bandwidth=1e-9, rate=1e6)
    assert count.least_seconds(slow) == pytest.approx(count.moved / 1000, rel=1e-6)
    late = card_for("bf16", bandwidth=1e6, rate=1e6)
    assert count.least_seconds(late) == pytest.approx(3 * 3e-6)
    assert all(not parameter.is_meta for parameter in layers.parameters())  # the module is a copy


@pytest.mark.parametrize(
    ("call", "kernels"),
    [
        (lambda x: x.view(-1)[5:].unflatten(0, (5, 19)).T, []),
        (lambda x: x.reshape(20, 5).expand(3, 20, 5).detach(), []),
        (lambda x: (torch.empty_like(x), x.new_empty(7), x.shape, x.device), []),
        (lambda x: x + 1, [200]),
        (lambda x: x.add_(1), [200]),
        (lambda x: x.add_(x), [300]),
        (lambda x: x.zero_(), [100]),
        (lambda x: x[:5].fill_(1), [50]),
        (lambda x: x[:5].copy_(x[5:]), [100]),
        (lambda x: x[:1].expand(10, 10).clone(), [110]),
        (lambda x: torch.cat([x, x[:2]]), [240]),
        (lambda x: torch.mul(x, 2, out=torch.empty_like(x)), [200]),
        (lambda x: x[0].sum(), [11]),
        (lambda x: x.T.reshape(4, 25), [200]),
        (lambda x: x.to(torch.float16), [150]),
        (lambda x: F.layer_norm(x, (10,)), [220]),
        (lambda x: x.index_select(0, x.new_empty(2, dtype=torch.int32)), [42]),
        (lambda x: x[x.new_empty(3, dtype=torch.int64)], [66]),
        (lambda x: x.index_copy_(0, x.new_empty(3, dtype=torch.int64), x[:3]), [66]),
        (lambda x: x.index_put_((x.new_empty(3, dtype=torch.int64),), x[:3]), [66]),
        (lambda x: x.index_put_((x.new_empty(3, dtype=torch.int64),), x[0, 0]), [37]),
    ],
)
def test_a_kernel_reads_its_inputs_and_writes_its_outputs_once(
    call: Callable[[Tensor], object], kernels: list[int]
) -> None:
    assert bytes_of(call, 10, 10) == kernels


@pytest.mark.parametrize("masked", [False, True])
def test_attention_is_one_kernel_forward_and_one_backward(masked: bool) -> None:
    pictures, heads, queries, keys, width, value_width = 2, 3, 5, 7, 4, 6
    original = F.scaled_dot_product_attention
    with pretended(nn.Module(), "cpu"):
        q = torch.empty(pictures, heads, queries, width, requires_grad=True)
        k = torch.empty(pictures, heads, keys, width, requires_grad=True)
        v = torch.empty(pictures, heads, keys, value_width, requires_grad=True)
        mask = torch.empty(heads, queries, keys, requires_grad=True) if masked else None
        forward = count_kernels(lambda: F.scaled_dot_product_attention(q, k, v, mask, scale=2.0))
        output = F.scaled_dot_product_attention  # outside of a count nothing is exchanged
        assert output is original

        def step() -> None:
            F.scaled_dot_product_attention(q, k, v, attn_mask=mask).mean().backward()

        both = count_kernels(step)
        learning = [tensor for tensor in (q, k, v, mask) if tensor is not None]
        assert all(
            tensor.grad is not None and tensor.grad.shape == tensor.shape for tensor in learning
        )
    sizes = sum(tensor.nbytes for tensor in learning)
    out = 4 * pictures * heads * queries * value_width
    macs = pictures * heads * queries * keys * (width + value_width)
    (kernel,) = forward.kernels
    assert (kernel.moved, kernel.macs) == (sizes + out, macs)
    (backward,) = (kernel for kernel in both.kernels if kernel.name.endswith("backward"))
    assert (backward.moved, backward.macs) == (2 * sizes + 2 * out, 2.5 * macs)


def test_an_error_in_a_counted_call_leaves_attention_as_it_was() -> None:
    original = F.scaled_dot_product_attention

    def broken(x: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(x, x, x) @ x.new_empty(3)

    with pytest.raises(RuntimeError):
        counted(broken, 1, 1, 4, 4)
    assert F.scaled_dot_product_attention is original


def test_attention_inside_a_module_of_pytorch_is_found() -> None:
    attention = nn.MultiheadAttention(8, 2, batch_first=True)
    with pretended(attention, "cuda") as module, torch.no_grad():
        x = torch.empty(2, 5, 8, device="cuda")
        count = count_kernels(lambda: module(x, x, x, need_weights=False))
    assert count.by_name()["zeroi2v.counted_attention"] == (1, 4 * 4 * 2 * 5 * 8)


@torch.library.custom_op("zeroi2v::test_sum", mutates_args=())
def sum_of(first: Tensor, others: list[Tensor], times: int) -> tuple[Tensor, Tensor]:
    raise NotImplementedError


@sum_of.register_fake
def _(first: Tensor, others: list[Tensor], times: int) -> tuple[Tensor, Tensor]:
    body = first + 1 + others[0]  # whatever the body does, a kernel does it at once
    return body.clone(), first.new_empty(times)


@register_flop_formula(torch.ops.zeroi2v.test_sum)
def _(first: Any, *_: object, **__: object) -> int:
    return 2 * int(first[0]) ** 3


@torch.library.custom_op("zeroi2v::test_move", mutates_args=("changed",))
def move(changed: Tensor, offset: int) -> None:
    raise NotImplementedError


@move.register_fake
def _(changed: Tensor, offset: int) -> None:
    return None


def test_an_operator_of_our_own_is_one_kernel_with_its_inputs_and_outputs() -> None:
    (kernel,) = counted(lambda x: sum_of(x, [x[0], x[:2]], 3), 10, 10).kernels
    assert kernel.name == "zeroi2v.test_sum"
    assert kernel.moved == 4 * (100 + 10 + 20 + 100 + 3)
    assert kernel.macs == 1000
    assert bytes_of(lambda x: move(x, 1), 10, 10) == [200]  # read and written
    assert bytes_of(lambda x: move(x[:, 3:5], 1), 10, 10) == [40]  # what moves, of a larger tensor


@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="needs Triton")
def test_an_operator_that_starts_a_kernel_of_triton_is_one_kernel(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("TRITON_INTERPRET", "0")  # an operator starts a kernel to be compiled
    import triton
    import triton.language as tl

    @triton.jit  # type: ignore[misc, untyped-decorator, unused-ignore]
    def double(source: Any, target: Any, size: Any, block: tl.constexpr) -> None:
        places = tl.program_id(0) * block + tl.arange(0, block)
        inside = places < size
        tl.store(target + places, 2 * tl.load(source + places, mask=inside), mask=inside)

    @torch.library.triton_op("zeroi2v::test_double", mutates_args=())
    def doubled(x: Tensor) -> Tensor:
        out = torch.empty_like(x)
        torch.library.wrap_triton(double)[(1,)](x, out, x.numel(), 128)
        return out

    assert bytes_of(doubled, 10, 10) == [200]
    assert bytes_of(lambda x: doubled(x) + 1, 10, 10) == [200, 200]


@pytest.mark.parametrize(
    ("tower", "strategy"),
    [
        *((tower, "zeroi2v") for tower in TOWERS),
        ("swin_tiny_patch4_window7_224", "zeroi2v"),
        ("vit_tiny_patch16_224", "lora"),
        ("vit_base_patch16_clip_quickgelu_224", "evl"),
        ("vit_base_patch16_clip_quickgelu_224", "aim"),
        ("vit_tiny_patch16_224", "joint"),
    ],
)
def test_the_multiply_adds_are_those_of_pytorchs_counter(tower: str, strategy: str) -> None:
    options = TOWERS.get(tower, {})
    model = create_model(
        tower, num_classes=5, frames=4, strategy=strategy, tower_options=options
    ).eval()
    shape = (2, model.frames, 3, model.image_size, model.image_size)
    with pretended(model, "cuda") as copied, torch.no_grad():
        clips = torch.empty(shape, device="cuda")
        count = count_kernels(lambda: copied(clips))
    model.to("meta").requires_grad_(False)
    assert count.macs == count_macs(model, torch.empty(shape, device="meta"))


def test_a_training_step_has_three_times_the_products_of_a_linear() -> None:
    with pretended(nn.Sequential(nn.Linear(8, 16), nn.Linear(16, 8)), "cpu") as layers:
        x = torch.empty(4, 8, requires_grad=True)
        count = count_kernels(lambda: layers(x).sum().backward())
    assert count.macs == 3 * 2 * 4 * 8 * 16


def vit_base(*names: str) -> list[Subject]:
    recipe = override(Recipe(), ['model.tower="vit_base_patch16_clip_quickgelu_224"'])
    return build_subjects(names, [], recipe, device=META, dtype="bf16", log=QUIET)


def test_the_least_times_are_near_the_times_of_a_gpu_and_in_their_order() -> None:
    """The card's values are fitted to these times, so only the order and the spread are telling."""
    times = {
        subject.name: 1000 * count_subject(subject, 32, "bf16").least_seconds(H100)
        for subject in vit_base(*MEASURED)
    }
    assert sorted(times, key=times.__getitem__) == list(MEASURED)
    for name, time in times.items():
        assert time == pytest.approx(MEASURED[name], rel=0.2)


def test_merging_leaves_the_multiply_adds_of_the_tower_and_classifier() -> None:
    plain, merged = (count_subject(one, 1, "bf16") for one in vit_base("plain", "zeroi2v:merged"))
    assert merged.macs - plain.macs == 768 * 400
    assert plain.macs == pytest.approx(8 * 17.56e9, rel=0.01)  # a GFLOP of the paper


def test_what_is_counted_is_kept_when_a_later_model_fails() -> None:
    first, second = vit_base("plain", "zeroi2v")

    def broken(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        raise RuntimeError("no kernel for these tensors")

    assert isinstance(second.run, nn.Module)
    second.run.register_forward_pre_hook(broken)
    kept: list[list[str]] = []
    with pytest.raises(RuntimeError, match="no kernel"):
        count_models(
            [first, second],
            dtype="bf16",
            batches=[1],
            card=H100,
            on_progress=lambda result: kept.append([model["name"] for model in result["models"]]),
            log=QUIET,
        )
    assert kept == [["plain"]]


@pytest.mark.parametrize("value", [0.0, -1.0, float("inf"), float("nan")])
def test_a_card_has_a_rate_and_a_bandwidth(value: float) -> None:
    with pytest.raises(ConfigError, match="--rate must be above 0, and finite"):
        card_for("fp32", bandwidth=None, rate=value)
    with pytest.raises(ConfigError, match="--bandwidth must be above 0, and finite"):
        card_for("fp32", bandwidth=value, rate=None)
