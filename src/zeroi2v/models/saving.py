"""How is a model written to a folder from which the model can be rebuilt?

    config.json        the model's configuration, labels, clip, views and normalisation, and the
                       fingerprint of the tower if the folder does not hold the tower's weights
    model.safetensors  the model's weights, without a frozen tower that timm can fetch
    README.md          the model's card, for people

All three files are written in full under other names and then renamed. So a full disk leaves the
old model as it was. So does a crash, unless it falls into the moment of the three renames.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from zeroi2v.errors import CheckpointError, FileError, one_line
from zeroi2v.files import Writer, write_files
from zeroi2v.models.card import CardFacts, model_card
from zeroi2v.models.spec import Spec
from zeroi2v.recipes import to_dict

CONFIG_FILE: Final = "config.json"
CARD_FILE: Final = "README.md"
WEIGHTS_FILE: Final = "model.safetensors"
FORMAT: Final = 2  # folders of format 1 are read too (older.py)


@dataclasses.dataclass(frozen=True)
class Stored:
    """What a folder holds of a model beside its `Spec`."""

    tensors: Mapping[str, Tensor]
    fingerprint: str | None  # of the frozen tower; None if `tensors` holds the whole tower
    facts: CardFacts


def write_model(
    folder: Path, spec: Spec, stored: Stored, metadata: Mapping[str, str] | None = None
) -> None:
    """Write the three files of a model. `metadata` goes into the weights file.

    CheckpointError if the files cannot be written; files that were there stay as they were.
    """
    card = model_card(spec, stored.facts)
    text = json.dumps(_config(spec, stored), indent=1, ensure_ascii=False) + "\n"
    _write(
        {
            folder / CONFIG_FILE: lambda path: path.write_text(text, encoding="utf-8"),
            folder / CARD_FILE: lambda path: path.write_text(card, encoding="utf-8"),
            folder / WEIGHTS_FILE: _weights_writer(spec, stored, metadata),
        }
    )


def write_weights(
    path: Path, spec: Spec, stored: Stored, metadata: Mapping[str, str] | None = None
) -> None:
    """Write only the weights file. CheckpointError if the file cannot be written."""
    _write({path: _weights_writer(spec, stored, metadata)})


def push_to_hub(name: str, spec: Spec, stored: Stored, *, private: bool) -> str:
    """Save a model to the Hub as `user/model`, and return the model's address on the Hub.

    CheckpointError if the Hub refuses the model.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    with tempfile.TemporaryDirectory() as folder:
        write_model(Path(folder), spec, stored)
        api = HfApi(library_name="zeroi2v")
        try:
            api.create_repo(name, private=private, exist_ok=True)
            api.upload_folder(
                repo_id=name, folder_path=folder, commit_message="Save a zeroi2v model"
            )
        except (HfHubHTTPError, HFValidationError, OSError, ValueError) as error:
            raise CheckpointError(
                f"{name}: the Hub refused the model: {one_line(error)}; "
                "if you are not logged in, run `hf auth login`"
            ) from error
    return f"https://huggingface.co/{name}"


def config_digest(config: Mapping[str, Any]) -> hashlib._Hash:
    """A SHA-256 digest of a folder's configuration, without the results.

    `add_tensors` adds the tensors to the digest. The weights file stores the digest, so damage to
    the configuration file or to the weights file is noticed.
    """
    kept = {key: value for key, value in config.items() if key != "results"}
    return hashlib.sha256(json.dumps(kept, sort_keys=True).encode())


def add_tensors(digest: hashlib._Hash, tensors: Mapping[str, Tensor]) -> None:
    """Add the names, types, shapes and bytes of tensors to a digest, in the order of the names."""
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)


def fingerprint(tensors: Mapping[str, Tensor]) -> str:
    """The SHA-256 of the names, types, shapes and bytes of tensors."""
    digest = hashlib.sha256()
    add_tensors(digest, tensors)
    return digest.hexdigest()


def _config(spec: Spec, stored: Stored) -> dict[str, Any]:
    """The content of config.json."""
    return {
        "format": FORMAT,
        "model": to_dict(spec.model),
        "merged": spec.merged,
        "labels": list(spec.labels),
        "multi_label": spec.multi_label,
        "directions": spec.directions,
        "results": dict(spec.results),
        # A machine that loads the model may lack other decoders, and PyAV gives the same frames.
        "clip": to_dict(dataclasses.replace(spec.clip, decoder="pyav")),
        "views": to_dict(spec.views),
        "input": {"image_size": spec.image_size, "mean": list(spec.mean), "std": list(spec.std)},
        "tower_fingerprint": stored.fingerprint,
    }


def _weights_writer(spec: Spec, stored: Stored, metadata: Mapping[str, str] | None) -> Writer:
    """A function that writes the weights file of a model to a path."""
    state = {key: tensor.contiguous() for key, tensor in stored.tensors.items()}
    digest = config_digest(_config(spec, stored))
    add_tensors(digest, state)
    # A single entry, because the order of several entries in the file is not fixed.
    entry = json.dumps({**(metadata or {}), "sha256": digest.hexdigest()})

    def write(path: Path) -> None:
        try:
            save_file(state, path, {"zeroi2v": entry})
        except SafetensorError as error:
            raise OSError(str(error)) from error

    return write


def _write(files: Mapping[Path, Writer]) -> None:
    """Write all files or none. CheckpointError if a file cannot be written."""
    try:
        write_files(files)
    except FileError as error:
        raise CheckpointError(str(error)) from error
