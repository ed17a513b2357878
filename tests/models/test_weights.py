"""Does a CLIP tower give the same features, whichever library wrote the file of its weights?

And does an error name a file that does not fit?
"""

from __future__ import annotations

import functools
import json
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import load_file, save_file
from timm.layers.pos_embed import resample_abs_pos_embed
from torch import Tensor, nn

import zeroi2v
from zeroi2v.errors import CheckpointError
from zeroi2v.models.archives import read_archive
from zeroi2v.models.pictures import image_size
from zeroi2v.models.towers import build_tower
from zeroi2v.models.weights import load_tower_weights

WIDTH, DEPTH, HEADS, PATCH, SIZE = 128, 2, 2, 14, 42
OPTIONS = {
    "embed_dim": WIDTH,
    "depth": DEPTH,
    "num_heads": HEADS,
    "patch_size": PATCH,
    "img_size": SIZE,
}
QUICK, PLAIN = "vit_base_patch16_clip_quickgelu_224", "vit_base_patch16_clip_224"
assert_close = functools.partial(torch.testing.assert_close, rtol=1e-5, atol=1e-5)


def tower_of(name: str, **options: Any) -> nn.Module:
    return build_tower(name, pretrained=False, options={**OPTIONS, **options})


def randomised(module: nn.Module) -> nn.Module:
    """The module in eval mode, with noise added to every weight.

    Without noise, most norms and biases would do nothing.
    """
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in module.parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.add_(noise, alpha=0.2 if parameter.ndim < 2 else 0.05)
    return module.eval()


def pictures() -> Tensor:
    return torch.randn(3, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(1))


@torch.no_grad()
def features(tower: nn.Module) -> Tensor:
    out: Tensor = tower(pictures())
    return out


@pytest.mark.parametrize("quick", [True, False])
@pytest.mark.parametrize(
    "kind", ["CLIPModel", "CLIPVisionModel", "CLIPVisionModelWithProjection", "a pickle"]
)
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_transformers(kind: str, quick: bool, tmp_path: Path) -> None:
    transformers = pytest.importorskip(
        "transformers", reason="transformers, which is to write the file, is not installed"
    )
    sizes = {
        "hidden_size": WIDTH,
        "intermediate_size": 4 * WIDTH,
        "num_hidden_layers": DEPTH,
        "num_attention_heads": HEADS,
    }
    vision = {
        **sizes,
        "image_size": SIZE,
        "patch_size": PATCH,
        "hidden_act": "quick_gelu" if quick else "gelu",
    }
    text = {
        **sizes,
        "vocab_size": 9,
        "max_position_embeddings": 8,
        "bos_token_id": 1,
        "eos_token_id": 2,
    }
    if kind in ("CLIPModel", "a pickle"):
        model = transformers.CLIPModel(
            transformers.CLIPConfig(vision_config=vision, text_config=text)
        )
    else:
        model = getattr(transformers, kind)(transformers.CLIPVisionConfig(**vision))
    randomised(model)
    model.save_pretrained(tmp_path)
    if kind == "a pickle":
        torch.save(model.state_dict(), tmp_path / "pytorch_model.bin")
        (tmp_path / "model.safetensors").unlink()
    with torch.no_grad():
        theirs = getattr(model, "vision_model", model)(pixel_values=pictures()).pooler_output
    tower = tower_of(QUICK if quick else PLAIN)
    load_tower_weights(tower, tmp_path)
    assert_close(features(tower), theirs)
    with pytest.raises(
        CheckpointError,
        match="take a tower with quickgelu" if quick else "take a tower without quickgelu",
    ):
        load_tower_weights(tower_of(PLAIN if quick else QUICK), tmp_path)


def open_clip_model(*, quick: bool, own_text: bool = False) -> Any:
    """A small CLIP of open_clip, with every weight made to matter."""
    model = pytest.importorskip(
        "open_clip.model", reason="open_clip, which is to write the file, is not installed"
    )
    vision = {
        "layers": DEPTH,
        "width": WIDTH,
        "head_width": WIDTH // HEADS,
        "patch_size": PATCH,
        "image_size": SIZE,
    }
    text = {"context_length": 8, "vocab_size": 9, "width": 32, "heads": 2, "layers": 1}
    kind = model.CustomTextCLIP if own_text else model.CLIP
    return randomised(kind(embed_dim=16, vision_cfg=vision, text_cfg=text, quick_gelu=quick))


@torch.no_grad()
def open_clip_features(model: Any) -> Tensor:
    """The feature of open_clip's image encoder, before the projection to the space of texts."""
    model.visual.proj = None
    out: Tensor = model.visual(pictures())
    return out


@pytest.mark.parametrize("quick", [True, False])
@pytest.mark.parametrize(
    "kind", ["safetensors", "bin", "own text tower", "training run", "image encoder alone"]
)
def test_open_clip(kind: str, quick: bool, tmp_path: Path) -> None:
    model = open_clip_model(quick=quick, own_text=kind == "own text tower")
    path = tmp_path / "open_clip_pytorch_model.bin"
    state = model.state_dict()
    match kind:
        case "safetensors":
            path = path.with_name("open_clip_model.safetensors")
            save_file(state, path)
        case "training run":
            torch.save(
                {
                    "epoch": 3,
                    "state_dict": {f"module.{key}": tensor for key, tensor in state.items()},
                },
                path,
            )
        case "image encoder alone":
            torch.save(model.visual.state_dict(), path)
        case _:
            torch.save(state, path)
    tower = tower_of(QUICK if quick else PLAIN)
    load_tower_weights(tower, path)
    assert_close(features(tower), open_clip_features(model))
    (tmp_path / "open_clip_config.json").write_text(
        json.dumps({"model_cfg": {"quick_gelu": quick}})
    )
    load_tower_weights(tower, tmp_path)
    with pytest.raises(CheckpointError, match="quickgelu in its name"):
        load_tower_weights(tower_of(PLAIN if quick else QUICK), path)


class Archived(nn.Module):
    """A module like those in OpenAI's archives: a CLIP and three numbers."""

    def __init__(self, clip: Any) -> None:
        super().__init__()
        self.visual, self.transformer, self.ln_final = clip.visual, clip.transformer, clip.ln_final
        self.token_embedding, self.logit_scale = clip.token_embedding, clip.logit_scale
        self.positional_embedding, self.text_projection = (
            clip.positional_embedding,
            clip.text_projection,
        )
        for name, value in {"input_resolution": SIZE, "context_length": 8, "vocab_size": 9}.items():
            self.register_buffer(name, torch.tensor(value))

    def forward(self, image: Tensor) -> Tensor:
        return image + 0  # nothing is run


def write_archive(path: Path, *, half: bool = False) -> Any:
    """Write a TorchScript archive like OpenAI's, whose weights are fp16; give the CLIP in it."""
    model = open_clip_model(quick=True)
    archived = Archived(model)
    torch.jit.trace(archived.half() if half else archived, pictures()).save(path)
    return model.float()


@pytest.mark.parametrize("half", [False, True], ids=["fp32", "fp16"])
@pytest.mark.filterwarnings("ignore:`torch.jit")
def test_openai_archives(half: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "ViT-B-16.pt"
    model = write_archive(path, half=half)
    state = {key: tensor.clone() for key, tensor in torch.jit.load(path).state_dict().items()}
    monkeypatch.setattr(torch.jit, "load", None)
    tower = tower_of(QUICK)
    load_tower_weights(tower, path)
    assert_close(features(tower), open_clip_features(model))
    with pytest.raises(CheckpointError, match="take a tower with quickgelu"):
        load_tower_weights(tower_of(PLAIN), path)
    torch.save(state, path)
    again = tower_of(QUICK)
    load_tower_weights(again, path)
    assert torch.equal(features(again), features(tower))
    with pytest.raises(CheckpointError, match="take a tower with quickgelu"):
        load_tower_weights(tower_of(PLAIN), path)


class WithSettings(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.sizes, self.linear = [3, 4], nn.Linear(3, 4)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.sizes[0]


@pytest.mark.filterwarnings("ignore:`torch.jit")
def test_an_archive_may_hold_settings_beside_tensors(tmp_path: Path) -> None:
    torch.jit.script(WithSettings()).save(tmp_path / "model.pt")
    theirs = torch.jit.load(tmp_path / "model.pt").state_dict()
    ours = read_archive(tmp_path / "model.pt").tensors
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[key], theirs[key]) for key in ours)


@pytest.mark.filterwarnings("ignore:`torch.jit")
def test_an_archive_that_names_python_is_refused(tmp_path: Path) -> None:
    good, path, marker = tmp_path / "good.pt", tmp_path / "ViT-B-16.pt", tmp_path / "marker"
    write_archive(good)
    with zipfile.ZipFile(good) as source, zipfile.ZipFile(path, "w") as target:
        for name in source.namelist():
            attack = (
                b"\x80\x02cposix\nsystem\nX"
                + len(f"touch {marker}").to_bytes(4, "little")
                + f"touch {marker}".encode()
                + b"\x85R."
            )
            target.writestr(name, attack if name.endswith("/data.pkl") else source.read(name))
    with pytest.raises(CheckpointError, match=r"holds posix\.system"):
        load_tower_weights(tower_of(QUICK), path)
    assert not marker.exists()


@pytest.mark.parametrize(
    "tower", [QUICK, "vit_small_patch14_reg4_dinov2", "vit_base_patch16_siglip_224", "zeroi2v_tiny"]
)
@pytest.mark.parametrize("kind", ["safetensors", "pth", "training run"])
def test_timm(tower: str, kind: str, tmp_path: Path) -> None:
    options = (
        {}
        if tower == "zeroi2v_tiny"
        else {"img_size": SIZE, "patch_size": PATCH, "depth": 1, "embed_dim": 128, "num_heads": 2}
    )
    theirs = randomised(build_tower(tower, pretrained=False, options=options))
    state = dict(theirs.state_dict())
    path = tmp_path / ("model.safetensors" if kind == "safetensors" else "model.pth")
    if kind == "safetensors":
        save_file(state, path)
    else:
        state |= {
            "head.weight": torch.ones(5, 128),
            "head.bias": torch.ones(5),
        }  # timm's classifier
        torch.save({"state_dict": state, "epoch": 9} if kind == "training run" else state, path)
    ours = build_tower(tower, pretrained=False, options=options)
    load_tower_weights(ours, path)
    size = image_size(ours)
    picture = torch.randn(1, 3, size, size, generator=torch.Generator().manual_seed(1))
    assert torch.equal(ours(picture), theirs(picture))


def timm_file(path: Path) -> nn.Module:
    tower = randomised(tower_of(QUICK))
    save_file(tower.state_dict(), path)
    return tower


def test_a_model_takes_its_tower_from_a_file_and_needs_it_no_more_once_saved(
    tmp_path: Path,
) -> None:
    path = tmp_path / "clip.safetensors"
    theirs = timm_file(path)
    model = zeroi2v.create_model(
        QUICK, num_classes=5, frames=3, heads=[], weights=path, tower_options=OPTIONS
    ).eval()
    clip = pictures()[None]
    assert torch.equal(model.features(clip)[0], features(theirs))
    model.save_pretrained(tmp_path / "model")
    assert str(tmp_path) not in (tmp_path / "model" / "config.json").read_text()
    path.unlink()
    again = zeroi2v.load(tmp_path / "model")
    assert torch.equal(again(clip), model(clip))
    assert again.spec.model == model.spec.model


def test_weights_come_before_pretrained_ones(tmp_path: Path) -> None:
    theirs = timm_file(tmp_path / "clip.safetensors")
    model = zeroi2v.create_model(
        QUICK,
        num_classes=5,
        frames=3,
        heads=[],
        pretrained=True,
        weights=tmp_path / "clip.safetensors",
        tower_options=OPTIONS,
    ).eval()
    assert torch.equal(model.features(pictures()[None])[0], features(theirs))
    assert not model.spec.model.pretrained


def damaged(change: Callable[[dict[str, Tensor]], object]) -> Callable[[Path], object]:
    def write(path: Path) -> None:
        timm_file(path)
        state = load_file(path)
        change(state)
        save_file(state, path)

    return write


def with_config(text: str) -> Callable[[Path], object]:
    def write(path: Path) -> None:
        save_file({"class_embedding": torch.ones(WIDTH)}, path)
        path.with_name("config.json").write_text(text)

    return write


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (damaged(lambda s: s.pop("blocks.1.norm2.bias")), "missing blocks.1.norm2.bias"),
        (damaged(lambda s: s.update(mask_token=torch.ones(1))), "not known mask_token"),
        (
            damaged(lambda s: s.update({"pos_embed": torch.ones(1, 5, WIDTH)})),
            "pos_embed is (1, 5, 128)",
        ),
        (
            damaged(lambda s: s.update(class_embedding=torch.ones(WIDTH))),
            "missing positional_embedding, conv1.weight, ln_pre.weight and 27 more; "
            "not known blocks.0.",
        ),
        (lambda path: path.write_bytes(b"no tensors"), "not a file of weights"),
        (with_config("{"), "config.json: cannot be read"),
        (with_config("[]"), "config.json: not a configuration"),
        (with_config("{}"), "missing positional_embedding, conv1.weight"),
        (lambda path: None, "no such file"),
    ],
)
def test_a_file_that_does_not_fit_gives_one_line_that_names_it(
    write: Callable[[Path], object], message: str, tmp_path: Path
) -> None:
    path = tmp_path / "model.safetensors"
    write(path)
    tower = tower_of(QUICK)
    before = features(tower)
    with pytest.raises(CheckpointError) as caught:
        load_tower_weights(tower, path)
    assert message in str(caught.value)
    assert str(tmp_path) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert torch.equal(features(tower), before), "nothing is loaded in part"


def test_another_tower_is_named(tmp_path: Path) -> None:
    path = tmp_path / "clip.bin"
    torch.save(open_clip_model(quick=False).state_dict(), path)
    with pytest.raises(CheckpointError, match=r"not known visual\.transformer\.resblocks\.1"):
        load_tower_weights(tower_of(PLAIN, depth=1), path)
    with pytest.raises(
        CheckpointError,
        match=r"visual\.class_embedding is \(128,\) torch\.float32, the model's is \(1, 1, 192\)",
    ):
        load_tower_weights(tower_of(PLAIN, embed_dim=192), path)
    with pytest.raises(CheckpointError, match="no tensor for reg_token of the tower"):
        load_tower_weights(tower_of("vit_small_patch14_reg4_dinov2"), path)
    shutil.copy(path, tmp_path / "official.pth")
    with pytest.raises(CheckpointError, match=r"backbone\.conv1\.weight is missing"):
        zeroi2v.load_official(tmp_path / "official.pth", heads=[], adapter_scale=1.0)


SMALL_SWIN = {"embed_dim": 24, "depths": (2, 2), "num_heads": (2, 4)}
GRIDS: dict[str, tuple[str, dict[str, Any], dict[str, Any], str]] = {
    # kind: tower, options of the file's tower, options of the model's tower, a tensor that changes
    "class token": (
        "vit_small_patch14_dinov2",
        {"img_size": 56, "depth": 1},
        {"img_size": 28, "depth": 1},
        "pos_embed",
    ),
    "registers": (
        "vit_small_patch14_reg4_dinov2",
        {"img_size": 28, "depth": 1},
        {"img_size": 56, "depth": 1},
        "pos_embed",
    ),
    "attention pooling": (
        "vit_base_patch16_siglip_224",
        {"img_size": 32, "depth": 1, "embed_dim": 96},
        {"img_size": 64, "depth": 1, "embed_dim": 96},
        "pos_embed",
    ),
    "bilinear": (
        "flexivit_small",
        {"img_size": 32, "depth": 1},
        {"img_size": 80, "depth": 1},
        "pos_embed",
    ),
    "the embedded tower": ("zeroi2v_tiny", {}, {"img_size": 64}, "pos_embed"),
    "DeiT III": (
        "deit3_small_patch16_224",
        {"img_size": 32, "depth": 1},
        {"img_size": 48, "depth": 1},
        "pos_embed",
    ),
    "BEiT": (
        "beit_base_patch16_224",
        {"img_size": 32, "depth": 1, "embed_dim": 192},
        {"img_size": 64, "depth": 1, "embed_dim": 192},
        "blocks.0.attn.relative_position_bias_table",
    ),
    "EVA": (
        "eva02_tiny_patch14_224",
        {"img_size": 28, "depth": 1},
        {"img_size": 42, "depth": 1},
        "pos_embed",
    ),
    "Swin": (
        "swin_tiny_patch4_window7_224",
        {**SMALL_SWIN, "img_size": 96, "window_size": 12},
        {**SMALL_SWIN, "img_size": 56, "window_size": 7},
        "layers.0.blocks.0.attn.relative_position_bias_table",
    ),
    "MViTv2": (
        "mvitv2_tiny",
        {"img_size": 64},
        {"img_size": 96},
        "stages.0.blocks.0.attn.rel_pos_h",
    ),
    "TinyViT": (
        "tiny_vit_5m_224",
        {"window_sizes": (7, 7, 14, 7)},
        {"window_sizes": (4, 4, 7, 4)},
        "stages.1.blocks.0.attn.attention_biases",
    ),
    "MaxViT": (
        "maxvit_tiny_rw_224",
        {"img_size": 224},
        {"img_size": 256},
        "stages.0.blocks.0.attn_block.attn.rel_pos.relative_position_bias_table",
    ),
}


@pytest.mark.parametrize("kind", GRIDS)
@pytest.mark.filterwarnings("ignore::UserWarning")  # timm's own, where the test calls timm
def test_position_tensors_of_another_size_are_resized_as_timm_resizes_pretrained_ones(
    kind: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    name, of_file, of_model, resized = GRIDS[kind]
    theirs = randomised(build_tower(name, pretrained=False, options=of_file))
    path = tmp_path / "tower.safetensors"
    save_file(theirs.state_dict(), path)
    model = zeroi2v.create_model(
        name, num_classes=2, frames=2, heads=[], weights=path, tower_options=of_model
    )
    found = model.tower.state_dict()
    if name == "zeroi2v_tiny":
        grid = resample_abs_pos_embed(theirs.state_dict()[resized], [8, 8])
        expected = {**theirs.state_dict(), resized: grid}
    else:
        overlay = {"file": str(path)}
        oracle = timm.create_model(
            name, pretrained=True, pretrained_cfg_overlay=overlay, num_classes=0, **of_model
        )
        expected = dict(oracle.state_dict())
    assert found[resized].shape != theirs.state_dict()[resized].shape
    assert {*found} == {*expected}
    for key, tensor in found.items():
        assert torch.equal(tensor, expected[key]), key
    (line,) = (record.getMessage() for record in caplog.records if "resized" in record.message)
    assert str(path) in line
    assert resized.rpartition(".")[2] in line
    assert "\n" not in line


def test_a_position_embedding_of_another_library_is_resized_too(tmp_path: Path) -> None:
    theirs = open_clip_model(quick=True)
    path = tmp_path / "open_clip_pytorch_model.bin"
    torch.save(theirs.state_dict(), path)
    options = {**OPTIONS, "img_size": 2 * SIZE}
    tower = zeroi2v.create_model(
        QUICK, num_classes=2, frames=2, heads=[], weights=path, tower_options=options
    ).tower
    stored = theirs.visual.positional_embedding[None]
    assert torch.equal(tower.get_parameter("pos_embed"), resample_abs_pos_embed(stored, [6, 6]))
    qkv = theirs.visual.transformer.resblocks[1].attn.in_proj_weight
    assert torch.equal(tower.get_parameter("blocks.1.attn.qkv.weight"), qkv)


def test_buffers_that_older_versions_of_timm_stored_are_left_out(tmp_path: Path) -> None:
    name, options, *_ = GRIDS["Swin"]
    theirs = randomised(build_tower(name, pretrained=False, options=options))
    path = tmp_path / "tower.safetensors"
    stored = {
        key: buffer for key, buffer in theirs.named_buffers() if key not in theirs.state_dict()
    }
    assert any("relative_position_index" in key for key in stored)
    save_file({**theirs.state_dict(), **stored}, path)
    tower = build_tower(name, pretrained=False, options=options)
    load_tower_weights(tower, path)
    assert torch.equal(
        tower.get_parameter("norm.weight"), dict(theirs.named_parameters())["norm.weight"]
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"patch_size": 7}, "patch_embed.proj.weight is (128, 3, 14, 14)"),
        ({"embed_dim": 192}, "the model's is"),
        ({"mlp_ratio": 2.0}, "blocks.0.mlp.fc1"),
        ({"img_size": 28, "num_heads": 2, "embed_dim": 64}, "the model's is"),
    ],
)
def test_other_shapes_are_refused_although_a_grid_may_differ(
    options: dict[str, Any], message: str, tmp_path: Path
) -> None:
    path = tmp_path / "tower.safetensors"
    timm_file(path)
    with pytest.raises(CheckpointError) as caught:
        zeroi2v.create_model(
            QUICK, num_classes=2, frames=2, weights=path, tower_options={**OPTIONS, **options}
        )
    assert message in str(caught.value)
    assert "choose the tower or the file that fits" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("tokens", [1, 4, 6, 9, 12])
def test_a_position_embedding_that_is_no_square_grid_is_refused(
    tokens: int, tmp_path: Path
) -> None:
    path = tmp_path / "tower.safetensors"
    damaged(lambda state: state.update(pos_embed=torch.ones(1, tokens, WIDTH)))(path)
    with pytest.raises(CheckpointError, match=rf"pos_embed is \(1, {tokens}, 128\)"):
        zeroi2v.create_model(QUICK, num_classes=2, frames=2, weights=path, tower_options=OPTIONS)
