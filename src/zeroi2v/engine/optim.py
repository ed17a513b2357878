"""Which loss is minimised, and how do the weights move?

The optimiser is AdamW. The learning rate rises linearly during the warm-up, then falls along a
cosine to zero. The optimiser and this schedule follow the paper's Table 7 and the authors' code.
A part of the model may have a share of the learning rate instead of the whole.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zeroi2v.models.video import VideoClassifier

# Layers of a tower with weight decay. Norms and embeddings of a tower have none. All modules of
# adapters have weight decay; so have the norms of EVL's decoder, as in its authors' code.
DECAYED = (nn.Linear, nn.Conv2d, nn.Conv3d)


def summed_loss(logits: Tensor, labels: Tensor, *, label_smoothing: float) -> Tensor:
    """The loss of each clip, summed over the B clips of a batch, from logits (B, K).

    Labels (B,) are class numbers, and the loss of a clip is the cross-entropy. Labels (B, K) are
    for videos with several labels: 1 for each class that the video has, else 0. The loss of a clip
    is then the binary cross-entropy, the mean over the K classes.
    """
    if labels.ndim == 2:
        return F.binary_cross_entropy_with_logits(logits, labels, reduction="none").mean(-1).sum()
    return F.cross_entropy(logits, labels, label_smoothing=label_smoothing, reduction="sum")


def build_optimizer(
    model: VideoClassifier,
    *,
    learning_rate: float,
    weight_decay: float,
    learning_rate_shares: Mapping[str, float] | None = None,
) -> torch.optim.AdamW:
    """AdamW with betas (0.9, 0.999) for every parameter that trains.

    Weight decay applies to adapters, linear layers and convolutions, and to their biases; a
    strategy may spare the biases, or let the temporal embedding decay.

    `learning_rate_shares` are those of `TrainConfig`. Each group of parameters holds its share as
    "share", for `set_learning_rate`.
    """
    shares = {**model.plan.strategy.learning_rate_shares, **(learning_rate_shares or {})}
    groups: dict[tuple[float, bool], list[nn.Parameter]] = {}
    for part, decays, parameter in _trained_parameters(model):
        groups.setdefault((shares.get(part, 1.0), decays), []).append(parameter)
    optimizer = torch.optim.AdamW(
        [
            {
                "params": parameters,
                "weight_decay": weight_decay if decays else 0.0,
                "lr": learning_rate * share,
                "share": share,
            }
            for (share, decays), parameters in sorted(groups.items(), reverse=True)
        ]
    )
    fit_device(optimizer)
    return optimizer


def _trained_parameters(model: VideoClassifier) -> Iterator[tuple[str, bool, nn.Parameter]]:
    """Each parameter that trains, with its part of the model, and whether the parameter decays."""
    strategy = model.plan.strategy
    if model.temporal_embedding.requires_grad:
        yield "temporal_embedding", strategy.decays_temporal_embedding, model.temporal_embedding
    for part, child in model.named_children():
        for module in child.modules():
            is_decayed = isinstance(module, DECAYED) or part == "adapters"
            for name, parameter in module.named_parameters(recurse=False):
                decays = is_decayed and (strategy.decays_biases or name != "bias")
                if parameter.requires_grad:
                    yield part, decays, parameter


def set_learning_rate(optimizer: torch.optim.Optimizer, learning_rate: float) -> None:
    """Set the learning rate of all weights: in each group of weights, the share of the group.

    A captured step reads the rate from a tensor.
    """
    for group in optimizer.param_groups:
        rate = learning_rate * group.get("share", 1.0)
        if isinstance(group["lr"], Tensor):
            group["lr"].fill_(rate)
        else:
            group["lr"] = rate


def fit_device(optimizer: torch.optim.Optimizer) -> None:
    """Let the optimiser move weights on a GPU by one kernel that a CUDA graph can hold.

    A state that was saved on another device brings the settings of that device.
    """
    for group in optimizer.param_groups:
        on_gpu = all(weight.device.type == "cuda" for weight in group["params"])
        group |= {"fused": on_gpu or None, "foreach": None, "capturable": on_gpu}
        if isinstance(group["lr"], Tensor):
            group["lr"] = group["lr"].item()


def learning_rate_share(step: int, *, steps: int, warmup_steps: int, warmup_start: float) -> float:
    """The learning rate at a step, as a share of the highest learning rate.

    The share rises from `warmup_start` to 1 during the warm-up, then falls along a cosine to 0.
    Steps are counted from 0.
    """
    if step < warmup_steps:
        return warmup_start + (1 - warmup_start) * step / warmup_steps
    progress = (step - warmup_steps) / max(1, steps - warmup_steps)  # 0 to 1
    return 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))


def autocast_dtype(precision: str, device: torch.device) -> torch.dtype | None:
    """The dtype of matrix products in training; None for fp32.

    `precision` "auto" is bf16 where the device (GPU or CPU) multiplies bf16 numbers natively, else
    fp32.
    """
    if precision == "auto":
        precision = "bf16" if _multiplies_bf16(device) else "fp32"
    return {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}[precision]


def _multiplies_bf16(device: torch.device) -> bool:
    """Whether a device (GPU or CPU) multiplies bf16 numbers natively."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    capabilities = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
    return bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16"))
