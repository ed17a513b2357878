"""How is a model rebuilt from a folder that `saving.py` wrote, or from a model of the Hub?"""

from __future__ import annotations

import dataclasses
import json
import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from zeroi2v.config import ClipConfig, ModelConfig, Recipe, ViewsConfig
from zeroi2v.errors import CheckpointError, ConfigError, HeadsError, TowerError
from zeroi2v.models.build import build_model
from zeroi2v.models.saving import (
    CONFIG_FILE,
    FORMAT,
    WEIGHTS_FILE,
    add_tensors,
    config_digest,
)
from zeroi2v.models.towers import OFFLINE
from zeroi2v.models.video import VideoClassifier
from zeroi2v.recipes import from_dict

logger = logging.getLogger(__name__)
WRONG = (
    KeyError,
    TypeError,
    ValueError,
    AttributeError,
    ConfigError,
    HeadsError,
)  # of a configuration


def load(folder: str | os.PathLike[str]) -> VideoClassifier:
    """Rebuild a model, in eval mode, from a folder or a name on the Hub (`user/model`).

    CheckpointError names the file and the fault.
    """
    path, config, recipe = _open(folder)
    by_name = recipe.model.pretrained
    try:
        model = build_model(
            recipe.model,
            labels=tuple(map(str, config["labels"])),
            clip=recipe.clip,
            views=recipe.views,
            multi_label=bool(config.get("multi_label", False)),
        )
        results = {str(name): float(value) for name, value in config["results"].items()}
        merged, taught = config["merged"], config["input"]
        model.spec = dataclasses.replace(model.spec, results=results)
    except TowerError as error:
        reason = str(error).removesuffix(OFFLINE)
        raise CheckpointError(f"{path}: its tower: {reason}{_remedy(by_name)}") from error
    except WRONG as error:
        raise _not_read(path, error) from error
    try:
        if not by_name:  # the folder holds a tower that may have been resized
            model.resize(image_size=taught["image_size"])
    except (KeyError, TypeError, ConfigError) as error:
        raise CheckpointError(f"{path / CONFIG_FILE}: input: {error}") from error
    spec, tower = model.spec, recipe.model.tower
    own = {"image_size": spec.image_size, "mean": list(spec.mean), "std": list(spec.std)}
    if taught != own:
        raise CheckpointError(
            f"{path}: tower {tower!r} here takes other pixels than the one it was trained on: {taught}"
        )
    if by_name and config["tower_fingerprint"] != model.stored().fingerprint:
        raise CheckpointError(
            f"{path}: the weights of tower {tower!r} here are not the ones it was trained on"
        )
    if merged:
        model = model.merge()
    _read_weights(model, path / WEIGHTS_FILE, config)
    if model.spec.results.get("epoch") == 0:
        logger.warning(
            "%s: a run that has not finished an epoch; the model is as good as untrained", path
        )
    return model.eval()


def _remedy(by_name: bool) -> str:
    """What whoever has no access to the weights of a tower can do."""
    if not by_name:
        return ""
    return (
        "; this folder holds no weights of its tower: load it once where the Hub can be reached, bring the cache of the Hub "
        "(HF_HOME) here, or merge the model where its tower is (`zeroi2v merge`) and bring the merged folder"
    )


def model_recipe(folder: str | os.PathLike[str] | None) -> Recipe:
    """The recipe with the model, clip and views of a saved model, and defaults elsewhere; without a folder all defaults."""
    return Recipe() if folder is None else _open(folder)[2]


def _open(folder: str | os.PathLike[str]) -> tuple[Path, dict[str, Any], Recipe]:
    """A folder, downloaded if it is a name on the Hub; its configuration; and the model, clip and views that this says."""
    if not os.fspath(folder):
        raise CheckpointError("the name of the model's folder is empty")
    path = Path(folder) if Path(folder).exists() else _download(os.fspath(folder))
    config = _read_config(path / CONFIG_FILE)
    try:
        by_name = (
            config["tower_fingerprint"] is not None
        )  # else the folder holds the weights of the tower too
        own = {**config["model"], "weights": None, "pretrained": by_name}
        recipe = Recipe(
            model=from_dict(ModelConfig, own),
            clip=from_dict(ClipConfig, config["clip"]),
            views=from_dict(ViewsConfig, config["views"]),
        )
    except WRONG as error:
        raise _not_read(path, error) from error
    return path, config, recipe


def _not_read(folder: Path, error: Exception) -> CheckpointError:
    return CheckpointError(
        f"{folder / CONFIG_FILE}: not a configuration that this version reads: {error}"
    )


@torch.no_grad()
def start_from(model: VideoClassifier, folder: str | os.PathLike[str]) -> None:
    """Let the weights of a model start as those of a saved, adapted model of the same tower and settings.

    The classifier is taken over where the labels are the same, one or several a video in both, and starts anew where not. The
    temporal embedding is interpolated to the frames of the model. CheckpointError if the saved model is merged or of another
    shape.
    """
    source = load(folder)
    if source.spec.merged:
        raise CheckpointError(
            f"{folder}: merged, so it has no adapters to go on training; give the run that it was merged from"
        )
    source.resize(frames=model.frames)
    own, taken = model.state_dict(), source.state_dict()
    answers = (source.labels, source.spec.multi_label)
    if answers != (model.labels, model.spec.multi_label):
        taken |= {key: own[key] for key in own if key.startswith("classifier.")}
    for key in sorted(own.keys() | taken.keys()):
        if key not in own or key not in taken or own[key].shape != taken[key].shape:
            raise CheckpointError(
                f"{folder}: {key} does not fit; train with the model settings of that run"
            )
    model.load_state_dict(taken)
    if source.keeps_tower:  # the tower cannot be had by name
        model.set_config(dataclasses.replace(model.spec.model, pretrained=False))


@torch.no_grad()
def _read_weights(model: VideoClassifier, path: Path, config: Mapping[str, Any]) -> None:
    """Load what `write_weights` wrote, every key used.

    CheckpointError names the file, and what is missing, damaged or does not fit.
    """
    own = model.stored_tensors()
    try:
        with safe_open(path, "pt") as file:
            keys = set(file.keys())
            if keys != own.keys():
                missing, unknown = sorted(own.keys() - keys), sorted(keys - own.keys())
                raise CheckpointError(
                    f"{path}: not this model's weights: missing {missing[:3]}, not known {unknown[:3]}"
                )
            digest = config_digest(config)
            for key in sorted(keys):
                tensor = file.get_tensor(key)
                if tensor.shape != own[key].shape:
                    raise CheckpointError(
                        f"{path}: {key} is {tuple(tensor.shape)}, the model's is {tuple(own[key].shape)}"
                    )
                own[key].copy_(tensor)
                add_tensors(digest, {key: tensor})
            if digest.hexdigest() not in (file.metadata() or {}).get("zeroi2v", ""):
                raise CheckpointError(
                    f"{path}: damaged, or not of the {CONFIG_FILE} beside it: the checksum is wrong"
                )
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{path}: cannot read the weights: {error}") from error


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
    from huggingface_hub.errors import (
        HfHubHTTPError,
        HFValidationError,
        LocalEntryNotFoundError,
    )

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
