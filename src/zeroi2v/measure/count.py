"""Which kernels does a call start on a GPU, and what do they move and multiply?

No GPU is needed: the tensors of a counted call have shapes and no values (`pretended`), so nothing
is computed. An operation that makes a view or allocates memory starts no kernel; every other
operation starts one. A kernel reads its inputs and writes its outputs once. An operation registered
with torch.library is one kernel like PyTorch's own operations, whatever its body does; its author
states its multiply-adds with `torch.utils.flop_counter.register_flop_formula`.

A count cannot see the time that Python takes between two kernels.

Shapes of attention: B pictures, H heads, N queries, M keys, D channels of queries and keys, E of
values.
"""

from __future__ import annotations

import collections
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry, register_flop_formula

aten = torch.ops.aten
ALLOCATIONS: Final = frozenset(
    {
        aten.empty,
        aten.empty_like,
        aten.empty_strided,
        aten.new_empty,
        aten.new_empty_strided,
        aten.lift,
        aten.lift_fresh,
        aten._unsafe_view,  # a view, although its schema does not say so
    }
)
# Operations that do not read the tensor that they change.
OVERWRITING: Final = frozenset({aten.copy_, aten.fill_, aten.zero_})
# These operations read as many elements of their first input as they write, at places that an index
# names.
GATHERING: Final = frozenset({aten.index, aten.index_select, aten.gather, aten.embedding})
# These operations write elements of their first input at places that an index names, and read none.
SCATTERING: Final = frozenset({aten.index_put_, aten.index_copy_})


@dataclass(frozen=True, kw_only=True)
class Card:
    """The speeds that a GPU reaches with vision transformers.

    They decide the least time of a call.
    """

    bytes_per_second: float
    operations_per_second: float  # a multiply-add is two operations
    seconds_per_kernel: float  # the least time of a kernel


@dataclass(frozen=True)
class Kernel:
    """One kernel of a call."""

    name: str  # of the operation that starts the kernel, such as "aten.addmm"
    moved: int  # bytes, read and written
    macs: int  # multiply-adds of matrix products, convolutions and attention

    def least_seconds(self, card: Card) -> float:
        """The longest of three times: to move the bytes, to compute, and to start the kernel."""
        return max(
            self.moved / card.bytes_per_second,
            2 * self.macs / card.operations_per_second,
            card.seconds_per_kernel,
        )


@dataclass(frozen=True)
class KernelCount:
    """The kernels of a call, in the order of their start."""

    kernels: Sequence[Kernel]

    @property
    def moved(self) -> int:
        """The bytes that all kernels read and write."""
        return sum(kernel.moved for kernel in self.kernels)

    @property
    def macs(self) -> int:
        """The multiply-adds of all kernels."""
        return sum(kernel.macs for kernel in self.kernels)

    def least_seconds(self, card: Card) -> float:
        """The time that a card needs at least: the kernels one after the other, without gaps."""
        return sum(kernel.least_seconds(card) for kernel in self.kernels)

    def by_name(self) -> dict[str, tuple[int, int]]:
        """The number of kernels and the bytes that they move, by operation, most bytes first."""
        numbers: collections.Counter[str] = collections.Counter()
        moved: collections.Counter[str] = collections.Counter()
        for kernel in self.kernels:
            numbers[kernel.name] += 1
            moved[kernel.name] += kernel.moved
        return {name: (numbers[name], size) for name, size in moved.most_common()}


def count_kernels(call: Callable[[], object]) -> KernelCount:
    """The kernels that a call starts. The call must use a module that is `pretended`.

    Call a model within `torch.no_grad`; `torch.inference_mode` hides operations from the count. A
    backward pass is counted on a module that is pretended on "cpu", where attention counts as it
    does on a GPU.
    """
    with _fused_attention(), _KernelCounter() as counter:
        call()
    return KernelCount(counter.kernels)


class _KernelCounter(TorchDispatchMode):
    """While active, keeps the kernel of every operation that starts one."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # PyTorch's
        self.kernels: list[Kernel] = []

    def __torch_dispatch__(
        self,
        operation: Any,
        types: Any,
        arguments: Sequence[Any] = (),
        settings: Mapping[str, Any] | None = None,
    ) -> Any:
        """Do an operation, and keep its kernel."""
        settings = settings or {}
        outputs = operation(*arguments, **settings)
        packet = operation.overloadpacket
        changes_tensors = bool(_tensors(outputs)) or operation._schema.is_mutable
        if not changes_tensors or operation.is_view or packet in ALLOCATIONS:
            return outputs
        macs = 0
        if packet in flop_registry:
            macs = flop_registry[packet](*arguments, **settings, out_val=outputs) // 2
        moved = _moved(operation, packet, arguments, settings, outputs)
        self.kernels.append(Kernel(str(packet), moved, macs))
        return outputs


def _moved(
    operation: Any,
    packet: Any,
    arguments: Sequence[Any],
    settings: Mapping[str, Any],
    outputs: object,
) -> int:
    """The bytes that the kernel of an operation reads and writes.

    A tensor that the operation changes is read and written; a tensor that the operation only fills
    is written.
    """
    if str(packet) == "zeroi2v.move_":  # method/kernels/move.py; Triton need not be installed
        projected, runs, width = arguments[:3]
        share: float = runs.shape[1] * width / projected.shape[-1]  # of the channels
        return _touched(runs) + round(2 * share * _touched(projected))
    if packet in SCATTERING:
        others = _tensors(arguments)[1:]  # indices and values
        # the values of `index_put_` may be broadcast
        written = aten.index(*arguments[:2]) if packet is aten.index_put_ else others[-1]
        return sum(map(_touched, others)) + _touched(written)
    read = written = 0
    returned = {id(tensor) for tensor in _tensors(outputs)}
    for number, parameter in enumerate(operation._schema.arguments):
        value = arguments[number] if number < len(arguments) else settings.get(parameter.name)
        sizes = {id(tensor): _touched(tensor) for tensor in _tensors(value)}
        changes = parameter.alias_info is not None and parameter.alias_info.is_write
        if not (changes and (packet in OVERWRITING or parameter.is_out)):
            read += sum(sizes.values())
        if changes:
            written += sum(size for key, size in sizes.items() if key not in returned)
    written += sum(_touched(tensor) for tensor in _tensors(outputs))
    if packet in GATHERING:
        read += written - _touched(arguments[0])
    return read + written


def _touched(tensor: Tensor) -> int:
    """The bytes of a tensor that a kernel touches: an axis that is broadcast counts once."""
    sizes = zip(tensor.shape, tensor.stride(), strict=True)
    elements = 1
    for size, stride in sizes:
        elements *= size if stride or not size else 1
    return elements * tensor.element_size()


def _tensors(values: object) -> list[Tensor]:
    return [value for value in tree_leaves(values) if isinstance(value, Tensor)]


@contextmanager
def _fused_attention() -> Iterator[None]:
    """Within the block `scaled_dot_product_attention` is one kernel, as it is on a GPU.

    PyTorch would ask the GPU, which is not there, whether it has such a kernel. The function is
    exchanged in its module, since a TorchFunctionMode misses the calls of nn.MultiheadAttention.
    """
    original = F.scaled_dot_product_attention
    F.scaled_dot_product_attention = _attention
    try:
        yield
    finally:
        F.scaled_dot_product_attention = original


def _attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    *_: object,  # settings that change neither kernel nor shapes
    **__: object,
) -> Tensor:
    """The output of `scaled_dot_product_attention`, without values, after the casts of autocast.

    A causal kernel is counted with all products, also those that the causal mask leaves out.
    """
    device = query.device.type
    if torch.is_autocast_enabled(device):
        dtype = torch.get_autocast_dtype(device)
        query, key, value = query.to(dtype), key.to(dtype), value.to(dtype)
    output: Tensor = attention_kernel(query, key, value, attn_mask)
    return output


@torch.library.custom_op("zeroi2v::counted_attention", mutates_args=())
def attention_kernel(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
    """Fused attention in a count: (B, H, N, D), (B, H, M, D) and (B, H, M, E) give (B, H, N, E)."""
    raise NotImplementedError("attention that is counted has no values")


@attention_kernel.register_fake
def _(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
    shape = (*query.shape[:-1], value.shape[-1])
    if len(shape) != 4:
        return query.new_empty(shape)
    # as the kernels of PyTorch lay their output out: the heads of a token side by side
    return query.new_empty(shape[0], shape[2], shape[1], shape[3]).transpose(1, 2)


@torch.library.custom_op("zeroi2v::counted_attention_backward", mutates_args=())
def attention_backward_kernel(
    gradient: Tensor, inputs: list[Tensor], output: Tensor, learning: int
) -> list[Tensor]:
    """The gradients of the first `learning` inputs of fused attention, in a count.

    The inputs are query, key, value, and the mask if there is a mask.
    """
    raise NotImplementedError("attention that is counted has no values")


@attention_backward_kernel.register_fake
def _(gradient: Tensor, inputs: list[Tensor], output: Tensor, learning: int) -> list[Tensor]:
    return [torch.empty_like(tensor) for tensor in inputs[:learning]]


def _keep(ctx: Any, inputs: tuple[Tensor | None, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs, output)


def _gradients(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
    *inputs, output = ctx.saved_tensors
    given = [tensor for tensor in inputs if tensor is not None]
    learning = 4 if ctx.needs_input_grad[3] else 3
    gradients = attention_backward_kernel(gradient, given, output, learning)
    return (*gradients, *[None] * (4 - learning))


attention_kernel.register_autograd(_gradients, setup_context=_keep)


# PyTorch calls these formulas with shapes in place of tensors.
@register_flop_formula(torch.ops.zeroi2v.counted_attention)
def _attention_operations(
    query: Sequence[int], key: Sequence[int], value: Sequence[int], *_: object, **__: object
) -> int:
    """The operations of attention: the products of queries and keys, and of scores and values."""
    *pictures, queries, width = query
    products = queries * key[-2] * (width + value[-1])
    for size in pictures:
        products *= size
    return 2 * products


@register_flop_formula(torch.ops.zeroi2v.counted_attention_backward)
def _attention_backward_operations(
    gradient: Sequence[int], inputs: Sequence[Sequence[int]], *_: object, **__: object
) -> int:
    """The operations of the gradients, in which the scores are computed again.

    There are five products of the size of the two products of the forward pass.
    """
    return _attention_operations(*inputs[:3]) * 5 // 2
