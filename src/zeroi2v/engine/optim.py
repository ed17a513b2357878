"""What is minimised, and how do the weights move? AdamW on what trains, linear warm-up, cosine to zero (Table 7, the official code)."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zeroi2v.models.video import VideoClassifier

DECAYED = (
    nn.Linear,
    nn.Conv2d,
    nn.Conv3d,
)  # weight decay is for these and for adapters; norms and embeddings have none


def summed_loss(logits: Tensor, labels: Tensor, *, label_smoothing: float) -> Tensor:
    """Cross-entropy with labels (B,), or where a video may have several (B, K), binary cross-entropy, the mean over K; summed over B."""
    if labels.ndim == 2:
        return F.binary_cross_entropy_with_logits(logits, labels, reduction="none").mean(-1).sum()
    return F.cross_entropy(logits, labels, label_smoothing=label_smoothing, reduction="sum")


def build_optimizer(
    model: VideoClassifier, *, learning_rate: float, weight_decay: float
) -> torch.optim.AdamW:
    """AdamW (0.9, 0.999) on every parameter that trains; weight decay on adapters, linear and convolution layers, biases included."""
    adapters = {*model.adapters.modules()}
    groups: dict[bool, list[nn.Parameter]] = {True: [], False: []}
    for module in model.modules():
        groups[isinstance(module, DECAYED) or module in adapters] += [
            p for p in module.parameters(recurse=False) if p.requires_grad
        ]
    settings = [
        {"params": groups[True], "weight_decay": weight_decay},
        {"params": groups[False], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW([group for group in settings if group["params"]], lr=learning_rate)


def learning_rate_share(step: int, *, steps: int, warmup_steps: int, warmup_start: float) -> float:
    """The share of the learning rate at a step: from `warmup_start` up to 1 over the warm-up, then a cosine down to 0."""
    if step < warmup_steps:
        return warmup_start + (1 - warmup_start) * step / warmup_steps
    done = (step - warmup_steps) / max(1, steps - warmup_steps)
    return 0.5 * (1 + math.cos(math.pi * min(1.0, done)))


def autocast_dtype(precision: str, device: torch.device) -> torch.dtype | None:
    """The dtype of the matrix products in training, or None for fp32. "auto" is bf16 where the processor multiplies it natively."""
    if precision == "auto":
        precision = "bf16" if _multiplies_bf16(device) else "fp32"
    return {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}[precision]


def _multiplies_bf16(device: torch.device) -> bool:
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    capabilities = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
    return bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16"))
