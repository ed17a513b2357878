"""Do the peers give the outputs, gradients and starting values of their authors' code?

The golden numbers come from the authors' classes. The second routes of `peers_for_tests` are
checked against these numbers, and then stand for the authors' code where there are no numbers.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.peers_for_tests import GOLDEN, Golden, second_route, tiny_peer
from tests.towers_for_tests import noisy, random_clip
from zeroi2v import VideoClassifier
from zeroi2v.models.peers import st_adapter

every_peer = pytest.mark.parametrize("golden", GOLDEN.values(), ids=GOLDEN)


def trained(model: VideoClassifier) -> dict[str, Tensor]:
    return {name: weight for name, weight in model.named_parameters() if weight.requires_grad}


@every_peer
def test_a_peer_as_built_gives_the_numbers_of_its_authors_code(golden: Golden) -> None:
    model, clip = golden.model(), golden.clip()
    with torch.no_grad():
        torch.testing.assert_close(model(clip), golden.outputs["logits"], rtol=0, atol=1e-12)
        features = model.features(clip)
    if "frames" in golden.outputs:
        torch.testing.assert_close(features, golden.outputs["frames"], rtol=0, atol=1e-12)
    else:  # the authors have one feature for the clip, which stands for each frame here
        expected = golden.outputs["feature"][:, None].expand_as(features)
        torch.testing.assert_close(features, expected, rtol=0, atol=1e-12)


@every_peer
def test_the_second_routes_give_the_numbers_of_the_authors_code(golden: Golden) -> None:
    model = golden.model()
    logits = second_route(model, model.state_dict(), golden.clip())
    torch.testing.assert_close(logits, golden.outputs["logits"], rtol=0, atol=1e-12)


VARIANTS: list[dict[str, Any]] = [
    {"strategy": "aim", "frames": 3, "depth": 3, "num_heads": 4},
    {"strategy": "aim", "adapter_ratio": 0.5, "frames": 1},
    {
        "strategy": "aim",
        "sites": ("temporal_in", "temporal", "spatial", "joint"),
        "adapter_scale": 1.0,
        "frames": 5,
    },
    {"strategy": "st_adapter_published", "frames": 3},
    {"strategy": "st_adapter_published", "sites": ("block",), "frames": 1},
    {"strategy": "st_adapter_published", "sites": ("block", "mlp"), "num_heads": 4, "frames": 6},
    {"strategy": "st_adapter_published", "adapter_ratio": 0.25, "adapter_scale": 0.5},
    {"strategy": "evl", "frames": 3, "depth": 6},
    {"strategy": "evl", "decoder_layers": 1, "depth": 3, "num_heads": 4},
    {"strategy": "evl", "decoder_layers": 12, "depth": 12, "frames": 2},
    {"strategy": "evl", "decoder_layers": 5, "depth": 5, "frames": 1, "img_size": 48},
]


@pytest.mark.parametrize("settings", VARIANTS, ids=str)
def test_outputs_and_gradients_are_those_of_the_second_route(settings: dict[str, Any]) -> None:
    model = noisy(tiny_peer(**settings))
    agree(model, random_clip(model))


@every_peer
def test_gradients_are_those_of_the_second_route_with_the_authors_weights(golden: Golden) -> None:
    agree(golden.model(), golden.clip())


def agree(model: VideoClassifier, clip: Tensor) -> None:
    """Logits, and the gradient of every weight that trains, are those of the second route."""
    weights = trained(model)
    logits = model(clip)
    direction = torch.randn(logits.shape, dtype=torch.float64)
    gradients = torch.autograd.grad((logits * direction).sum(), list(weights.values()))
    again = {name: weight.detach().requires_grad_() for name, weight in weights.items()}
    expected = second_route(model, {**model.state_dict(), **again}, clip)
    torch.testing.assert_close(logits, expected, rtol=1e-9, atol=1e-10)
    expected_gradients = torch.autograd.grad(
        (expected * direction).sum(), list(again.values()), allow_unused=True
    )
    for name, gradient, wanted in zip(weights, gradients, expected_gradients, strict=True):
        if wanted is None:  # of a weight that the clip does not reach: temporal weights of 1 frame
            wanted = torch.zeros_like(gradient)
        assert torch.allclose(gradient, wanted, rtol=1e-7, atol=1e-9), name


# Mistakes that a reader of the papers could make. Each changes a model that is right.


def flipped(convolution: Any) -> None:
    """A convolution in place of a correlation."""
    convolution.weight.data = convolution.weight.data.flip(-1)


def circular(convolution: Any) -> None:
    """The first frame follows the last."""
    weight, bias, groups = convolution.weight, convolution.bias, convolution.groups
    convolution.forward = lambda x: F.conv1d(
        F.pad(x, (1, 1), mode="circular"), weight, bias, groups=groups
    )


def swapped(module: Any, first: str, second: str) -> None:
    one, other = getattr(module, first), getattr(module, second)
    setattr(module, first, other)
    setattr(module, second, one)


def blocks_of(model: VideoClassifier) -> Any:
    return model.tower.get_submodule("blocks")


def layers_of(model: VideoClassifier) -> Any:
    decoder: Any = model.adapters[-1]["decoder"]  # type: ignore[index]  # a ModuleDict
    return decoder.layers


def sited(model: VideoClassifier, site: str) -> list[Any]:
    return [adapters[site] for adapters in model.adapters]  # type: ignore[index]  # ModuleDicts


def for_layers(change: Callable[[Any], object]) -> Callable[[VideoClassifier], None]:
    """A mistake in every layer of EVL's decoder."""

    def make(model: VideoClassifier) -> None:
        for layer in layers_of(model):
            change(layer)

    return make


def for_site(site: str, change: Callable[[Any], object]) -> Callable[[VideoClassifier], None]:
    """A mistake in the adapter of every block at a site."""

    def make(model: VideoClassifier) -> None:
        for adapter in sited(model, site):
            change(adapter)

    return make


def put(name: str, value: object) -> Callable[[Any], None]:
    return lambda module: setattr(module, name, value)


def plain_frames(layer: Any) -> None:
    """The class token is not convolved over time."""
    convolved = layer.convolution.forward

    def patches_only(series: Tensor) -> Tensor:  # (B*N, D, T), the class token of a clip first
        by_clip = convolved(series).unflatten(0, (2, -1))
        by_clip[:, 0] = 0
        out: Tensor = by_clip.flatten(0, 1)
        return out

    layer.convolution.forward = patches_only


def later_keys(layer: Any) -> None:
    """Cross attention reads the keys of the frame beside the right one."""
    in_time = layer.in_time
    layer.in_time = lambda tokens, queries, keys: in_time(tokens, queries, keys.roll(1, 1))


def with_scores(layer: Any, change: Callable[[Tensor], Tensor]) -> None:
    """Cross attention with other queries, or other shares of the heads."""
    cross = layer.cross_attention
    layer.cross_attention = lambda queries, keys, weight: cross(change(queries), keys, weight)


def without_last_residual(layer: Any) -> None:
    """The query does not skip the MLP."""
    mlp, norm = layer.mlp, layer.mlp_norm
    seen: list[Tensor] = []
    norm.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    mlp.register_forward_hook(lambda _, __, output: output - seen[-1])


def with_skip(adapter: Any) -> None:
    branch = adapter.branch
    adapter.branch = lambda x: x + branch(x)


def without_skip(adapter: Any) -> None:
    adapter.forward = adapter.branch


def before_convolution(adapter: Any) -> None:
    """The activation follows D and not the convolution, where there should be none."""
    adapter.down = nn.Sequential(adapter.down, nn.GELU())
    adapter.down.in_features = 0


def embedding_after_norm(model: VideoClassifier) -> None:
    hook = model.tower.get_submodule("norm_pre")._forward_pre_hooks
    (embedding,) = hook.values()
    hook.clear()
    blocks_of(model)[0].register_forward_pre_hook(embedding, prepend=True)


def joint_in_series(model: VideoClassifier) -> None:
    """The joint adapter reads the output of the MLP and not its input."""
    for block, adapter in zip(blocks_of(model), sited(model, "joint"), strict=True):
        block.mlp._forward_hooks.clear()
        block.mlp.register_forward_hook(
            lambda _, __, output, adapter=adapter: output + 0.5 * adapter.branch(output)
        )


def only_to_mlp(model: VideoClassifier) -> None:
    """The MLP sees the adapted stream, but the next block does not."""
    for block in blocks_of(model):
        block._forward_hooks.clear()


def branch_alone(model: VideoClassifier) -> None:
    """The MLP sees what the adapter adds to the stream, and not the stream."""
    for block in blocks_of(model):
        seen: list[Tensor] = []
        block.norm2.register_forward_pre_hook(
            lambda _, inputs, seen=seen: seen.append(inputs[0]), prepend=True
        )
        block.norm2.register_forward_pre_hook(
            lambda _, inputs, seen=seen: (inputs[0] - seen[-1], *inputs[1:])
        )


def class_token_out_of_time(adapter: Any) -> None:
    """The class token does not attend along the frames."""
    adapter.dropped = lambda branch: torch.cat(
        [torch.zeros_like(branch[..., :1, :]), branch[..., 1:, :]], -2
    )


def norms_swapped(model: VideoClassifier) -> None:
    for block in blocks_of(model):
        swapped(block, "norm1", "norm2")


def blocks_in_reverse(model: VideoClassifier) -> None:
    """The first layer of the decoder reads the last block."""
    decoder: Any = model.adapters[-1]["decoder"]  # type: ignore[index]  # a ModuleDict
    decoder.layers = nn.ModuleList(reversed(decoder.layers))


def mean_before_norm(model: VideoClassifier) -> None:
    model.tower.get_submodule("norm").register_forward_pre_hook(st_adapter.FrameMean(1))


def norm_before_mean(model: VideoClassifier) -> None:
    model.tower.get_submodule("norm")._forward_pre_hooks.clear()


def before_attention(model: VideoClassifier) -> None:
    """The adapter stands at the start of the block and not before the MLP."""
    for block, adapter in zip(blocks_of(model), sited(model, "mlp"), strict=True):
        block._forward_hooks.clear()
        block.norm2._forward_pre_hooks.clear()
        block.register_forward_pre_hook(
            lambda _, inputs, adapter=adapter: (adapter(inputs[0]), *inputs[1:])
        )


MISTAKES: dict[str, tuple[str, Callable[[VideoClassifier], None]]] = {
    "flipped kernel": ("evl", for_layers(lambda layer: flipped(layer.convolution))),
    "circular kernel": ("evl", for_layers(lambda layer: circular(layer.convolution))),
    "GELU for QuickGELU": ("evl", for_layers(lambda layer: layer.mlp.__setitem__(1, nn.GELU()))),
    "norms of query and MLP swapped": (
        "evl",
        for_layers(lambda layer: swapped(layer, "query_norm", "mlp_norm")),
    ),
    "norms of query and tokens swapped": (
        "evl",
        for_layers(lambda layer: swapped(layer, "query_norm", "token_norm")),
    ),
    "tokens without norm": ("evl", for_layers(put("token_norm", nn.Identity()))),
    "before and after swapped": (
        "evl",
        for_layers(lambda layer: swapped(layer, "before", "after")),
    ),
    "displacements from the other patch": (
        "evl",
        for_layers(lambda layer: put("displacements", layer.displacements.T)(layer)),
    ),
    "keys of another frame": ("evl", for_layers(later_keys)),
    "class token not convolved": ("evl", for_layers(plain_frames)),
    "cross attention without scale": (
        "evl",
        for_layers(lambda layer: with_scores(layer, lambda q: q * q.shape[-1] ** 0.5)),
    ),
    "frames in reverse": (
        "evl",
        for_layers(
            lambda layer: put("frame_embedding", nn.Parameter(layer.frame_embedding.flip(0)))(layer)
        ),
    ),
    "blocks in reverse": ("evl", blocks_in_reverse),
    "no residual around the MLP": ("evl", for_layers(without_last_residual)),
    "scale 1": ("aim", for_site("joint", put("scale", 1.0))),
    "temporal adapter with skip": ("aim", for_site("temporal", with_skip)),
    "spatial adapter without skip": ("aim", for_site("spatial", without_skip)),
    "joint adapter in series": ("aim", joint_in_series),
    "temporal embedding after the norm": ("aim", embedding_after_norm),
    "class token without time": ("aim", for_site("temporal", class_token_out_of_time)),
    "mean before norm": ("aim", mean_before_norm),
    "linear adapters": ("aim", for_site("spatial", put("activate", lambda narrow: narrow))),
    "norms of the block swapped": ("aim", norms_swapped),
    "flipped kernel of the adapter": (
        "st_adapter",
        for_site("mlp", lambda adapter: flipped(adapter.conv)),
    ),
    "circular kernel of the adapter": (
        "st_adapter",
        for_site("mlp", lambda adapter: circular(adapter.conv)),
    ),
    "class token in the convolution": ("st_adapter", for_site("mlp", put("prefix", 0))),
    "GELU after the convolution": ("st_adapter", for_site("mlp", put("gelu", True))),
    "GELU before the convolution": ("st_adapter", for_site("mlp", before_convolution)),
    "scale 0.5": ("st_adapter", for_site("mlp", put("scale", 0.5))),
    "adapter without skip": ("st_adapter", branch_alone),
    "adapter before the attention": ("st_adapter", before_attention),
    "adapter for the MLP alone": ("st_adapter", only_to_mlp),
    "norm before mean": ("st_adapter", norm_before_mean),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_plausible_mistake_gives_other_numbers(mistake: str) -> None:
    name, make = MISTAKES[mistake]
    golden = GOLDEN[name]
    model = golden.model()
    make(model)
    with torch.no_grad():
        difference = (model(golden.clip()) - golden.outputs["logits"]).abs().max()
    assert difference > 1e-3, "the golden numbers would not show this mistake"
