"""How are the tensors of another project's file read without running code from it?

safetensors files hold no code. What `torch.save` wrote is a pickle, which PyTorch's weights-only reader reads. A TorchScript archive
is a pickle too, of classes that the archive brings along as source: here each of them becomes a plain `_Node`, and no source is read.
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

from zeroi2v.errors import CheckpointError

IN_A_FOLDER: Final = (
    *("model.safetensors", "open_clip_model.safetensors"),
    *("pytorch_model.bin", "open_clip_pytorch_model.bin"),
)
WRAPPERS: Final = (
    "state_dict",
    "model",
)  # keys under which training programs keep the weights among other things
LOGS: Final = (  # classes and functions of the log that mmengine keeps beside the weights; none is imported
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
DAMAGED: Final = (  # what a reader of pickles and archives meets in a file that is cut short, altered or of another kind
    *(
        OSError,
        EOFError,
        ValueError,
        TypeError,
        LookupError,
        AttributeError,
        RuntimeError,
        AssertionError,
    ),
    *(
        ArithmeticError,
        MemoryError,
        struct.error,
        zlib.error,
        pickle.UnpicklingError,
        zipfile.BadZipFile,
        SafetensorError,
    ),
)


class Archive(NamedTuple):
    """The tensors of a file, by name."""

    path: Path
    tensors: dict[str, Tensor]
    is_torchscript: bool


def read_archive(path: str | os.PathLike[str]) -> Archive:
    """The tensors of a file, or of the one weights file in a folder. CheckpointError names the file and says what is wrong with it."""
    path = Path(path)
    if path.is_dir():
        held = [name for name in IN_A_FOLDER if (path / name).is_file()]
        if not held:
            raise CheckpointError(f"{path}: holds none of {', '.join(IN_A_FOLDER)}")
        path /= held[0]
    if not path.is_file():
        raise CheckpointError(f"{path}: no such file")
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
                raise CheckpointError(f"{path}: damaged: the checksum of {damaged} is wrong")
        if content is None:
            content = _pickled(path)
    except DAMAGED as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise CheckpointError(f"{path}: not a file of weights, or damaged: {reason}") from error
    return Archive(path, _state(content, path), is_torchscript)


def _pickled(path: Path) -> Any:
    """What `torch.save` wrote. CheckpointError if it holds more than tensors and plain values: none of that is run."""
    try:
        with (
            torch.serialization.safe_globals([(_Nothing, name) for name in LOGS]),
            warnings.catch_warnings(),
        ):
            warnings.simplefilter(
                "ignore", UserWarning
            )  # about the protocol of pickles that are refused
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        try:
            names = ", ".join(sorted(torch.serialization.get_unsafe_globals_in_checkpoint(path)))
        except DAMAGED:  # not one that torch.save wrote
            names = ""
        if not names:
            raise CheckpointError(
                f"{path}: not a file of weights, or damaged, or one that holds more than tensors"
            ) from error
        raise CheckpointError(
            f"{path}: holds more than tensors ({names}), which is not run; "
            "where the file is trusted, save its state_dict alone and give that"
        ) from error


def _state(content: Any, path: Path) -> dict[str, Tensor]:
    for wrapper in WRAPPERS:
        if isinstance(content, Mapping) and isinstance(content.get(wrapper), Mapping):
            content = content[wrapper]
    if not isinstance(content, Mapping) or not content:
        raise CheckpointError(f"{path}: holds no state_dict")
    for key, value in content.items():
        if not isinstance(value, Tensor):
            raise CheckpointError(f"{path}: {key} is no tensor, so this is no state_dict")
    parallel = all(
        str(key).startswith("module.") for key in content
    )  # saved inside DistributedDataParallel
    return {
        str(key).removeprefix("module.") if parallel else str(key): value
        for key, value in content.items()
    }


class _Nothing:
    """Stands for a logged value: takes what it is given and keeps none of it."""

    def __new__(cls, *_: object) -> _Nothing:
        return super().__new__(cls)

    def __setstate__(self, state: object) -> None:
        pass


class _Node:
    """A module of a TorchScript archive: its attributes, whatever its class was."""

    def __init__(self) -> None:
        self.attributes: dict[str, Any] = {}

    def __setstate__(self, state: Mapping[str, Any]) -> None:
        self.attributes = dict(state)

    def tensors(self, prefix: str = "") -> dict[str, Tensor]:
        """Every tensor below this module, by its name in a state dict."""
        found: dict[str, Tensor] = {}
        for name, value in self.attributes.items():
            if isinstance(value, Tensor):
                found[prefix + name] = value
            elif isinstance(value, _Node):
                found |= value.tensors(f"{prefix}{name}.")
        return found


class _TorchScriptReader(pickle.Unpickler):
    """Reads the pickle of a TorchScript archive. It looks up no name: each of the few that it knows has a stand-in here."""

    def __init__(self, archive: zipfile.ZipFile, pickled: zipfile.ZipInfo) -> None:
        super().__init__(archive.open(pickled))
        self.archive, self.folder = archive, pickled.filename.removesuffix("data.pkl")

    def find_class(self, module: str, name: str) -> Any:
        if module.partition(".")[0] == "__torch__":
            return _Node
        if module == "torch" and name in STORAGES:
            return STORAGES[name]
        if (
            module == "torch.jit._pickle"
        ):  # says of a list or dictionary, which comes first, what it holds
            return _value
        known = {"torch._utils._rebuild_tensor_v2": _tensor, "collections.OrderedDict": OrderedDict}
        try:
            return known[f"{module}.{name}"]
        except KeyError:
            raise pickle.UnpicklingError(
                f"holds {module}.{name}, which no module of weights needs"
            ) from None

    def persistent_load(self, identity: Any) -> Tensor:
        kind, dtype, name, _device, _count = identity
        if kind != "storage":
            raise pickle.UnpicklingError(f"holds {kind!r} where a tensor's values were expected")
        return torch.frombuffer(
            bytearray(self.archive.read(f"{self.folder}data/{name}")), dtype=dtype
        )


def _tensor(
    values: Tensor, offset: int, size: tuple[int, ...], stride: tuple[int, ...], *_: object
) -> Tensor:
    """What `torch._utils._rebuild_tensor_v2` does, where `values` are those of a storage."""
    return values.as_strided(size, stride, offset)


def _value(value: object, *_: object) -> object:
    return value


def _torchscript(archive: zipfile.ZipFile) -> dict[str, Tensor]:
    (pickled,) = (entry for entry in archive.infolist() if entry.filename.endswith("/data.pkl"))
    module = _TorchScriptReader(archive, pickled).load()
    if not isinstance(module, _Node):
        raise pickle.UnpicklingError("holds no module")
    return module.tensors()
