"""What do the authors of EVL, AIM and ST-Adapter compute? Their numbers, and slow second routes.

`golden` holds outputs of the authors' own classes in float64, for tiny models. The weights of these
models are made from names: `authors_state`. `state_for` gives them the names of this library.

The second routes, `evl_logits`, `aim_logits` and `st_adapter_logits`, compute logits (B, K) of a
clip (B, T, 3, S, S) from a state of this library, without any module, hook or fused operation.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from zeroi2v import VideoClassifier, create_model

State = dict[str, Tensor]

FOLDER = Path(__file__).parent / "models" / "golden"
TOWER = "vit_base_patch16_clip_quickgelu_224"
EPS = 1e-5  # of the norms of CLIP and of EVL's decoder


# The authors' numbers


@dataclass(frozen=True)
class Golden:
    """The outputs of a model of the authors."""

    strategy: str
    case: Mapping[str, Any]  # width, heads, depth, size, frames ...
    shapes: Mapping[str, tuple[int, ...]]  # of the authors' weights, by the authors' names
    classes: int
    batch: int
    outputs: Mapping[str, Tensor]  # logits (B, K); frames or feature, before the classifier

    def model(self, **settings: Any) -> VideoClassifier:
        """A model of this library as `create_model` builds it, with the authors' weights."""
        model = tiny_peer(
            self.strategy,
            frames=self.case["frames"],
            num_classes=self.classes,
            img_size=self.case["size"],
            depth=self.case["depth"],
            embed_dim=self.case["width"],
            num_heads=self.case["heads"],
            **settings,
        )
        state = state_for(self.strategy, authors_state(self.shapes), self.case["depth"])
        own = model.state_dict()
        unused = own.keys() - state.keys()
        # EVL's authors build no norm after the last block; only AIM has a temporal embedding.
        assert unused <= {"temporal_embedding", "tower.norm.weight", "tower.norm.bias"}
        model.load_state_dict({**{name: own[name] for name in unused}, **state})
        return model

    def clip(self) -> Tensor:
        """The clip (B, T, 3, S, S) of the outputs."""
        frames, size = self.case["frames"], self.case["size"]
        name = f"clip {self.batch} {frames} {size}"
        return torch.from_numpy(noise(name, (self.batch, frames, 3, size, size)))


def golden(name: str, strategy: str) -> Golden:
    """The numbers in a file of the folder."""
    with np.load(FOLDER / f"{name}.npz") as file:
        facts = json.loads(str(file["meta"]))
        return Golden(
            strategy=strategy,
            case=facts["case"],
            shapes={name: tuple(shape) for name, shape in facts["shapes"].items()},
            classes=facts["classes"],
            batch=facts["batch"],
            outputs={key: torch.from_numpy(file[key]) for key in file.files if key != "meta"},
        )


GOLDEN = {
    "evl": golden("evl", "evl"),
    "aim": golden("aim", "aim"),
    "st_adapter": golden("st_adapter_k400", "st_adapter_published"),
}


def tiny_peer(
    strategy: str, *, frames: int = 4, num_classes: int = 5, img_size: int = 32, **settings: Any
) -> VideoClassifier:
    """A model on a tiny CLIP tower in eval mode and float64. timm's options come by name."""
    names = {"depth": 2, "embed_dim": 32, "num_heads": 2, "patch_size": 16}
    options = {name: settings.pop(name, default) for name, default in names.items()}
    torch.manual_seed(0)
    model = create_model(
        TOWER,
        num_classes=num_classes,
        frames=frames,
        strategy=strategy,
        tower_options={"img_size": img_size, **options},
        **settings,
    )
    return model.double().eval()


def noise(name: str, shape: tuple[int, ...]) -> np.ndarray[Any, np.dtype[np.float64]]:
    """Normal numbers that follow from a name."""
    seed = int.from_bytes(hashlib.sha256(name.encode()).digest()[:4], "big")
    numbers: np.ndarray[Any, np.dtype[np.float64]] = np.random.RandomState(seed).randn(*shape)
    return numbers


def authors_state(shapes: Mapping[str, tuple[int, ...]]) -> State:
    """Weights of these shapes, made from their names. No weight is 0 or an identity."""
    return {name: torch.from_numpy(_weight(name, shape)) for name, shape in shapes.items()}


def _weight(name: str, shape: tuple[int, ...]) -> Any:
    """A weight whose size keeps activations near 1 and attention far from uniform."""
    z: Any = noise(name, shape)
    *_, owner, leaf = ["", *name.split(".")]
    if owner.startswith(("ln_", "norm")) or name in ("proj.0.weight", "proj.0.bias"):
        return 0.2 * z + (leaf == "weight")
    if leaf in ("w1", "w2"):
        return 2.0 * z
    if "embed" in leaf or leaf == "cls_token":
        return 0.5 * z
    if leaf.endswith("bias"):
        return 0.2 * z
    if ".conv." in name or "temporal_conv" in name:
        return z * 3**-0.5
    if leaf == "in_proj_weight" or owner in ("q_proj", "k_proj"):
        return 2.0 * z * shape[-1] ** -0.5
    return z * math.prod(shape[1:]) ** -0.5


# The names of the authors, and the names of this library


def state_for(strategy: str, theirs: State, depth: int) -> State:
    """The authors' weights by the names of this library."""
    convert = {"evl": _from_evl, "aim": _from_aim, "st_adapter_published": _from_st_adapter}
    return convert[strategy](theirs, depth)


def _pairs(theirs: State, names: Mapping[str, str]) -> State:
    """Weight and bias of each module: by our name, of the module with the authors' name."""
    return {
        f"{ours}.{part}": theirs[f"{name}.{part}"]
        for ours, name in names.items()
        for part in ("weight", "bias")
        if f"{name}.{part}" in theirs
    }


def _clip_tower(theirs: State, depth: int) -> State:
    """The tower of AIM and ST-Adapter, which has the names of OpenAI's CLIP."""
    names = {"tower.norm_pre": "ln_pre", "tower.norm": "ln_post"}
    state = {
        "tower.cls_token": theirs["class_embedding"].view(1, 1, -1),
        "tower.pos_embed": theirs["positional_embedding"][None],
        "tower.patch_embed.proj.weight": theirs["conv1.weight"],
    }
    for block in range(depth):
        ours, name = f"tower.blocks.{block}", f"transformer.resblocks.{block}"
        names |= {
            f"{ours}.norm1": f"{name}.ln_1",
            f"{ours}.norm2": f"{name}.ln_2",
            f"{ours}.attn.proj": f"{name}.attn.out_proj",
            f"{ours}.mlp.fc1": f"{name}.mlp.c_fc",
            f"{ours}.mlp.fc2": f"{name}.mlp.c_proj",
        }
        for part in ("weight", "bias"):
            state[f"{ours}.attn.qkv.{part}"] = theirs[f"{name}.attn.in_proj_{part}"]
    return {**state, **_pairs(theirs, names)}


def _from_aim(theirs: State, depth: int) -> State:
    sites = {
        "temporal_in": "T_Adapter_in",
        "temporal": "T_Adapter",
        "spatial": "S_Adapter",
        "joint": "MLP_Adapter",
    }
    names = {"classifier": "fc_cls"} | {
        f"adapters.{block}.{site}.{ours}": f"transformer.resblocks.{block}.{adapter}.{linear}"
        for block in range(depth)
        for site, adapter in sites.items()
        for ours, linear in (("down", "D_fc1"), ("up", "D_fc2"))
    }
    embedding = {"temporal_embedding": theirs["temporal_embedding"][0]}
    return {**_clip_tower(theirs, depth), **_pairs(theirs, names), **embedding}


def _from_st_adapter(theirs: State, depth: int) -> State:
    names = {"classifier": "fc"} | {
        f"adapters.{block}.{site}.{ours}": f"transformer.resblocks.{block}.{adapter}.{layer}"
        for block in range(depth)
        for site, adapter in (("block", "adapter_pre_attn"), ("mlp", "adapter_pre_mlp"))
        for ours, layer in (("down", "fc1"), ("conv", "conv"), ("up", "fc2"))
    }
    state = {**_clip_tower(theirs, depth), **_pairs(theirs, names)}
    # The authors convolve over (time, height, width), with a kernel of (3, 1, 1).
    return {name: w[..., 0, 0] if w.ndim == 5 else w for name, w in state.items()}


def _from_evl(theirs: State, depth: int) -> State:
    width, pixels = theirs["backbone.patch_embed.proj.weight"].shape
    patch = math.isqrt(pixels // 3)
    decoder = f"adapters.{depth - 1}.decoder"
    layers = sum(name.startswith("decoder.temporal_pos_embed") for name in theirs)
    names = {
        "tower.norm_pre": "backbone.ln_pre",
        f"{decoder}.norm": "proj.0",
        "classifier": "proj.2",
    }
    # Matrices of q, k and v, which lie in one tensor here: our name -> the authors'.
    fused = {}
    for block in range(depth):
        ours, name = f"tower.blocks.{block}", f"backbone.blocks.{block}"
        parts = ("norm1", "norm2", "mlp.fc1", "mlp.fc2")
        names |= {f"{ours}.{part}": f"{name}.{part}" for part in parts}
        names[f"{ours}.attn.proj"] = f"{name}.attn.out_proj"
        fused[f"{ours}.attn.qkv."] = f"{name}.attn"
    state = {
        "tower.cls_token": theirs["backbone.cls_token"].view(1, 1, -1),
        "tower.pos_embed": theirs["backbone.pos_embed"][None],
        "tower.patch_embed.proj.weight": theirs["backbone.patch_embed.proj.weight"].view(
            width, 3, patch, patch
        ),
        f"{decoder}.query": theirs["decoder.cls_token"],
    }
    for layer in range(layers):
        ours, name = f"{decoder}.layers.{layer}", f"decoder.decoder_layers.{layer}"
        names |= {
            f"{ours}.query_norm": f"{name}.norm1",
            f"{ours}.mlp_norm": f"{name}.norm2",
            f"{ours}.token_norm": f"{name}.norm3",
            f"{ours}.mlp.0": f"{name}.mlp.fc1",
            f"{ours}.mlp.3": f"{name}.mlp.fc2",
            f"{ours}.attention.out_proj": f"{name}.attn.out_proj",
            f"{ours}.convolution": f"decoder.temporal_conv.{layer}",
        }
        fused[f"{ours}.attention.in_proj_"] = f"{name}.attn"
        state |= {
            f"{ours}.frame_embedding": theirs[f"decoder.temporal_pos_embed.{layer}"],
            f"{ours}.before": theirs[f"decoder.cross_attention.{layer}.w1"],
            f"{ours}.after": theirs[f"decoder.cross_attention.{layer}.w2"],
        }
    for ours, name in fused.items():
        for part in ("weight", "bias"):
            state[ours + part] = torch.cat([theirs[f"{name}.{x}_proj.{part}"] for x in "qkv"])
    return {**state, **_pairs(theirs, names)}


# The second routes. `w` is a state of this library; x are tokens (B, T, N, D).


@dataclass(frozen=True)
class Route:
    """How the logits of a peer are computed a second time, from a state of this library."""

    weights: Mapping[str, Tensor]
    heads: int
    blocks: int

    def linear(self, name: str, x: Tensor) -> Tensor:
        return x @ self.weights[f"{name}.weight"].T + self.weights[f"{name}.bias"]

    def norm(self, name: str, x: Tensor) -> Tensor:
        centred = x - x.mean(-1, keepdim=True)
        deviation = (centred.square().mean(-1, keepdim=True) + EPS).sqrt()
        return centred / deviation * self.weights[f"{name}.weight"] + self.weights[f"{name}.bias"]

    def split(self, x: Tensor) -> Tensor:
        """(..., N, D) -> (..., heads, N, D / heads)."""
        heads: Tensor = x.unflatten(-1, (self.heads, -1))
        return heads.transpose(-2, -3)

    def queries_keys_values(self, block: int, x: Tensor) -> list[Tensor]:
        """(..., N, D) -> three tensors (..., heads, N, D / heads)."""
        name = f"tower.blocks.{block}.attn.qkv"
        return [self.split(part) for part in self.linear(name, x).chunk(3, -1)]

    def attention(self, block: int, x: Tensor) -> Tensor:
        """The tower's attention along the last but one axis of x."""
        q, k, v = self.queries_keys_values(block, x)
        shares = (q @ k.mT / q.shape[-1] ** 0.5).softmax(-1)
        heads = (shares @ v).transpose(-2, -3).flatten(-2)
        return self.linear(f"tower.blocks.{block}.attn.proj", heads)

    def mlp(self, block: int, y: Tensor) -> Tensor:
        name = f"tower.blocks.{block}.mlp"
        return self.linear(f"{name}.fc2", quick_gelu(self.linear(f"{name}.fc1", y)))

    def embed(self, clip: Tensor) -> Tensor:
        """The tokens of a clip, with the temporal embedding, before the first norm."""
        weight = self.weights["tower.patch_embed.proj.weight"]
        side = weight.shape[-1]
        grid = clip.unfold(3, side, side).unfold(4, side, side)  # (B, T, 3, h, w, side, side)
        patches = torch.einsum("btcyxij,dcij->btyxd", grid, weight).flatten(2, 3)
        first = self.weights["tower.cls_token"].expand(*clip.shape[:2], 1, -1)
        tokens = torch.cat([first, patches], 2) + self.weights["tower.pos_embed"]
        return tokens + self.weights["temporal_embedding"][:, None]

    def bottleneck(self, name: str, x: Tensor) -> Tensor:
        inner = self.linear(f"{name}.down", x)
        return self.linear(f"{name}.up", inner * 0.5 * (1 + torch.erf(inner / 2**0.5)))

    def convolved(self, name: str, x: Tensor) -> Tensor:
        """A depth-wise convolution over three frames; beside the clip there is nothing."""
        kernel, out = self.weights[f"{name}.weight"][:, 0], []
        for frame in range(x.shape[1]):
            near = [
                kernel[:, step + 1] * x[:, frame + step]
                for step in (-1, 0, 1)
                if 0 <= frame + step < x.shape[1]
            ]
            out.append(self.weights[f"{name}.bias"] + torch.stack(near).sum(0))
        return torch.stack(out, 1)


def quick_gelu(x: Tensor) -> Tensor:
    return x * (1 + torch.exp(-1.702 * x)).reciprocal()


def aim_logits(route: Route, clip: Tensor, *, scale: float) -> Tensor:
    x = route.norm("tower.norm_pre", route.embed(clip))
    for block in range(route.blocks):
        norm, adapters = f"tower.blocks.{block}.norm", f"adapters.{block}"
        y = route.norm(f"{norm}1", x)
        if f"{adapters}.temporal_in.down.weight" in route.weights:
            y = y + route.bottleneck(f"{adapters}.temporal_in", y)
        along_time = route.attention(block, y.transpose(1, 2)).transpose(1, 2)
        x = x + route.bottleneck(f"{adapters}.temporal", along_time)
        y = route.attention(block, route.norm(f"{norm}1", x))
        x = x + y + route.bottleneck(f"{adapters}.spatial", y)
        y = route.norm(f"{norm}2", x)
        x = x + route.mlp(block, y) + scale * route.bottleneck(f"{adapters}.joint", y)
    feature = route.norm("tower.norm", x)[:, :, 0].mean(1)
    return route.linear("classifier", feature)


def st_adapter_logits(route: Route, clip: Tensor, *, scale: float) -> Tensor:
    def adapted(name: str, x: Tensor) -> Tensor:
        if f"{name}.down.weight" not in route.weights:
            return x
        mixed = route.convolved(f"{name}.conv", route.linear(f"{name}.down", x[:, :, 1:]))
        patches = x[:, :, 1:] + scale * route.linear(f"{name}.up", mixed)
        return torch.cat([x[:, :, :1], patches], 2)

    x = route.norm("tower.norm_pre", route.embed(clip))
    for block in range(route.blocks):
        norm = f"tower.blocks.{block}.norm"
        x = adapted(f"adapters.{block}.block", x)
        x = x + route.attention(block, route.norm(f"{norm}1", x))
        x = adapted(f"adapters.{block}.mlp", x)
        x = x + route.mlp(block, route.norm(f"{norm}2", x))
    return route.linear("classifier", route.norm("tower.norm", x[:, :, 0].mean(1)))


def evl_logits(route: Route, clip: Tensor, *, layers: int) -> Tensor:
    decoder = f"adapters.{route.blocks - 1}.decoder"
    x = route.norm("tower.norm_pre", route.embed(clip))
    query = route.weights[f"{decoder}.query"].expand(len(clip), 1, -1)
    for block in range(route.blocks):
        norm = f"tower.blocks.{block}.norm"
        y = route.norm(f"{norm}1", x)
        q, k, _ = route.queries_keys_values(block, y)
        x = x + route.attention(block, y)
        x = x + route.mlp(block, route.norm(f"{norm}2", x))
        number = block - (route.blocks - layers)
        if number >= 0:
            query = _decoded(route, f"{decoder}.layers.{number}", query, x, q, k)
    return route.linear("classifier", route.norm(f"{decoder}.norm", query[:, 0]))


def _decoded(route: Route, layer: str, query: Tensor, x: Tensor, q: Tensor, k: Tensor) -> Tensor:
    """The query (B, 1, D) after a layer of EVL's decoder."""
    side = math.isqrt(x.shape[2] - 1)
    memory = x + route.convolved(f"{layer}.convolution", x)
    memory = memory + route.weights[f"{layer}.frame_embedding"][:, None]
    rows: list[list[Tensor]] = [[] for _ in range(x.shape[1])]
    for frame in range(x.shape[1]):
        for step, name in ((-1, "before"), (1, "after")):
            if not 0 <= frame + step < x.shape[1]:
                continue
            own, other = q[:, frame, :, 1:], k[:, frame + step, :, 1:]
            shares = (own @ other.mT / own.shape[-1] ** 0.5).softmax(-1).mean(1)  # (B, P, P)
            table = _displaced(route.weights[f"{layer}.{name}"], side)
            rows[frame].append(torch.einsum("bqk,qkd->bqd", shares, table))
    added = torch.stack([sum(parts, torch.zeros_like(x[:, 0, 1:])) for parts in rows], 1)
    memory = torch.cat([memory[:, :, :1], memory[:, :, 1:] + added], 2).flatten(1, 2)
    y, z = route.norm(f"{layer}.token_norm", memory), route.norm(f"{layer}.query_norm", query)
    name = f"{layer}.attention"
    matrices = route.weights[f"{name}.in_proj_weight"].chunk(3)
    biases = route.weights[f"{name}.in_proj_bias"].chunk(3)
    q, k, v = (
        route.split(tokens @ matrix.T + bias)
        for tokens, matrix, bias in zip((z, y, y), matrices, biases, strict=True)
    )
    read = ((q @ k.mT / q.shape[-1] ** 0.5).softmax(-1) @ v).transpose(1, 2).flatten(2)
    query = query + route.linear(f"{name}.out_proj", read)
    inner = quick_gelu(route.linear(f"{layer}.mlp.0", route.norm(f"{layer}.mlp_norm", query)))
    return query + route.linear(f"{layer}.mlp.3", inner)


def _displaced(table: Tensor, side: int) -> Tensor:
    """The weight (P, P, D) of each displacement, from the patch that asks to the patch it reads."""
    places = [divmod(patch, side) for patch in range(side * side)]
    span = 2 * side - 1
    rows = [
        [table[(i - k + side - 1) * span + j - m + side - 1] for k, m in places] for i, j in places
    ]
    return torch.stack([torch.stack(row) for row in rows])


SECOND_ROUTES: dict[str, Callable[..., Tensor]] = {
    "evl": evl_logits,
    "aim": aim_logits,
    "st_adapter_published": st_adapter_logits,
}


def second_route(model: VideoClassifier, weights: Mapping[str, Tensor], clip: Tensor) -> Tensor:
    """The logits of a peer on the tiny CLIP tower, by its second route."""
    tower: Any = model.tower
    route = Route(weights, tower.blocks[0].attn.num_heads, len(tower.blocks))
    strategy = model.spec.model.strategy
    options: dict[str, Any] = {"scale": model.plan.adapter_scale}
    if strategy == "evl":
        options = {"layers": model.spec.model.decoder_layers or min(4, route.blocks)}
    return SECOND_ROUTES[strategy](route, clip, **options)
