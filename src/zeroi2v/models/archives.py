"""How are the tensors in another project's file read without running code from the file?

A safetensors file holds no code. A file of `torch.save` is a pickle, which PyTorch's weights-only
reader reads. A TorchScript archive is a pickle too, and the archive holds the source code of the
classes in the pickle. Here each of these classes becomes a plain `_Node`, and no source is read.
"""

from __future__ import annotations

import os
import pickle
import struct
import warnings
import zipfile
import zlib
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, NamedTuple

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from zeroi2v.errors import CheckpointError, one_line

IN_A_FOLDER: Final = (  # names of weights files in a folder; the first that exists is read
    *("model.safetensors", "open_clip_model.safetensors"),
    *("pytorch_model.bin", "open_clip_pytorch_model.bin"),
)
# Training programs keep the weights among other things; these are the keys of the weights.
WRAPPERS: Final = ("state_dict", "model")
# Classes and functions in the log that mmengine keeps beside the weights. None of them is imported:
# `_Nothing` stands for all of them.
LOGS: Final = (
    "mmengine.logging.history_buffer.HistoryBuffer",
    *("numpy.ndarray", "numpy.dtype"),
    *(
        f"numpy.{core}.multiarray.{name}"
        for core in ("core", "_core")
        for name in ("_reconstruct", "scalar")
    ),
)
STORAGES: Final = {
    "DoubleStorage": torch.float64,
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "BoolStorage": torch.bool,
}
# Errors that readers of pickles and archives raise for a file that is cut short, altered or of
# another kind.
DAMAGED: Final = (
    *(OSError, EOFError, ValueError, TypeError, LookupError, AttributeError, RuntimeError),
    *(AssertionError, ArithmeticError, MemoryError, struct.error, zlib.error),
    *(pickle.UnpicklingError, zipfile.BadZipFile, SafetensorError),
)


class Archive(NamedTuple):
    """The tensors of a file, by name."""

    path: Path  # of the file, also where a folder was given
    tensors: dict[str, Tensor]
    is_torchscript: bool


def read_archive(path: str | os.PathLike[str]) -> Archive:
    """Read the tensors of a file, or of the weights file in a folder.

    CheckpointError names the file and its fault.
    """
    path = Path(path)
    if path.is_dir():
        names = [name for name in IN_A_FOLDER if (path / name).is_file()]
        if not names:
            raise CheckpointError(
                f"{path}: holds none of {', '.join(IN_A_FOLDER)}; give the file of the weights"
            )
        path /= names[0]
    if not path.is_file():
        raise CheckpointError(f"{path}: no such file")
    try:
        path.open("rb").close()
    except OSError as error:  # not a sign of damage
        raise CheckpointError(f"{path}: cannot be read: {error.strerror}") from error
    content: Any = None
    is_torchscript = False
    try:
        if path.suffix == ".safetensors":
            content = load_file(path)
        elif zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                is_torchscript = any(name.endswith("/constants.pkl") for name in archive.namelist())
                damaged = archive.testzip()
                content = _torchscript(archive) if is_torchscript and not damaged else None
            if damaged:
                raise CheckpointError(
                    f"{path}: damaged: the checksum of {damaged} is wrong; get the file again"
                )
        if content is None:
            content = _pickled(path)
    except DAMAGED as error:
        raise CheckpointError(
            f"{path}: not a file of weights, or damaged: {one_line(error)}"
        ) from error
    return Archive(path, _state(content, path), is_torchscript)


def _pickled(path: Path) -> Any:
    """The content of a file that `torch.save` wrote.

    CheckpointError if the file holds more than tensors and plain values. No code of the file runs.
    """
    try:
        with (
            torch.serialization.safe_globals([(_Nothing, name) for name in LOGS]),
            warnings.catch_warnings(),
        ):
            # PyTorch warns of the protocol of a pickle before it refuses the pickle.
            warnings.simplefilter("ignore", UserWarning)
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        try:
            names = ", ".join(sorted(torch.serialization.get_unsafe_globals_in_checkpoint(path)))
        except DAMAGED:  # torch.save did not write the file
            names = ""
        if not names:
            raise CheckpointError(
                f"{path}: not a file of weights, or damaged, or a file that holds more than tensors"
            ) from error
        raise CheckpointError(
            f"{path}: holds more than tensors ({names}), and zeroi2v runs no code of a file; "
            "if you trust the file, load it with PyTorch, save only its state_dict, "
            "and give the new file"
        ) from error


def _state(content: Any, path: Path) -> dict[str, Tensor]:
    """The state dict in the content of a file."""
    for wrapper in WRAPPERS:
        if isinstance(content, Mapping) and isinstance(content.get(wrapper), Mapping):
            content = content[wrapper]
    if not isinstance(content, Mapping) or not content:
        raise CheckpointError(f"{path}: holds no state_dict")
    for key, value in content.items():
        if not isinstance(value, Tensor):
            raise CheckpointError(f"{path}: {key} is no tensor, so this is no state_dict")
    # A model inside DistributedDataParallel saves its keys with this prefix.
    parallel = all(str(key).startswith("module.") for key in content)
    return {
        str(key).removeprefix("module.") if parallel else str(key): value
        for key, value in content.items()
    }


class _Nothing:
    """Stands for a value in a log: accepts any arguments and any state, and keeps nothing."""

    def __new__(cls, *_: object) -> _Nothing:
        return super().__new__(cls)

    def __setstate__(self, state: object) -> None:
        pass


class _Node:
    """The attributes of a module of a TorchScript archive, in place of the module's own class."""

    def __init__(self) -> None:
        self.attributes: dict[str, Any] = {}

    def __setstate__(self, state: Mapping[str, Any]) -> None:
        self.attributes = dict(state)

    def tensors(self, prefix: str = "") -> dict[str, Tensor]:
        """All tensors below this module, by their names in a state dict."""
        tensors: dict[str, Tensor] = {}
        for name, value in self.attributes.items():
            if isinstance(value, Tensor):
                tensors[prefix + name] = value
            elif isinstance(value, _Node):
                tensors |= value.tensors(f"{prefix}{name}.")
        return tensors


class _TorchScriptReader(pickle.Unpickler):
    """Reads the pickle of a TorchScript archive.

    The reader imports no class or function that a pickle names: each known name has a stand-in in
    this file, and any other name is refused.
    """

    def __init__(self, archive: zipfile.ZipFile, pickled: zipfile.ZipInfo) -> None:
        super().__init__(archive.open(pickled))
        self.archive, self.folder = archive, pickled.filename.removesuffix("data.pkl")

    def find_class(self, module: str, name: str) -> Any:
        if module.partition(".")[0] == "__torch__":
            return _Node
        if module == "torch" and name in STORAGES:
            return STORAGES[name]
        if module == "torch.jit._pickle":
            # The functions of this Python module restore the types of a list or dictionary.
            return _first_argument
        known = {"torch._utils._rebuild_tensor_v2": _tensor, "collections.OrderedDict": OrderedDict}
        try:
            return known[f"{module}.{name}"]
        except KeyError:
            raise pickle.UnpicklingError(
                f"holds {module}.{name}, which a file of weights never needs"
            ) from None

    def persistent_load(self, identity: Any) -> Tensor:
        """The values of a storage, which the archive keeps in a separate file."""
        kind, dtype, name, _device, _count = identity
        if kind != "storage":
            raise pickle.UnpicklingError(f"holds {kind!r} instead of the values of a tensor")
        return torch.frombuffer(
            bytearray(self.archive.read(f"{self.folder}data/{name}")), dtype=dtype
        )


def _tensor(
    values: Tensor, offset: int, size: tuple[int, ...], stride: tuple[int, ...], *_: object
) -> Tensor:
    """The stand-in for `torch._utils._rebuild_tensor_v2`; `values` are the values of a storage."""
    return values.as_strided(size, stride, offset)


def _first_argument(value: object, *_: object) -> object:
    """The stand-in for a function that returns its first argument."""
    return value


def _torchscript(archive: zipfile.ZipFile) -> dict[str, Tensor]:
    """The tensors of a TorchScript archive, by their names in a state dict."""
    (pickled,) = (entry for entry in archive.infolist() if entry.filename.endswith("/data.pkl"))
    module = _TorchScriptReader(archive, pickled).load()
    if not isinstance(module, _Node):
        raise pickle.UnpicklingError("holds no module")
    return module.tensors()
