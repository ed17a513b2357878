"""How is a model rebuilt from a folder that `saving.py` wrote, or from a model of the Hub?"""

from __future__ import annotations

import dataclasses
import json
import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, NamedTuple

import torch
from safetensors import SafetensorError, safe_open

from zeroi2v.config import ClipConfig, ModelConfig, Recipe, ViewsConfig
from zeroi2v.errors import CheckpointError, ConfigError, HeadsError, TowerError, one_line
from zeroi2v.models.build import build_model
from zeroi2v.models.older import as_trained
from zeroi2v.models.saving import (
    CONFIG_FILE,
    FORMAT,
    WEIGHTS_FILE,
    add_tensors,
    config_digest,
)
from zeroi2v.models.towers import OFFLINE
from zeroi2v.models.video import VideoClassifier
from zeroi2v.recipes import from_dict, saved_model_settings

logger = logging.getLogger(__name__)
INVALID: Final = (  # errors that an invalid configuration causes
    KeyError,
    TypeError,
    ValueError,
    AttributeError,
    ConfigError,
    HeadsError,
)


class SavedModel(NamedTuple):
    """A folder with a saved model, whose weights are not read yet."""

    folder: Path
    config: dict[str, Any]  # the content of config.json
    recipe: Recipe  # with the model, clip and views of `config`
    merged: bool
    pixels: Any  # image size, mean and standard deviation of the pixels that the model takes


def load(folder: str | os.PathLike[str]) -> VideoClassifier:
    """Rebuild a model, in eval mode, from a folder or a name on the Hub (`user/model`).

    CheckpointError names the file and its fault.
    """
    saved = _open(folder)
    model = _untrained(saved)
    _check_pixels(model, saved)
    _check_tower(model, saved)
    if saved.merged:
        model = model.merge()
    _read_weights(model, saved.folder / WEIGHTS_FILE, saved.config)
    if model.spec.results.get("epoch") == 0:
        logger.warning(
            "%s: the run has not finished its first epoch, so the model is practically untrained",
            saved.folder,
        )
    return model.eval()


def _untrained(saved: SavedModel) -> VideoClassifier:
    """The model that a saved configuration describes, before the saved weights are read."""
    config, recipe = saved.config, saved.recipe
    try:
        model = build_model(
            recipe.model,
            labels=tuple(map(str, config["labels"])),
            clip=recipe.clip,
            views=recipe.views,
            multi_label=bool(config.get("multi_label", False)),
            directions=bool(config.get("directions", False)),
        )
        results = {str(name): float(value) for name, value in config["results"].items()}
        model.spec = dataclasses.replace(model.spec, results=results)
    except TowerError as error:
        reason = str(error).removesuffix(OFFLINE)
        remedy = _remedy() if recipe.model.pretrained else ""
        raise CheckpointError(f"{saved.folder}: its tower: {reason}{remedy}") from error
    except INVALID as error:
        raise _invalid(saved.folder, error) from error
    return model


def _check_pixels(model: VideoClassifier, saved: SavedModel) -> None:
    """Check that a rebuilt model takes the same pixels as the saved model.

    If the folder holds the weights of the tower, the saved model may have been resized; so the
    rebuilt model is resized before the check.
    CheckpointError if the image size, the mean or the standard deviation differ.
    """
    trained_on = saved.pixels
    try:
        if not saved.recipe.model.pretrained:
            model.resize(image_size=trained_on["image_size"])
    except (KeyError, TypeError, ConfigError) as error:
        raise CheckpointError(
            f"{saved.folder / CONFIG_FILE}: the entry input is wrong: {_reason(error)}"
        ) from error
    spec = model.spec
    here = {"image_size": spec.image_size, "mean": list(spec.mean), "std": list(spec.std)}
    if trained_on != here:
        raise CheckpointError(
            f"{saved.folder}: the installed timm gives tower {spec.model.tower!r} the input "
            f"{here}, but the model was trained with the input {trained_on}; install the timm "
            "that the model was trained with, or merge the model where it was trained "
            "(`zeroi2v merge`)"
        )


def _check_tower(model: VideoClassifier, saved: SavedModel) -> None:
    """Check that timm's weights of a frozen tower are the weights that the saved model had.

    CheckpointError if the weights differ. If the folder holds the weights of the tower, there is
    nothing to check.
    """
    if not saved.recipe.model.pretrained:
        return
    if saved.config["tower_fingerprint"] != model.stored().fingerprint:
        raise CheckpointError(
            f"{saved.folder}: timm's weights of tower {model.spec.model.tower!r} differ from the "
            "weights that this model was trained with; merge the model where it was trained "
            "(`zeroi2v merge`), and load the merged folder"
        )


def _remedy() -> str:
    """The end of a message for users who cannot fetch the weights of a tower."""
    return (
        "; this folder holds no weights of its tower: load the model once where the Hub can be "
        "reached, bring the cache of the Hub (HF_HOME) here, or merge the model where its tower is "
        "(`zeroi2v merge`) and bring the merged folder"
    )


def model_recipe(folder: str | os.PathLike[str] | None) -> Recipe:
    """A recipe with the model, clip and views of a saved model, and with defaults elsewhere.

    Without a folder, all settings are defaults.
    """
    return Recipe() if folder is None else _open(folder).recipe


def _open(folder: str | os.PathLike[str]) -> SavedModel:
    """Read the configuration in a folder, which is downloaded if `folder` is a name on the Hub."""
    if not os.fspath(folder):
        raise CheckpointError(
            "the name of the model's folder is empty; give the folder of a run or of a merged model"
        )
    path = Path(folder) if Path(folder).exists() else _download(os.fspath(folder))
    config = _read_config(path / CONFIG_FILE)
    try:
        # Without a fingerprint, the folder holds the weights of the tower.
        by_name = config["tower_fingerprint"] is not None
        model = {**saved_model_settings(config["model"]), "weights": None, "pretrained": by_name}
        recipe = Recipe(
            model=from_dict(ModelConfig, model),
            clip=from_dict(ClipConfig, config["clip"]),
            views=from_dict(ViewsConfig, config["views"]),
        )
        if config["format"] == 1:
            trained = as_trained(recipe.model, recipe.clip.frames)
            recipe = dataclasses.replace(recipe, model=trained)
        return SavedModel(path, config, recipe, bool(config["merged"]), config["input"])
    except (CheckpointError, TowerError) as error:
        raise CheckpointError(f"{path}: {error}") from error
    except INVALID as error:
        raise _invalid(path, error) from error


def _invalid(folder: Path, error: Exception) -> CheckpointError:
    """The error for a folder whose configuration is invalid."""
    return CheckpointError(
        f"{folder / CONFIG_FILE}: not a configuration that this version reads: {_reason(error)}"
    )


def _reason(error: Exception) -> str:
    """Why a configuration is invalid: the text of the error, or the entry that is missing."""
    return f"the entry {error} is missing" if isinstance(error, KeyError) else str(error)


@torch.no_grad()
def start_from(model: VideoClassifier, folder: str | os.PathLike[str]) -> None:
    """Copy the weights of a saved, adapted model into a model with the same tower and settings.

    The classifier is copied if both models have the same labels and the same kind of scores;
    otherwise the classifier keeps its fresh weights. The temporal embedding is interpolated to the
    frames of the model. CheckpointError if the saved model is merged, has tensors of other shapes
    or another frozen tower, or computes another function of the same tensors.
    """
    source = load(folder)
    if source.spec.merged:
        raise CheckpointError(
            f"{folder}: merged, so it has no adapters to go on training; "
            "give the run that it was merged from"
        )
    _require_same_function(model, source, folder)
    source.resize(frames=model.frames)
    own, taken = model.state_dict(), source.state_dict()
    same_labels = source.labels == model.labels
    if not same_labels or source.spec.multi_label != model.spec.multi_label:
        taken |= {key: own[key] for key in own if key.startswith("classifier.")}
    for key in sorted(own.keys() | taken.keys()):
        if key not in own or key not in taken or own[key].shape != taken[key].shape:
            raise CheckpointError(
                f"{folder}: the tensor {key} does not fit the new model; "
                "train with the model settings of that run"
            )
    model.load_state_dict(taken)
    if source.keeps_tower:  # timm cannot fetch the weights of this tower by name
        model.set_config(dataclasses.replace(model.spec.model, pretrained=False))


def _require_same_function(
    model: VideoClassifier, source: VideoClassifier, folder: str | os.PathLike[str]
) -> None:
    """CheckpointError if the saved model would compute something else with the same tensors."""
    configs = source.plan.config, model.plan.config
    compared: dict[str, tuple[object, object]] = {
        name: (getattr(configs[0], name), getattr(configs[1], name))
        for name in ("strategy", "operator", "ratio")
    }
    if model.plan.strategy != source.plan.strategy:
        names = ("strategy", "strategy_rules")
        compared |= {name: tuple(getattr(config, name) for config in configs) for name in names}
    compared["adapter_scale"] = (source.plan.adapter_scale, model.plan.adapter_scale)
    if model.plan.strategy.adapter == "heads":  # its tensors belong to certain heads
        compared["heads"] = (source.heads, model.heads)
    for name, (saved, wanted) in compared.items():
        if saved != wanted:
            raise CheckpointError(
                f"{folder}: was trained with {name} {saved}, not {wanted}; "
                "train with the model settings of that run"
            )
    prints = source.stored().fingerprint, model.stored().fingerprint
    if None not in prints and prints[0] != prints[1]:
        names = source.plan.config.tower, model.plan.config.tower
        raise CheckpointError(
            f"{folder}: its tower {names[0]} has other weights than {names[1]}; "
            "train with the tower of that run"
        )


@torch.no_grad()
def _read_weights(model: VideoClassifier, path: Path, config: Mapping[str, Any]) -> None:
    """Copy all tensors of a weights file into a model.

    CheckpointError names the file, and the tensor that is missing, unknown, damaged or of another
    shape.
    """
    own = model.stored_tensors()
    try:
        with safe_open(path, "pt") as file:
            keys = set(file.keys())
            if keys != own.keys():
                missing, unknown = sorted(own.keys() - keys), sorted(keys - own.keys())
                raise CheckpointError(
                    f"{path}: not this model's weights: "
                    f"missing {missing[:3]}, not known {unknown[:3]}; copy the whole folder again"
                )
            digest = config_digest(config)
            for key in sorted(keys):
                tensor = file.get_tensor(key)
                if tensor.shape != own[key].shape:
                    raise CheckpointError(
                        f"{path}: {key} is {tuple(tensor.shape)}, "
                        f"the model's is {tuple(own[key].shape)}; copy the whole folder again"
                    )
                own[key].copy_(tensor)
                add_tensors(digest, {key: tensor})
            if digest.hexdigest() not in (file.metadata() or {}).get("zeroi2v", ""):
                raise CheckpointError(
                    f"{path}: damaged, or written with another {CONFIG_FILE} than the file beside "
                    "it: the checksum is wrong; copy the whole folder again"
                )
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{path}: cannot read the weights: {error}") from error


def _read_config(path: Path) -> dict[str, Any]:
    """The content of a config.json. CheckpointError if the file is not a model's."""
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise CheckpointError(
            f"{path}: cannot read it: {error.strerror}; a model's folder holds {CONFIG_FILE}"
        ) from error
    except ValueError as error:
        raise CheckpointError(f"{path}: not JSON: {error}") from error
    if not isinstance(config, dict) or config.get("format") not in (1, FORMAT):
        raise CheckpointError(
            f"{path}: not a zeroi2v model of format 1 or {FORMAT}; "
            "give the folder of a run or of a merged model"
        )
    return config


def _download(name: str) -> Path:
    """The folder of a model `user/model` of the Hub, in the Hub's cache."""
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
            f"{name}: no such folder, and the Hub does not give it: {one_line(error)}"
        ) from error
