"""Does a saved folder rebuild its model, and does an error name a damaged file?"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from random import Random

import huggingface_hub
import pytest
import torch
from safetensors.torch import load_file, save_file

import zeroi2v
from tests.towers_for_tests import noisy, random_clip, respec, small_model
from zeroi2v import VideoClassifier
from zeroi2v.errors import CheckpointError
from zeroi2v.models.card import model_card

IN_A_NEW_PROCESS = """
import sys, torch, zeroi2v
from pathlib import Path
from safetensors.torch import load_file, save_file
for folder in map(Path, sys.argv[1:]):
    model = zeroi2v.load(folder / "model")
    with torch.no_grad():
        logits = model(load_file(folder / "clip.safetensors")["clip"])
    save_file({"logits": logits}, folder / "logits.safetensors")
"""


def adapters_alone() -> VideoClassifier:
    """A model on the embedded tower, whose folder holds the adapters alone."""
    pretrained = zeroi2v.create_model(
        "zeroi2v_tiny", num_classes=5, frames=4, pretrained=True, adapter_scale=0.5
    )
    with torch.no_grad():
        for name, parameter in pretrained.named_parameters():
            if parameter.requires_grad:
                generator = torch.Generator().manual_seed(len(name))
                parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.1)
    return pretrained.eval()


MODELS: dict[str, Callable[[], VideoClassifier]] = {
    "adapters alone": adapters_alone,
    "with its tower": lambda: noisy(
        small_model("vit_small_plus_patch16_dinov3_qkvb", heads="-1*1/2, 2*1")
    ),
    "merged": lambda: noisy(small_model("vit_small_patch14_reg4_dinov2")).merge(),
    "probe": lambda: noisy(small_model("vit_tiny_patch16_224", strategy="linear_probe", heads=[])),
    "full": lambda: noisy(small_model("vit_tiny_patch16_224", strategy="full")),
}


@pytest.fixture(scope="module")
def rebuilt(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[VideoClassifier, Path]]:
    """Each model, and a folder with the saved model, a clip, and the logits of a new process."""
    saved = {}
    for kind, build in MODELS.items():
        model = build().with_labels(["a", "b", "c", "d", "é"])
        folder = tmp_path_factory.mktemp("rebuilt")
        model.save_pretrained(folder / "model")
        save_file({"clip": random_clip(model)}, folder / "clip.safetensors")
        saved[kind] = (model, folder)
    folders = [str(folder) for _, folder in saved.values()]
    subprocess.run([sys.executable, "-c", IN_A_NEW_PROCESS, *folders], check=True)
    return saved


@pytest.mark.parametrize("kind", MODELS)
def test_a_folder_alone_rebuilds_the_model_bit_for_bit_in_a_new_process(
    kind: str, rebuilt: dict[str, tuple[VideoClassifier, Path]]
) -> None:
    model, folder = rebuilt[kind]
    with torch.no_grad():
        expected = model(random_clip(model))
    assert torch.equal(load_file(folder / "logits.safetensors")["logits"], expected)
    again = zeroi2v.load(folder / "model")
    assert (again.labels, again.heads, again.spec.merged, again.spec.model) == (
        model.labels,
        model.heads,
        model.spec.merged,
        model.spec.model,
    )
    assert not again.training


def test_a_folder_leaves_out_the_frozen_tower_that_has_a_name(tmp_path: Path) -> None:
    model = adapters_alone()
    model.save_pretrained(tmp_path)
    from safetensors import safe_open

    with safe_open(tmp_path / "model.safetensors", "pt") as file:
        tower = sorted(key for key in set(file.keys()) if key.startswith("tower."))
    assert tower == ["tower.norm.bias", "tower.norm.weight"]


@pytest.mark.parametrize("change", ["frozen", "half"])
def test_a_model_made_ready_for_inference_saves_what_it_learned(
    change: str, tmp_path: Path
) -> None:
    model = adapters_alone()
    model = model.requires_grad_(False) if change == "frozen" else model.half()
    clip = random_clip(model)
    model.save_pretrained(tmp_path)
    again = zeroi2v.load(tmp_path)
    for name, tensor in model.state_dict().items():
        assert torch.equal(again.state_dict()[name], tensor.float()), name
    if change == "frozen":
        assert torch.equal(again(clip), model(clip))


def damaged(folder: Path, kind: str) -> None:
    weights, config = folder / "model.safetensors", folder / "config.json"
    text = json.loads(config.read_text())
    match kind:
        case "no weights":
            weights.unlink()
        case "no config":
            config.unlink()
        case "cut short":
            weights.write_bytes(weights.read_bytes()[:-100])
        case "no safetensors":
            weights.write_bytes(b"\x80\x04 pickle")
        case "no json":
            config.write_text("{")
        case "another file":
            config.write_text("[1, 2]")
        case "another format":
            config.write_text(json.dumps({**text, "format": 99}))
        case "another tower":
            config.write_text(json.dumps({**text, "tower_fingerprint": "0" * 64}))
        case "another width":
            config.write_text(json.dumps({**text, "labels": ["a", "b"]}))
        case "another strategy":
            config.write_text(
                json.dumps({**text, "model": {**text["model"], "strategy": "linear_probe"}})
            )
        case "other pixels":
            config.write_text(json.dumps({**text, "input": {**text["input"], "std": [9, 9, 9]}}))
        case "no merged":
            config.write_text(
                json.dumps({key: value for key, value in text.items() if key != "merged"})
            )
        case "unknown setting":
            config.write_text(json.dumps({**text, "model": {**text["model"], "adapter_ration": 1}}))


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("no weights", "model.safetensors: cannot read the weights"),
        ("no config", "config.json: cannot read it"),
        ("cut short", "model.safetensors: cannot read the weights"),
        ("no safetensors", "model.safetensors: cannot read the weights"),
        ("no json", "config.json: not JSON"),
        ("another file", "config.json: not a zeroi2v model"),
        ("another format", "config.json: not a zeroi2v model of format 1"),
        ("another tower", "timm's weights of tower"),
        ("another width", "classifier."),
        ("another strategy", "timm's weights of tower"),
        ("other pixels", "the input"),
        ("no merged", "not a configuration that this version reads: the entry 'merged' is missing"),
        ("unknown setting", "did you mean 'adapter_ratio'"),
    ],
)
def test_a_damaged_folder_gives_one_line_that_names_the_file(
    kind: str, message: str, tmp_path: Path
) -> None:
    adapters_alone().save_pretrained(tmp_path)
    damaged(tmp_path, kind)
    with pytest.raises(CheckpointError) as caught:
        zeroi2v.load(tmp_path)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["model.safetensors", "config.json"])
def test_a_flipped_bit_anywhere_is_noticed(name: str, tmp_path: Path) -> None:
    """A folder with a flipped bit is refused in one line, or still gives the same model.

    The same model comes only from a bit in a figure of the results.
    """
    model = adapters_alone().eval()
    model.save_pretrained(tmp_path)
    clip = torch.randn(1, model.frames, 3, model.image_size, model.image_size)
    whole = (tmp_path / name).read_bytes()
    messages = []
    for position in Random(0).sample(range(len(whole)), 40):
        flipped = bytearray(whole)
        flipped[position] ^= 1
        (tmp_path / name).write_bytes(flipped)
        try:
            loaded = zeroi2v.load(tmp_path)
        except CheckpointError as error:
            messages.append(str(error))
        else:
            assert torch.equal(loaded(clip), model(clip))
            assert loaded.labels == model.labels
    assert len(messages) >= 35
    assert not any("\n" in message for message in messages)


def test_a_folder_that_is_not_there_is_named(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(CheckpointError, match="no such folder"):
        zeroi2v.load(tmp_path / "nothing" / "here")


def test_a_folder_that_cannot_be_written_keeps_what_was_there(tmp_path: Path) -> None:
    model = adapters_alone()
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError, match="cannot be written"):
        model.save_pretrained(tmp_path / "file" / "model")
    assert (tmp_path / "file").read_text() == ""


def test_the_card_says_how_the_model_was_made_and_how_well_it_did(tmp_path: Path) -> None:
    model = small_model("zeroi2v_tiny", heads="-1*1, 1*1/2", num_classes=3)
    results = {"validation top-1": 0.875}
    respec(model, labels=("open", "close", "wave"), results=results)
    model.save_pretrained(tmp_path)
    card = (tmp_path / "README.md").read_text()
    assert card.startswith("---\nlibrary_name:")
    for said in (
        "zeroi2v_tiny",
        "{-1*1, 1*1/2, 0*21/2}",
        "open, close, wave",
        "| validation top-1 | 0.875 |",
        "4 frames of 48 x 48",
    ):
        assert said in card
    loaded = zeroi2v.load(tmp_path)
    assert loaded.spec.results == model.spec.results
    merged = loaded.merge()
    assert "merged: plain" in model_card(merged.spec, merged.stored().facts)


def test_pushing_uploads_what_saving_writes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[object] = []

    def upload(api: object, *, repo_id: str, folder_path: str, commit_message: str) -> None:
        calls.append((repo_id, sorted(path.name for path in Path(folder_path).iterdir())))

    monkeypatch.setattr(
        huggingface_hub.HfApi,
        "create_repo",
        lambda api, name, **options: calls.append((name, options)),
    )
    monkeypatch.setattr(huggingface_hub.HfApi, "upload_folder", upload)
    address = small_model("zeroi2v_tiny").push_to_hub("someone/motions", private=True)
    assert address == "https://huggingface.co/someone/motions"
    assert calls == [
        ("someone/motions", {"private": True, "exist_ok": True}),
        ("someone/motions", ["README.md", "config.json", "model.safetensors"]),
    ]


def test_a_hub_that_refuses_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(api: object, name: str, **options: object) -> None:
        raise OSError("no route\nto anything")

    monkeypatch.setattr(huggingface_hub.HfApi, "create_repo", refuse)
    with pytest.raises(
        CheckpointError, match=r"^someone/motions: the Hub refused the model: no route; if"
    ):
        small_model("zeroi2v_tiny").push_to_hub("someone/motions")
