"""Does a merged model cost what its image tower costs? Both on the same frames, in turn, in one run.

    python benchmarks/latency.py                                # ViT-B/16, 8 frames, fp32, on a CPU: about two minutes
    python benchmarks/latency.py --model quickstart/merged --clips 16 --rounds 200 --name quickstart
    python benchmarks/latency.py --device cuda --dtype fp16 bf16 --compile --clips 8

Writes benchmarks/results/latency-<name>.json (name: the device's unless it is given): for each dtype, with and without
torch.compile, the medians and the median of the ratios within a round. Without --model the weights are random: they change no time.
"""

from __future__ import annotations

import argparse
import json
import statistics
from pathlib import Path
from typing import Any

import torch

import zeroi2v
from zeroi2v.analysis.benchmark import interleave, median_ratio, provenance
from zeroi2v.analysis.cost import plain_tower

RESULTS = Path(__file__).parent / "results"
DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


@torch.no_grad()
def measure(arguments: argparse.Namespace, dtype: str, *, compiled: bool) -> dict[str, Any]:
    """Milliseconds of the tower and of the merged model, and their ratio."""
    torch.manual_seed(0)
    if arguments.model:
        model = zeroi2v.load(arguments.model)
    else:
        model = zeroi2v.create_model(arguments.tower, num_classes=400, frames=arguments.frames).eval()
    merged = model.merge().to(arguments.device, DTYPES[dtype])
    tower = plain_tower(merged)
    size = (arguments.clips, merged.frames, 3, merged.image_size, merged.image_size)
    clip = torch.randn(size, device=arguments.device, dtype=DTYPES[dtype])
    frames = merged.tower_input(clip)
    of_tower, of_merged = (torch.compile(one) if compiled else one for one in (tower, merged))
    times = interleave({"tower": lambda: of_tower(frames), "merged": lambda: of_merged(clip)}, rounds=arguments.rounds)
    return {
        "dtype": dtype,
        "compiled": compiled,
        "tower": merged.config.tower,
        "frames": merged.frames,
        "heads": [[str(offset) for offset in layout] for layout in merged.heads],
        **{f"{name}_ms": statistics.median(series) for name, series in times.items()},
        "merged_over_tower": median_ratio(times, "merged", "tower"),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tower", default="vit_base_patch16_224")
    parser.add_argument("--model", help="a saved model instead of --tower and --frames")
    parser.add_argument("--name", help="of the result's file")
    parser.add_argument("--frames", type=int, default=8)
    parser.add_argument("--clips", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", nargs="+", choices=DTYPES, default=["fp32"])
    parser.add_argument("--compile", action="store_true", help="measure with torch.compile too")
    arguments = parser.parse_args()
    runs = [
        measure(arguments, dtype, compiled=compiled)
        for dtype in arguments.dtype
        for compiled in ((False, True) if arguments.compile else (False,))
    ]
    asked = {key: getattr(arguments, key) for key in ("clips", "rounds", "device")}
    RESULTS.mkdir(exist_ok=True)
    result = {**provenance(), "seeds": [0], **asked, "runs": runs}
    (RESULTS / f"latency-{arguments.name or arguments.device}.json").write_text(
        json.dumps(result, indent=1) + "\n", encoding="utf-8"
    )
    for run in runs:
        print(f"{run['dtype']}{', compiled' if run['compiled'] else ''}: merged / tower {run['merged_over_tower']:.4f}")


if __name__ == "__main__":
    main()
