"""How is a model written to a folder, and rebuilt from the folder alone?

    config.json        how the model is built, its labels, clip, views and normalisation, and the tower's fingerprint
    model.safetensors  its weights, without the frozen tower's where those can be had by name
    README.md          its card, for people

All are written in full beside the old ones before the first takes its place, so a full disk leaves the old model, and so does a
crash but for the moment in which the three are renamed.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import logging
import os
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final, TypeAlias

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from zeroi2v.config import ClipConfig, ModelConfig, Recipe, ViewsConfig
from zeroi2v.errors import CheckpointError, ConfigError, HeadsError, TowerError
from zeroi2v.files import write_files
from zeroi2v.models.card import card_of
from zeroi2v.models.video import VideoClassifier, build_model
from zeroi2v.recipes import from_dict, to_dict

CONFIG_FILE: Final = "config.json"
CARD_FILE: Final = "README.md"
WEIGHTS_FILE: Final = "model.safetensors"
FORMAT: Final = 1
logger = logging.getLogger(__name__)
Writer: TypeAlias = Callable[[Path], object]


def save_pretrained(model: VideoClassifier, folder: str | os.PathLike[str]) -> None:
    """Write the three files. CheckpointError if the folder cannot be written; what was there stays."""
    write_model(model, Path(folder), {})


def write_model(model: VideoClassifier, folder: Path, metadata: Mapping[str, str]) -> None:
    """`save_pretrained`, with metadata of the weights file."""
    card, config = card_of(model), _config(model)
    text = json.dumps(config, indent=1, ensure_ascii=False) + "\n"
    write_files(
        {
            folder / CONFIG_FILE: lambda path: path.write_text(text, encoding="utf-8"),
            folder / CARD_FILE: lambda path: path.write_text(card, encoding="utf-8"),
            folder / WEIGHTS_FILE: _weights_writer(model, metadata),
        }
    )


def push_to_hub(model: VideoClassifier, name: str, *, private: bool) -> str:
    """Save a model into the Hub's `user/model`. CheckpointError if the Hub does not take it."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    with tempfile.TemporaryDirectory() as folder:
        save_pretrained(model, folder)
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


def write_weights(
    model: VideoClassifier, path: Path, metadata: Mapping[str, str] | None = None
) -> None:
    """Write the model's weights, without those of a frozen tower that `load` gets by name."""
    write_files({path: _weights_writer(model, metadata)})


def _config(model: VideoClassifier) -> dict[str, Any]:
    mean, std = model.normalisation
    return {
        "format": FORMAT,
        "model": to_dict(model.config),
        "merged": model.merged,
        "labels": list(model.labels),
        "multi_label": model.multi_label,
        "results": model.results,
        # Who loads it may have no other decoder, and PyAV gives the same frames.
        "clip": to_dict(dataclasses.replace(model.clip, decoder="pyav")),
        "views": to_dict(model.views),
        "input": {"image_size": model.image_size, "mean": list(mean), "std": list(std)},
        "tower_fingerprint": None if keeps_tower(model) else fingerprint(model),
    }


def _weights_writer(model: VideoClassifier, metadata: Mapping[str, str] | None = None) -> Writer:
    state = {key: tensor.contiguous() for key, tensor in own_state(model).items()}
    digest = _config_digest(_config(model))
    _add_tensors(digest, state)
    known = json.dumps(
        {**(metadata or {}), "sha256": digest.hexdigest()}
    )  # one entry: several have no fixed order in the file
    return lambda path: save_file(state, path, {"zeroi2v": known})


def _config_digest(config: Mapping[str, Any]) -> Any:
    """The SHA-256 of a folder begins with its configuration, apart from the results, and goes on with its tensors.

    So damage is not taken for another model.
    """
    kept = {key: value for key, value in config.items() if key != "results"}
    return hashlib.sha256(json.dumps(kept, sort_keys=True).encode())


def _add_tensors(digest: Any, state: Mapping[str, Tensor]) -> None:
    """Names, types, shapes and bytes, in the order of the names."""
    for name, tensor in sorted(state.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())


def load(folder: str | os.PathLike[str]) -> VideoClassifier:
    """Rebuild a model, in eval mode, from a folder or a Hub name (`user/model`). CheckpointError names the file and the fault."""
    folder, config, recipe = _open(folder)
    tower, by_name = recipe.model.tower, recipe.model.pretrained
    try:
        rebuilt = build_model(
            recipe.model, num_classes=len(config["labels"]), frames=recipe.clip.frames
        )
        rebuilt.labels = tuple(config["labels"])
        rebuilt.multi_label = bool(config.get("multi_label", False))
        rebuilt.clip, rebuilt.views = recipe.clip, recipe.views
        rebuilt.results = {str(name): float(value) for name, value in config["results"].items()}
        merged, taught = config["merged"], config["input"]
    except TowerError as error:
        raise CheckpointError(f"{folder}: its tower: {error}") from error
    except (KeyError, TypeError, ValueError, AttributeError, ConfigError, HeadsError) as error:
        raise CheckpointError(
            f"{folder / CONFIG_FILE}: not a configuration that this version reads: {error}"
        ) from error
    try:
        if not by_name:  # it holds a tower that may have been resized
            rebuilt.resize(image_size=taught["image_size"])
    except (KeyError, TypeError, ConfigError) as error:
        raise CheckpointError(f"{folder / CONFIG_FILE}: input: {error}") from error
    mean, std = rebuilt.normalisation
    if taught != {"image_size": rebuilt.image_size, "mean": list(mean), "std": list(std)}:
        raise CheckpointError(
            f"{folder}: tower {tower!r} here takes other pixels than the one it was trained on: {taught}"
        )
    if by_name and config["tower_fingerprint"] != fingerprint(rebuilt):
        raise CheckpointError(
            f"{folder}: the weights of tower {tower!r} here are not the ones it was trained on"
        )
    if merged:
        rebuilt = rebuilt.merge()
    _read_weights(rebuilt, folder / WEIGHTS_FILE, config)
    if rebuilt.results.get("epoch") == 0:
        logger.warning(
            "%s: a run that has not finished an epoch; the model is as good as untrained", folder
        )
    return rebuilt.eval()


def model_recipe(folder: str | None) -> Recipe:
    """The recipe with the model, clip and views of a saved model, and defaults elsewhere; without a folder all defaults."""
    if folder is None:
        return Recipe()
    return _open(folder)[2]


def _open(folder: str | os.PathLike[str]) -> tuple[Path, dict[str, Any], Recipe]:
    """A folder, downloaded if it is a name on the Hub; its configuration; and the model, clip and views that this says."""
    folder = Path(folder) if Path(folder).exists() else _download(os.fspath(folder))
    config = _read_config(folder / CONFIG_FILE)
    try:
        by_name = (
            config["tower_fingerprint"] is not None
        )  # else the folder holds the tower's weights too
        own = {
            **config["model"],
            "weights": None,
            "pretrained": by_name,
        }  # a saved model needs no other file
        clip, views = from_dict(ClipConfig, config["clip"]), from_dict(ViewsConfig, config["views"])
        return folder, config, Recipe(model=from_dict(ModelConfig, own), clip=clip, views=views)
    except (KeyError, TypeError, ValueError, AttributeError, ConfigError) as error:
        raise CheckpointError(
            f"{folder / CONFIG_FILE}: not a configuration that this version reads: {error}"
        ) from error


def start_from(model: VideoClassifier, folder: str | os.PathLike[str]) -> None:
    """Let a model's weights start as those of a saved, adapted model of the same tower and settings.

    Its classifier is taken over where the labels are the same, one or several a video in both, and starts anew where not; its
    temporal embedding is interpolated to the model's frames. CheckpointError if the saved model is merged or of another shape.
    """
    source = load(folder)
    if source.merged:
        raise CheckpointError(
            f"{folder}: merged, so it has no adapters to go on training; give the run that it was merged from"
        )
    source.resize(frames=model.frames)
    own, taken = model.state_dict(), source.state_dict()
    if (source.labels, source.multi_label) != (model.labels, model.multi_label):
        taken |= {key: own[key] for key in own if key.startswith("classifier.")}
    for key in sorted(own.keys() | taken.keys()):
        if key not in own or key not in taken or own[key].shape != taken[key].shape:
            raise CheckpointError(
                f"{folder}: {key} does not fit; train with the model settings of that run"
            )
    model.load_state_dict(taken)
    if keeps_tower(source):  # its tower is none that can be had by name
        model.config = dataclasses.replace(model.config, pretrained=False)


def _read_weights(model: VideoClassifier, path: Path, config: Mapping[str, Any]) -> None:
    """Load what `write_weights` wrote, every key used. CheckpointError names the file, and what is missing, damaged or does not fit."""
    own = own_state(model)
    try:
        with safe_open(path, "pt") as file, torch.no_grad():
            keys = set(file.keys())
            if keys != own.keys():
                missing, unknown = sorted(own.keys() - keys), sorted(keys - own.keys())
                raise CheckpointError(
                    f"{path}: not this model's weights: missing {missing[:3]}, not known {unknown[:3]}"
                )
            digest = _config_digest(config)
            for key in sorted(keys):
                stored = file.get_tensor(key)
                if stored.shape != own[key].shape:
                    raise CheckpointError(
                        f"{path}: {key} is {tuple(stored.shape)}, the model's is {tuple(own[key].shape)}"
                    )
                own[key].copy_(stored)
                _add_tensors(digest, {key: stored})
            if digest.hexdigest() not in (file.metadata() or {}).get("zeroi2v", ""):
                raise CheckpointError(
                    f"{path}: damaged, or not of the {CONFIG_FILE} beside it: the checksum is wrong"
                )
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{path}: cannot read the weights: {error}") from error


def fingerprint(model: VideoClassifier) -> str:
    """SHA-256 over the names, shapes and bytes of the frozen weights of a model's tower."""
    trained = model.trained_in_tower()
    digest = hashlib.sha256()
    _add_tensors(
        digest,
        {name: tensor for name, tensor in model.tower.state_dict().items() if name not in trained},
    )
    return digest.hexdigest()


def keeps_tower(model: VideoClassifier) -> bool:
    """Whether the folder holds the tower's weights: of one that was trained, merged, cast, or has no name to get them by."""
    cast = any(parameter.dtype != torch.float32 for parameter in model.tower.parameters())
    return model.merged or model.strategy.trains_tower or cast or not model.config.pretrained


def own_state(model: VideoClassifier) -> dict[str, Tensor]:
    """The tensors that a folder holds, by name; a tensor with two names appears once."""
    tensors: dict[str, Tensor] = dict(model.named_parameters())
    persistent = model.state_dict().keys()
    tensors |= {name: buffer for name, buffer in model.named_buffers() if name in persistent}
    if keeps_tower(model):
        return tensors
    trained = {f"tower.{name}" for name in model.trained_in_tower()}
    return {
        name: tensor
        for name, tensor in tensors.items()
        if name in trained or not name.startswith("tower.")
    }


def _read_config(path: Path) -> dict[str, Any]:
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise CheckpointError(
            f"{path}: cannot read it: {error.strerror}; a model's folder holds {CONFIG_FILE}"
        ) from error
    except ValueError as error:
        raise CheckpointError(f"{path}: not JSON: {error}") from error
    if not isinstance(config, dict) or config.get("format") != FORMAT:
        raise CheckpointError(f"{path}: not a zeroi2v model of format {FORMAT}")
    return config


def _download(name: str) -> Path:
    if "/" not in name:
        raise CheckpointError(
            f"{name}: no such folder, and no name of a model on the Hub, which is user/model"
        )
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(name, allow_patterns=[CONFIG_FILE, WEIGHTS_FILE]))
    except HFValidationError as error:
        raise CheckpointError(
            f"{name}: no such folder, and no name of a model on the Hub"
        ) from error
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        raise CheckpointError(
            f"{name}: no such folder, and the Hub does not give it: {str(error).splitlines()[0]}"
        ) from error
