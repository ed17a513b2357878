"""Can every row of Table 2 and every operator of Table 1a be attached, trained and merged?

The tests use towers of several kinds.
"""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import zeroi2v
from tests.towers_for_tests import new_call, noisy, random_clip, small_model
from zeroi2v import VideoClassifier
from zeroi2v.errors import ConfigError, MergeError
from zeroi2v.method.adapters import STAdapter
from zeroi2v.method.call import in_call

SIX = ("q", "k", "v", "proj", "up", "down")
LINEAR: list[dict[str, Any]] = [
    {"sites": SIX},
    {"sites": ("q",)},
    {"sites": ("qkv", "up")},
    {"strategy": "lora"},
    {"strategy": "lora", "sites": SIX},
    {"strategy": "temporal_heads", "heads": "-1*1, 1*1/2"},
    {"strategy": "full"},
    {"strategy": "linear_probe"},
    {"operator": "hr_qkv"},
    {"operator": "shift_kv", "ratio": 0.25},
    {"operator": "shift_qkv", "ratio": 1 / 3},
    {"ratio": 1 / 6},
]
NOT_LINEAR: list[dict[str, Any]] = [
    {"strategy": "gelu_adapter"},
    {"strategy": "gelu_adapter", "sites": SIX},
    {"strategy": "st_adapter"},
    {"strategy": "st_adapter", "sites": ("qkv", "up")},
]
KINDS = [
    "zeroi2v_tiny",  # [cls] token
    "vit_small_plus_patch16_dinov3_qkvb",  # SwiGLU in two halves, registers, separate biases
]


def small(tower: str, **settings: Any) -> VideoClassifier:
    return noisy(small_model(tower, adapter_scale=0.5, **settings)).double()


def named(settings: dict[str, Any]) -> str:
    return ", ".join(f"{key} {value}" for key, value in settings.items())


@pytest.mark.parametrize("tower", KINDS)
@pytest.mark.parametrize("settings", [*LINEAR, {"operator": "cls_shift", "ratio": 0.5}], ids=named)
def test_what_is_linear_merges(tower: str, settings: dict[str, Any], tmp_path: Path) -> None:
    model = small(tower, **settings)
    clip = random_clip(model)
    before = model(clip)
    merged = model.merge()
    torch.testing.assert_close(merged(clip), before, rtol=1e-8, atol=1e-10)
    merged.save_pretrained(tmp_path)
    assert torch.equal(zeroi2v.load(tmp_path).double()(clip), merged.float().double()(clip))
    plain = small_model(tower, heads=[], strategy="linear_probe")
    assert merged.state_dict().keys() == plain.state_dict().keys()


@pytest.mark.parametrize("tower", KINDS)
@pytest.mark.parametrize("settings", NOT_LINEAR, ids=named)
def test_what_is_not_linear_says_so(tower: str, settings: dict[str, Any]) -> None:
    with pytest.raises(MergeError, match="cannot be merged"):
        small(tower, **settings).merge()


@pytest.mark.parametrize("tower", KINDS)
@pytest.mark.parametrize("settings", [*LINEAR[:6], *NOT_LINEAR], ids=named)
def test_adapters_start_as_nothing_train_alone_and_are_saved(
    tower: str, settings: dict[str, Any], tmp_path: Path
) -> None:
    model = small_model(tower, **settings).eval()
    clip = random_clip(model)
    bare = small_model(tower, strategy="linear_probe", heads=settings.get("heads"))
    bare.tower.load_state_dict(model.tower.state_dict())
    torch.testing.assert_close(model.tokens(clip), bare.eval().tokens(clip), rtol=1e-5, atol=1e-5)
    # The patch tokens of the last block may reach no output, so its adapters are left out.
    adapters = list(model.adapters[:-1].parameters())
    assert adapters

    model.train()
    before = copy.deepcopy(model.state_dict())
    for _ in range(2):  # U starts at zero: the first step moves U alone, the second also D
        model.zero_grad()
        model(clip).square().sum().backward()
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.grad is not None:
                    parameter.sub_(parameter.grad, alpha=10)
    moved = {
        name for name, tensor in model.state_dict().items() if not torch.equal(tensor, before[name])
    }
    trains = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert moved <= trains
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in adapters)

    model.eval().save_pretrained(tmp_path)
    assert torch.equal(zeroi2v.load(tmp_path)(clip), model(clip))


@pytest.mark.parametrize(
    ("strategy", "trains"),
    [
        ("zeroi2v", True),
        ("lora", True),
        ("st_adapter", True),
        ("temporal_heads", True),
        ("linear_probe", False),
    ],
)
@pytest.mark.parametrize(
    ("tower", "options", "norm"),
    [
        ("zeroi2v_tiny", {"depth": 1}, "norm"),  # of all tokens; the class token is the feature
        (
            "zeroi2v_tiny",
            {"depth": 1, "global_pool": "avg"},
            "fc_norm",
        ),  # of the mean of the tokens
        ("zeroi2v_tiny", {"depth": 1, "global_pool": "avg", "final_norm": False}, None),
        ("pit_ti_224", {"img_size": 64, "depth": (1, 1, 2)}, "norm"),
        ("tiny_vit_5m_224", {"depths": (1, 1, 1, 1)}, "head.norm"),
    ],
)
@pytest.mark.filterwarnings("ignore")  # timm's own, of small versions
def test_the_norm_before_the_frame_feature_trains(
    tower: str, options: dict[str, Any], norm: str | None, strategy: str, trains: bool
) -> None:
    model = zeroi2v.create_model(
        tower, num_classes=2, frames=2, strategy=strategy, tower_options=options
    )
    trained = {
        name for name, parameter in model.tower.named_parameters() if parameter.requires_grad
    }
    assert trained == ({f"{norm}.weight", f"{norm}.bias"} if trains and norm else set())


@pytest.mark.parametrize("site", ["q", "k", "v"])
def test_a_part_of_the_projection_has_an_adapter_of_its_own(site: str) -> None:
    model = small("zeroi2v_tiny", sites=(site,), heads=[])
    projection: Any = model.tower.get_submodule("blocks.1.attn.qkv")
    adapter: Any = model.adapters[1][site]  # type: ignore[index]  # a ModuleDict
    x = torch.randn(8, 5, 96, dtype=torch.float64)
    weight, bias = projection.weight, projection.bias
    rows = slice(("q", "k", "v").index(site) * 96, (("q", "k", "v").index(site) + 1) * 96)
    expected = x @ weight.T + bias
    adapted = x + 0.5 * (
        (x @ adapter.down.weight.T + adapter.down.bias) @ adapter.up.weight.T + adapter.up.bias
    )
    expected[..., rows] = adapted @ weight[rows].T + bias[rows]
    with in_call(new_call(2, 4, adapters=model.adapters)):
        torch.testing.assert_close(projection(x), expected)
    outside = nn.functional.linear(x, weight, bias)
    assert torch.equal(projection(x), outside), "outside of a call, hooks do nothing"


def test_an_st_adapter_mixes_three_frames_of_each_patch() -> None:
    torch.manual_seed(0)
    clips, frames, tokens, prefix = 2, 5, 4, 1
    adapter = STAdapter(6, 3, scale=0.5, dropout=0.0, bias=True, prefix=prefix).double()
    for parameter in adapter.parameters():
        nn.init.normal_(parameter)
    x = torch.randn(clips * frames, prefix + tokens, 6, dtype=torch.float64)
    expected = x.clone()
    down: Tensor = adapter.down(x)
    for clip in range(clips):
        for frame in range(frames):
            for token in range(prefix, prefix + tokens):
                inner = adapter.conv.bias.clone()  # type: ignore[union-attr]  # a convolution with a bias
                for step in (-1, 0, 1):
                    if 0 <= frame + step < frames:
                        inner += (
                            adapter.conv.weight[:, 0, step + 1]
                            * down[clip * frames + frame + step, token]
                        )
                expected[clip * frames + frame, token] += 0.5 * adapter.up(inner)
    with in_call(new_call(clips, frames)):
        torch.testing.assert_close(adapter(x), expected)


def test_the_class_token_shift_needs_a_class_token() -> None:
    with pytest.raises(ConfigError, match="no class token"):
        small_model("vit_base_patch16_siglip_224", operator="cls_shift", ratio=0.25)


def test_the_class_token_shift_acts_on_both_branches() -> None:
    model = small("zeroi2v_tiny", operator="cls_shift", ratio=0.5, strategy="linear_probe")
    shifted: list[Tensor] = []
    block: Any = model.tower.get_submodule("blocks.0")
    outputs: list[Tensor] = []
    for norm, layer in ((block.norm1, block.attn.qkv), (block.norm2, block.mlp.fc1)):
        norm.register_forward_hook(lambda _, __, output: outputs.append(output.detach()))
        layer.register_forward_pre_hook(lambda _, inputs: shifted.append(inputs[0].detach()))
    model(random_clip(model))
    for normed, read in zip(outputs, shifted, strict=True):
        a, b = (tensor.unflatten(0, (2, 4)) for tensor in (normed, read))
        assert torch.equal(a[:, :, 1:], b[:, :, 1:])
        assert torch.equal(a[:, :-1, 0, :24], b[:, 1:, 0, :24])
        assert torch.equal(a[:, 1:, 0, 24:48], b[:, :-1, 0, 24:48])
        assert torch.equal(a[:, :, 0, 48:], b[:, :, 0, 48:])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"operator": "shift_kv"}, "needs ratio"),
        ({"operator": "shift_kv", "ratio": 0.25, "heads": [-1]}, "heads can be set only with"),
        ({"ratio": 0.25, "heads": [-1]}, "heads can be set only with"),
        ({"ratio": 1.5}, "ratio must be"),
        ({"strategy": "st_adapter", "sites": ("q",)}, "strategy st_adapter has no site 'q'"),
        ({"sites": ("qkv", "k")}, "qkv already stands for"),
        ({"sites": ("proj", "donw")}, "did you mean 'down'"),
        ({"strategy": "temporal_heads", "heads": []}, "no temporal heads to train"),
        ({"strategy": "full", "sites": ("qkv",)}, "strategy full has no site 'qkv'"),
    ],
)
def test_a_setting_that_does_not_fit_is_named(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        small_model("zeroi2v_tiny", **settings)
