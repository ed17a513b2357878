"""How is a model written to a folder from which alone it can be rebuilt?

    config.json        how the model is built, its labels, clip, views and normalisation, and the tower's fingerprint
    model.safetensors  its weights, without those of a frozen tower that can be had by name
    README.md          its card, for people

All three are written in full before the first takes its name, so a full disk leaves the old model, and so does a crash but for
the moment in which the three are renamed.
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

from zeroi2v.errors import CheckpointError, FileError
from zeroi2v.files import Writer, write_files
from zeroi2v.models.card import CardFacts, model_card
from zeroi2v.models.spec import Spec
from zeroi2v.recipes import to_dict

CONFIG_FILE: Final = "config.json"
CARD_FILE: Final = "README.md"
WEIGHTS_FILE: Final = "model.safetensors"
FORMAT: Final = 1


@dataclasses.dataclass(frozen=True)
class Stored:
    """What a folder holds of a model beside its `Spec`."""

    tensors: Mapping[str, Tensor]
    fingerprint: (
        str | None
    )  # of the frozen tower, where the folder does not hold the weights of the tower
    facts: CardFacts  # for the card


def write_model(
    folder: Path, spec: Spec, stored: Stored, metadata: Mapping[str, str] | None = None
) -> None:
    """Write the three files, `metadata` into the weights file. CheckpointError if they cannot be written; the old ones stay."""
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
    """Write the weights alone. CheckpointError if they cannot be written."""
    _write({path: _weights_writer(spec, stored, metadata)})


def push_to_hub(name: str, spec: Spec, stored: Stored, *, private: bool) -> str:
    """Save a model into the Hub's `user/model`, and give its address. CheckpointError if the Hub does not take the model."""
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
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise CheckpointError(
                f"{name}: the Hub does not take it: {reason}; log in with `hf auth login`"
            ) from error
    return f"https://huggingface.co/{name}"


def config_digest(config: Mapping[str, Any]) -> hashlib._Hash:
    """The SHA-256 of a folder begins with its configuration, without the results; `add_tensors` goes on with its tensors.

    So damage is not taken for another model.
    """
    kept = {key: value for key, value in config.items() if key != "results"}
    return hashlib.sha256(json.dumps(kept, sort_keys=True).encode())


def add_tensors(digest: hashlib._Hash, tensors: Mapping[str, Tensor]) -> None:
    """Add names, types, shapes and bytes of tensors to a digest, in the order of the names."""
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)


def fingerprint(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 over the names, shapes and bytes of tensors, such as those of a frozen tower."""
    digest = hashlib.sha256()
    add_tensors(digest, tensors)
    return digest.hexdigest()


def _config(spec: Spec, stored: Stored) -> dict[str, Any]:
    return {
        "format": FORMAT,
        "model": to_dict(spec.model),
        "merged": spec.merged,
        "labels": list(spec.labels),
        "multi_label": spec.multi_label,
        "results": dict(spec.results),
        # Who loads the model may have no other decoder, and PyAV gives the same frames.
        "clip": to_dict(dataclasses.replace(spec.clip, decoder="pyav")),
        "views": to_dict(spec.views),
        "input": {"image_size": spec.image_size, "mean": list(spec.mean), "std": list(spec.std)},
        "tower_fingerprint": stored.fingerprint,
    }


def _weights_writer(spec: Spec, stored: Stored, metadata: Mapping[str, str] | None) -> Writer:
    state = {key: tensor.contiguous() for key, tensor in stored.tensors.items()}
    digest = config_digest(_config(spec, stored))
    add_tensors(digest, state)
    # one entry: several have no fixed order in the file
    entry = json.dumps({**(metadata or {}), "sha256": digest.hexdigest()})

    def write(path: Path) -> None:
        try:
            save_file(state, path, {"zeroi2v": entry})
        except SafetensorError as error:
            raise OSError(str(error)) from error

    return write


def _write(files: Mapping[Path, Writer]) -> None:
    try:
        write_files(files)
    except FileError as error:
        raise CheckpointError(str(error)) from error
