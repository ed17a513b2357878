"""With which weights do the peers start, and what does a training step of theirs leave out?

The bounds and deviations are those of the authors' code.
"""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.peers_for_tests import tiny_peer
from tests.towers_for_tests import noisy, random_clip
from zeroi2v import VideoClassifier
from zeroi2v.errors import ConfigError

WIDTH, CLASSES = 96, 40


def fresh(strategy: str, **settings: Any) -> VideoClassifier:
    """A model whose tensors are large enough to tell one distribution from another."""
    return tiny_peer(strategy, embed_dim=WIDTH, num_heads=4, num_classes=CLASSES, **settings)


def is_uniform(weight: Tensor, bound: float) -> bool:
    """Whether the numbers are spread evenly from -bound to bound."""
    numbers = weight.detach().abs().flatten()
    share = min(1.0, 6 / numbers.numel() ** 0.5)  # six standard errors
    return (
        bool(numbers.max() <= bound * (1 + 1e-6))
        and bool(numbers.max() > bound * (1 - 20 / numbers.numel()))
        and abs(float(numbers.mean()) / (bound / 2) - 1) < share
    )


def is_normal(weight: Tensor, deviation: float) -> bool:
    """Whether the numbers have this deviation, and reach beyond that of even numbers."""
    numbers = weight.detach().flatten()
    share = 6 / (2 * numbers.numel()) ** 0.5  # six standard errors
    reach = float(numbers.abs().max()) / deviation
    return abs(float(numbers.std()) / deviation - 1) < share and reach > 3**0.5


def xavier(weight: Tensor) -> bool:
    outputs, inputs = weight.shape
    return is_uniform(weight, math.sqrt(6 / (inputs + outputs)))


def torch_default(weight: Tensor, inputs: int) -> bool:
    return is_uniform(weight, 1 / math.sqrt(inputs))


@pytest.mark.parametrize("layers", [1, 4])
def test_evl_starts_as_its_authors_start_it(layers: int) -> None:
    model = fresh("evl", decoder_layers=layers, depth=4)
    decoder: Any = model.adapters[-1]["decoder"]  # type: ignore[index]  # a ModuleDict
    assert len(decoder.layers) == layers
    assert not decoder.query.any()
    for layer in decoder.layers:
        # A depth-wise kernel of three frames has three inputs.
        assert torch_default(layer.convolution.weight, 3)
        assert torch_default(layer.convolution.bias, 3)
        assert not any(w.any() for w in (layer.frame_embedding, layer.before, layer.after))
        for matrix in layer.attention.in_proj_weight.chunk(3):
            assert xavier(matrix)
        assert xavier(layer.attention.out_proj.weight)
        assert not layer.attention.in_proj_bias.any()
        assert not layer.attention.out_proj.bias.any()
        for linear in (layer.mlp[0], layer.mlp[3]):
            assert xavier(linear.weight)
            assert is_normal(linear.bias, 1e-6)
    for norm in (m for m in decoder.modules() if isinstance(m, nn.LayerNorm)):
        assert bool((norm.weight == 1).all())
        assert not norm.bias.any()
        assert norm.eps == 1e-5
    assert torch_default(model.classifier.weight, WIDTH)
    assert torch_default(model.classifier.bias, WIDTH)


@pytest.mark.parametrize("strategy", ["st_adapter_published", "st_adapter"])
def test_st_adapters_start_with_a_convolution_of_zero_between_default_linears(
    strategy: str,
) -> None:
    model = fresh(strategy)
    for adapter in (a for block in model.adapters for a in block.values()):  # type: ignore[operator]
        assert torch_default(adapter.down.weight, adapter.down.in_features)
        assert torch_default(adapter.up.weight, adapter.up.in_features)
        zeros = (adapter.conv.weight, adapter.conv.bias, adapter.down.bias, adapter.up.bias)
        assert not any(weight.any() for weight in zeros)
    published = strategy == "st_adapter_published"
    assert is_normal(model.classifier.weight, 0.02 if published else 0.01)
    assert not model.classifier.bias.any()


def test_aim_starts_as_its_authors_start_it() -> None:
    model = fresh("aim", sites=("temporal_in", "temporal", "spatial", "joint"))
    for adapter in (a for block in model.adapters for a in block.values()):  # type: ignore[operator]
        assert is_normal(adapter.down.weight, 0.02)
        assert not any(w.any() for w in (adapter.down.bias, adapter.up.weight, adapter.up.bias))
    assert is_normal(model.classifier.weight, 0.01)
    assert not model.classifier.bias.any()
    assert not model.temporal_embedding.any()


def test_the_defaults_of_peers_are_those_of_kinetics() -> None:
    one: Any = fresh("st_adapter_published").adapters[0]
    assert [*one] == ["mlp"]
    both: Any = fresh("st_adapter_published", sites=("block", "mlp")).adapters[0]
    assert [*both] == ["block", "mlp"]
    adapter = both["mlp"]
    assert (adapter.down.out_features, adapter.conv.kernel_size) == (WIDTH // 2, (3,))
    aim: Any = fresh("aim").adapters[0]
    assert [*aim] == ["temporal", "spatial", "joint"]
    assert [aim[site].scale for site in aim] == [1, 1, 0.5]
    assert aim["joint"].down.out_features == WIDTH // 4
    scaled: Any = fresh("aim", adapter_scale=1.0).adapters[0]
    assert scaled["joint"].scale == 1
    for depth, layers in ((6, 4), (4, 4), (2, 2)):  # a tower of two blocks has two to read
        decoder: Any = fresh("evl", depth=depth).adapters[-1]["decoder"]  # type: ignore[index]
        assert len(decoder.layers) == layers
        assert {layer.attention.num_heads for layer in decoder.layers} == {4}


def test_a_decoder_cannot_read_blocks_that_the_tower_lacks() -> None:
    with pytest.raises(ConfigError, match=r"decoder_layers: each layer reads .* got 3"):
        fresh("evl", decoder_layers=3)
    for strategy in ("aim", "zeroi2v", "st_adapter_published", "full"):
        with pytest.raises(ConfigError, match="decoder_layers has no meaning for strategy"):
            fresh(strategy, decoder_layers=1)
    for strategy in ("evl", "zeroi2v", "joint"):
        with pytest.raises(ConfigError, match="drop_path has no meaning for strategy"):
            fresh(strategy, drop_path=0.1)
    fresh("joint", adapter_dropout=0.0)  # drops nothing
    with pytest.raises(ConfigError, match="adapter_dropout has no meaning for strategy joint"):
        fresh("joint", adapter_dropout=0.1)


@pytest.mark.parametrize(
    ("strategy", "classifier", "adapters"),
    [
        ("evl", 0.5, 0.5),
        ("aim", 0.5, 0.0),
        ("st_adapter_published", 0.5, 0.0),
        ("st_adapter", 0.0, 0.0),
        ("joint", 0.0, 0.0),
        ("zeroi2v", 0.0, 0.0),
    ],
)
def test_peers_drop_as_their_authors_drop_unless_a_setting_says_otherwise(
    strategy: str, classifier: float, adapters: float
) -> None:
    model = fresh(strategy)
    assert model.dropout.p == classifier
    inner = [m.p for m in model.adapters.modules() if isinstance(m, nn.Dropout)]
    assert set(inner) <= {adapters}
    own = fresh(strategy, classifier_dropout=0.0)
    assert own.dropout.p == 0
    assert own.spec.model.classifier_dropout == 0
    clip = random_clip(noisy(model))
    assert torch.equal(model(clip), model(clip)), "nothing is dropped outside of training"
    model.train()
    assert torch.equal(model(clip), model(clip)) == (not classifier)


def test_drop_path_rises_over_the_blocks_and_spares_the_spatial_adapters() -> None:
    for settings, rates in (({}, [0, 0.1, 0.2]), ({"drop_path": 0.5}, [0, 0.25, 0.5])):
        model = fresh("aim", depth=3, **settings)
        adapters: Any = model.adapters
        assert [block["temporal"].drop_path for block in adapters] == pytest.approx(rates)
        assert [block["joint"].drop_path for block in adapters] == pytest.approx(rates)
    only: Any = fresh("aim", depth=1).adapters[0]
    assert only["joint"].drop_path == 0


def test_drop_path_leaves_out_a_token_of_all_frames_and_keeps_the_mean() -> None:
    """As in the authors' code, whose first axis is that of the tokens.

    With the authors' tensors (N, B*T, D) each drop is `bernoulli(1 - p) / (1 - p)` of N numbers.
    """
    model = noisy(fresh("aim", depth=2, drop_path=0.4, classifier_dropout=0.0))
    adapter: Any = model.adapters[1]["joint"]  # type: ignore[index]  # a ModuleDict
    branch = torch.randn(6, 5, WIDTH, dtype=torch.float64)  # (B*T, N, D)
    assert torch.equal(adapter.dropped(branch), branch), "in eval mode nothing is left out"
    adapter.train()
    torch.manual_seed(3)
    dropped = adapter.dropped(branch)
    torch.manual_seed(3)
    kept = torch.empty(5, 1, 1, dtype=torch.float64).bernoulli_(0.6).div_(0.6)
    torch.testing.assert_close(dropped, (branch.transpose(0, 1) * kept).transpose(0, 1))
    draws = torch.stack([adapter.dropped(branch) for _ in range(4000)])
    torch.testing.assert_close(draws.mean(0), branch, rtol=0.1, atol=0.05)


def test_a_training_step_of_aim_is_the_authors_step_of_the_same_draws() -> None:
    """The temporal and the joint branch of a block are drawn in turn, block by block."""
    model = noisy(tiny_peer("aim", drop_path=0.5, classifier_dropout=0.0))
    clip = random_clip(model)
    model.train()
    torch.manual_seed(5)
    logits = model(clip)
    torch.manual_seed(5)
    tokens = 1 + 2 * 2
    masks = [
        torch.empty(tokens, 1, dtype=torch.float64).bernoulli_(0.5).div_(0.5) for _ in range(2)
    ]
    model.eval()
    for site, mask in zip(("temporal", "joint"), masks, strict=True):
        adapter: Any = model.adapters[1][site]  # type: ignore[index]  # a ModuleDict
        adapter.dropped = lambda branch, mask=mask: branch * mask
    torch.testing.assert_close(logits, model(clip))
