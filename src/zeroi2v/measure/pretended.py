"""How does a module run as if on a device that may be missing? On tensors without storage."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TypeVar

from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

Module = TypeVar("Module", bound=nn.Module)


@contextmanager
def pretended(module: Module, device: str) -> Iterator[Module]:
    """A copy of a module whose weights claim to be on `device`, "cpu" or "cuda", without storage.

    Within the block every new tensor is without storage too: it has a shape, a precision and a
    device, and no values. Make the inputs of the module within the block. Autograd has no backward
    pass for a GPU that is not there.
    """
    copied = copy.deepcopy(module).to("meta")
    with FakeTensorMode(allow_non_fake_inputs=True):
        yield copied.to_empty(device=device)
