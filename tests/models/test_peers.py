"""Does each peer compute what its paper says, and do only its own weights train?"""

from __future__ import annotations

import copy
import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import gelu, layer_norm

import zeroi2v
from tests.towers_for_tests import TOWERS, noisy, random_clip, small_model
from tests.videos_for_tests import blocks_dataset
from zeroi2v import VideoClassifier
from zeroi2v.config import ClipConfig, ModelConfig, Recipe, TrainConfig
from zeroi2v.data.datasets import VideoDataset
from zeroi2v.engine.run import train
from zeroi2v.errors import ConfigError, MergeError, TowerError

# Settings, and the parts of the model that train beside the classifier.
PEERS: dict[str, tuple[dict[str, Any], set[str]]] = {
    "evl": ({"strategy": "evl"}, {"adapters"}),
    "aim": ({"strategy": "aim"}, {"adapters", "temporal_embedding", "tower.norm"}),
    "aim, four adapters": (
        {"strategy": "aim", "sites": ("temporal_in", "temporal", "spatial", "joint")},
        {"adapters", "temporal_embedding", "tower.norm"},
    ),
    "st_adapter": ({"strategy": "st_adapter_published"}, {"adapters"}),
    "st_adapter, two adapters": (
        {"strategy": "st_adapter_published", "sites": ("block", "mlp")},
        {"adapters"},
    ),
    "joint": ({"strategy": "joint"}, {"tower", "temporal_embedding"}),
}
KINDS = [
    "zeroi2v_tiny",  # has a class token
    "vit_base_patch16_siglip_224",  # has no class token
    "vit_small_patch14_reg4_dinov2",  # has a class token and registers
]
B, T = 2, 4


def peer(name: str, tower: str = "zeroi2v_tiny", **settings: Any) -> VideoClassifier:
    return noisy(small_model(tower, **PEERS[name][0], **settings)).double()


def attention(module: Any, x: Tensor) -> Tensor:
    """Multi-head self-attention of one sequence (N, D), head by head."""
    q, k, v = (x @ module.qkv.weight.T + module.qkv.bias).chunk(3, -1)
    heads = []
    for mine in torch.arange(x.shape[-1]).chunk(module.num_heads):
        scores = q[:, mine] @ k[:, mine].T / len(mine) ** 0.5
        heads.append(scores.softmax(-1) @ v[:, mine])
    out: Tensor = torch.cat(heads, -1) @ module.proj.weight.T + module.proj.bias
    return out


def bottleneck(adapter: Any, x: Tensor) -> Tensor:
    out: Tensor = adapter.up(gelu(adapter.down(x)))
    return out


def normed(norm: Any, x: Tensor) -> Tensor:
    return layer_norm(x, x.shape[-1:], norm.weight, norm.bias, norm.eps)


def mlp(block: Any, x: Tensor) -> Tensor:
    out: Tensor = block.mlp.fc2(gelu(block.mlp.fc1(x)))
    return out


def second_block(model: VideoClassifier) -> tuple[Any, Tensor, Tensor]:
    """The second block, its input before any hook, and its output: (B, T, N, D) each."""
    block: Any = model.tower.get_submodule("blocks.1")
    seen: list[Tensor] = []
    block.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]), prepend=True)
    block.register_forward_hook(lambda *call: seen.append(call[2]))
    with torch.no_grad():
        model(random_clip(model))
    x, out = (tokens.unflatten(0, (B, T)) for tokens in seen)
    return block, x, out


@pytest.mark.parametrize("name", ["aim", "aim, four adapters"])
def test_an_aim_block_attends_over_time_then_space_and_adapts_the_mlp(name: str) -> None:
    model = peer(name, adapter_scale=0.7)
    adapters: Any = model.adapters[1]
    block, x, out = second_block(model)
    with torch.no_grad():
        expected = x.clone()
        for clip in range(B):
            for token in range(x.shape[2]):
                y = normed(block.norm1, x[clip, :, token])
                if "temporal_in" in adapters:
                    y = y + bottleneck(adapters["temporal_in"], y)
                expected[clip, :, token] += bottleneck(
                    adapters["temporal"], attention(block.attn, y)
                )
            for frame in range(T):
                z = expected[clip, frame].clone()
                y = attention(block.attn, normed(block.norm1, z))
                z += y + bottleneck(adapters["spatial"], y)
                y = normed(block.norm2, z)
                expected[clip, frame] = z + mlp(block, y) + 0.7 * bottleneck(adapters["joint"], y)
    torch.testing.assert_close(out, expected)


@pytest.mark.parametrize("name", ["st_adapter", "st_adapter, two adapters"])
def test_st_adapters_sit_on_the_residual_stream_and_see_three_frames(name: str) -> None:
    model = peer(name)
    adapters: Any = model.adapters[1]
    block, x, out = second_block(model)

    def adapted(adapter: Any, x: Tensor) -> Tensor:
        """All tokens but the class token: x + U(conv(D(x))), a kernel of three frames."""
        assert adapter.down.out_features == x.shape[-1] // 2
        inner, kernel = adapter.down(x), adapter.conv.weight[:, 0]
        mixed = torch.zeros_like(inner) + adapter.conv.bias
        for step in (-1, 0, 1):
            for frame in range(T):
                if 0 <= frame + step < T:
                    mixed[:, frame] += kernel[:, step + 1] * inner[:, frame + step]
        more = adapter.up(mixed)
        more[:, :, 0] = 0
        out: Tensor = x + more
        return out

    with torch.no_grad():
        expected = adapted(adapters["block"], x) if "block" in adapters else x.clone()
        for clip in range(B):
            for frame in range(T):
                expected[clip, frame] += attention(
                    block.attn, normed(block.norm1, expected[clip, frame])
                )
        expected = adapted(adapters["mlp"], expected)
        expected = expected + mlp(block, normed(block.norm2, expected))
    torch.testing.assert_close(out, expected)


def test_joint_attention_is_attention_over_the_clips_concatenated_tokens() -> None:
    block, x, out = second_block(peer("joint"))
    with torch.no_grad():
        for clip in range(B):
            z = torch.cat(list(x[clip]))  # (T*N, D)
            z = z + attention(block.attn, normed(block.norm1, z))
            z = z + mlp(block, normed(block.norm2, z))
            torch.testing.assert_close(torch.cat(list(out[clip])), z)


def test_an_evl_layer_adds_to_each_patch_what_the_frames_beside_it_hold() -> None:
    model = peer("evl")
    layer: Any = model.adapters[-1]["decoder"].layers[0]  # type: ignore[index]  # a ModuleDict
    rows, columns = 6, 6
    x = torch.randn(B, T, 1 + rows * columns, 96, dtype=torch.float64)
    q, k = torch.randn(2, B, T, 12, 1 + rows * columns, 8, dtype=torch.float64)
    expected = x + layer.frame_embedding[None, :, None] + layer.convolution.bias
    with torch.no_grad():
        for frame in range(T):
            for step in (-1, 0, 1):
                if not 0 <= frame + step < T:
                    continue
                expected[:, frame] += layer.convolution.weight[:, 0, step + 1] * x[:, frame + step]
                if step == 0:
                    continue
                weight = {-1: layer.before, 1: layer.after}[step].unflatten(
                    0, (2 * rows - 1, 2 * columns - 1)
                )
                scores = q[:, frame, :, 1:] @ k[:, frame + step, :, 1:].transpose(-1, -2) / 8**0.5
                shares = scores.softmax(-1).mean(1)  # (B, P, P)
                for mine in range(rows * columns):
                    for other in range(rows * columns):
                        down = mine // columns - other // columns + rows - 1
                        right = mine % columns - other % columns + columns - 1
                        expected[:, frame, 1 + mine] += (
                            shares[:, mine, other, None] * weight[down, right]
                        )
        torch.testing.assert_close(layer.in_time(x, q, k), expected)


def test_evl_decodes_the_last_four_blocks_of_all_frames() -> None:
    model = peer("evl")
    decoder: Any = model.adapters[-1]["decoder"]  # type: ignore[index]  # a ModuleDict
    blocks: list[Tensor] = []
    for number in (2, 3, 4, 5):
        block = model.tower.get_submodule(f"blocks.{number}")
        block.register_forward_hook(lambda *call: blocks.append(call[2].unflatten(0, (B, T))))
    memories: list[Tensor] = []
    for layer in decoder.layers:
        layer.token_norm.register_forward_pre_hook(lambda _, inputs: memories.append(inputs[0]))
        # Without cross attention, a layer adds only a function of the tokens.
        nn.init.zeros_(layer.before)
        nn.init.zeros_(layer.after)
    clip = random_clip(model)
    with torch.no_grad():
        features = model.features(clip)
        assert torch.equal(features, features[:, :1].expand_as(features))
        query = decoder.query.expand(B, 1, -1)
        for layer, tokens, memory in zip(decoder.layers, blocks, memories, strict=True):
            kernel = layer.convolution.weight[:, 0]
            expected = (
                tokens
                + layer.convolution.bias
                + layer.frame_embedding[:, None]
                + kernel[:, 1] * tokens
            )
            expected[:, 1:] += kernel[:, 0] * tokens[:, :-1]
            expected[:, :-1] += kernel[:, 2] * tokens[:, 1:]
            torch.testing.assert_close(memory, expected.flatten(1, 2))
            y, q = normed(layer.token_norm, memory), normed(layer.query_norm, query)
            weight, bias = (
                layer.attention.in_proj_weight.chunk(3),
                layer.attention.in_proj_bias.chunk(3),
            )
            q, k, v = (z @ w.T + b for z, w, b in zip((q, y, y), weight, bias, strict=True))
            q, k, v = (z.unflatten(-1, (12, 8)).transpose(1, 2) for z in (q, k, v))
            read = ((q @ k.transpose(-1, -2) / 8**0.5).softmax(-1) @ v).transpose(1, 2).flatten(2)
            query = query + layer.attention.out_proj(read)
            y = normed(layer.mlp_norm, query)
            inner = layer.mlp[0](y)
            query = query + layer.mlp[3](inner * torch.sigmoid(1.702 * inner))
        torch.testing.assert_close(features[:, 0], normed(decoder.norm, query)[:, 0])


@pytest.mark.parametrize("tower", KINDS)
@pytest.mark.parametrize(
    "name", ["aim", "aim, four adapters", "st_adapter", "st_adapter, two adapters"]
)
def test_adapters_of_peers_start_as_nothing(name: str, tower: str) -> None:
    model = small_model(tower, **PEERS[name][0]).eval()
    plain = small_model(tower, strategy="linear_probe", heads=[]).eval()
    plain.tower.load_state_dict(model.tower.state_dict())
    clip = random_clip(model)
    torch.testing.assert_close(model.features(clip), started(plain, name, clip))
    changed = noisy(model).features(clip)
    assert not torch.allclose(changed, plain.features(clip), rtol=1e-2, atol=1e-2), (
        "other weights change the features"
    )


def started(plain: VideoClassifier, name: str, clip: Tensor) -> Tensor:
    """The features of a peer whose adapters do nothing, on the tower of a plain model.

    The features are those of the tower; but ST-Adapter has one feature for all frames, the norm of
    the mean class token. A tower without class token has a feature for each frame.
    """
    tower: Any = plain.tower
    if not name.startswith("st_adapter") or tower.global_pool != "token":
        return plain.features(clip)
    seen: list[Tensor] = []
    hook = tower.norm.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0][:, 0]))
    features = plain.features(clip)
    hook.remove()
    mean = seen[0].unflatten(0, (B, T)).mean(1, keepdim=True)
    return normed(tower.norm, mean).expand_as(features)


def test_an_average_that_a_norm_follows_is_taken_over_the_frames_before_the_norm() -> None:
    """Also where the tower averages its patches and then applies its norm."""
    options = {**TOWERS["zeroi2v_tiny"], "global_pool": "avg"}
    model = zeroi2v.create_model(
        "zeroi2v_tiny",
        num_classes=2,
        frames=T,
        strategy="st_adapter_published",
        tower_options=options,
    )
    noisy(model).double()
    blocks: Any = model.tower.get_submodule("blocks")
    seen: list[Tensor] = []
    blocks[-1].register_forward_hook(lambda *call: seen.append(call[2]))
    features = model.features(random_clip(model))
    mean = seen[0][:, 1:].mean(1).unflatten(0, (B, T)).mean(1, keepdim=True)
    tower: Any = model.tower
    torch.testing.assert_close(features, normed(tower.fc_norm, mean).expand_as(features))


def test_patches_of_an_st_adapter_stay_those_of_their_frames() -> None:
    model = peer("st_adapter")
    clip = random_clip(model)
    blocks: Any = model.tower.get_submodule("blocks")
    seen: list[Tensor] = []
    blocks[-1].register_forward_hook(lambda *call: seen.append(call[2]))
    tokens, tower = model.tokens(clip), model.tower
    by_frame = seen[0].unflatten(0, (B, T))
    patches = normed(tower.get_submodule("norm"), by_frame[:, :, 1:])
    torch.testing.assert_close(tokens[:, :, 1:], patches)
    assert torch.equal(tokens[:, :, 0], model.features(clip))


@pytest.mark.parametrize("tower", KINDS)
@pytest.mark.parametrize("name", PEERS)
def test_every_frame_counts_and_clips_of_a_batch_do_not_meet(name: str, tower: str) -> None:
    model = peer(name, tower)
    clip = random_clip(model)
    before = model(clip)
    for frame in range(T):
        other = clip.clone()
        other[0, frame] += 1
        after = model(other)
        assert not torch.allclose(after[0], before[0])
        torch.testing.assert_close(after[1], before[1])


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> VideoDataset:
    return blocks_dataset(tmp_path_factory.mktemp("videos"), train=4, val=1, frames=12)


@pytest.mark.parametrize("name", PEERS)
def test_a_step_of_training_moves_what_the_strategy_names_alone(
    name: str, dataset: VideoDataset, tmp_path: Path
) -> None:
    settings, parts = PEERS[name]
    recipe = Recipe(
        model=ModelConfig(**settings),
        clip=ClipConfig(frames=T),
        train=TrainConfig(epochs=2, batch_size=4, warmup_epochs=0, workers=0, precision="fp32"),
    )
    run = train(recipe, dataset, tmp_path / "run")
    model = zeroi2v.load(run.folder)
    before = zeroi2v.create_model(
        "zeroi2v_tiny", num_classes=2, frames=T, pretrained=True, **settings
    ).state_dict()
    moved = {
        key for key, tensor in model.state_dict().items() if not torch.equal(tensor, before[key])
    }
    allowed = ("classifier", *parts)
    assert all(key.startswith(allowed) for key in moved)
    assert {part for part in allowed if any(key.startswith(part) for key in moved)} == {*allowed}
    assert {key for key, parameter in model.named_parameters() if parameter.requires_grad} == {
        key for key in before if key.startswith(allowed)
    }


def test_nothing_of_evls_tower_waits_for_a_gradient() -> None:
    model = small_model("zeroi2v_tiny", strategy="evl").train()
    assert not model.tower.training
    seen: list[Tensor] = []
    for block in model.tower.get_submodule("blocks").children():
        block.register_forward_hook(lambda *call: seen.append(call[2]))
    model(random_clip(model)).sum().backward()
    assert len(seen) == 6
    assert not any(tokens.requires_grad for tokens in seen)


@pytest.mark.parametrize("tower", KINDS)
@pytest.mark.parametrize("name", PEERS)
def test_a_saved_peer_is_rebuilt_also_after_another_length(
    name: str, tower: str, tmp_path: Path
) -> None:
    model = noisy(small_model(tower, **PEERS[name][0]))
    model.resize(frames=6)
    clip = random_clip(model)
    model.save_pretrained(tmp_path)
    loaded = zeroi2v.load(tmp_path)
    assert torch.equal(loaded(clip), model(clip))
    strategy = PEERS[name][0]["strategy"]
    assert loaded.spec.model.strategy == strategy
    assert f"adapted to video with strategy {strategy}," in (tmp_path / "README.md").read_text(
        encoding="utf-8"
    )


def test_evls_decoder_is_resized_with_its_tower(tmp_path: Path) -> None:
    model = noisy(small_model("zeroi2v_tiny", strategy="evl"))
    layer: Any = model.adapters[-1]["decoder"].layers[0]  # type: ignore[index]  # a ModuleDict
    with torch.no_grad():  # a plane over the steps, which any interpolation keeps
        layer.before.copy_(
            torch.cartesian_prod(torch.arange(11.0), torch.arange(11.0))
            .sum(1)[:, None]
            .expand(-1, 96)
        )
    model.resize(image_size=64, frames=6)
    table = layer.before[:, 0].unflatten(0, (15, 15))  # a grid of 8 by 8
    assert table[7, 7] == 10
    assert bool((table.diff(dim=0) >= 0).all())
    assert layer.frame_embedding.shape == (6, 96)
    assert layer.before.requires_grad
    model.save_pretrained(tmp_path)
    clip = random_clip(model)
    assert clip.shape[1:] == (6, 3, 64, 64)
    assert torch.equal(zeroi2v.load(tmp_path)(clip), model(clip))


@pytest.mark.parametrize("name", PEERS)
def test_a_peer_cannot_be_merged_and_says_why(name: str) -> None:
    with pytest.raises(MergeError, match=r"cannot be merged: .*; strategy 'zeroi2v' can"):
        small_model("zeroi2v_tiny", **PEERS[name][0]).merge()


@pytest.mark.parametrize("name", PEERS)
def test_a_copy_of_a_peer_stands_alone(name: str) -> None:
    model = peer(name)
    clip = random_clip(model)
    before = model(clip)
    twin = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in twin.parameters():
            parameter.zero_()
    assert torch.equal(model(clip), before)
    assert not torch.allclose(twin(clip), before)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"strategy": "evl", "heads": [-1]}, "heads: strategy evl has only spatial heads"),
        (
            {"strategy": "aim", "operator": "cls_shift", "ratio": 0.25},
            "operator has no meaning for strategy aim",
        ),
        ({"strategy": "joint", "ratio": 0.25}, "ratio has no meaning"),
        ({"strategy": "evl", "sites": ("qkv",)}, "strategy evl has no site 'qkv'"),
        ({"strategy": "aim", "sites": ("temporal_in", "joint")}, "name temporal too"),
        ({"strategy": "st_adapter_published", "sites": ("blok",)}, "did you mean 'block'"),
        ({"strategy": "joint", "adapter_scale": 0.5}, "adapter_scale has no meaning"),
        ({"strategy": "evl", "adapter_ratio": 0.25}, "adapter_ratio has no meaning"),
        ({"strategy": "evl", "temporal_embedding": "zero"}, "temporal_embedding has no meaning"),
    ],
)
def test_a_setting_without_meaning_for_a_peer_is_refused(
    settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        small_model("zeroi2v_tiny", **settings)


@pytest.mark.parametrize("name", PEERS)
@pytest.mark.parametrize(
    "tower",
    ["vit_small_patch16_dinov3", "vit_relpos_small_patch16_224", "vit_small_patch16_18x2_224"],
)
def test_a_peer_refuses_what_is_no_plain_vision_transformer(name: str, tower: str) -> None:
    with pytest.raises(
        TowerError, match=f"{tower}: strategy .* is for plain vision transformers, not for"
    ):
        zeroi2v.create_model(
            tower, num_classes=2, frames=2, tower_options=TOWERS[tower], **PEERS[name][0]
        )


def test_the_paper_shapes_of_peers_are_defaults() -> None:
    aim: Any = small_model("zeroi2v_tiny", strategy="aim")
    assert aim.adapters[0]["joint"].scale == 0.5
    assert aim.adapters[0]["spatial"].scale == 1
    assert dataclasses.asdict(aim.spec.model)["adapter_scale"] is None
