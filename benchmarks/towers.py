"""Is every supported tower right? Builds each one small, checks what a tower must keep, and writes what was found.

    python benchmarks/towers.py --list            # which names: builds all of timm's without storage; writes models/towers.json
    python benchmarks/towers.py                   # checks every name, about a quarter of an hour on one core; writes results/towers.json

The checks are those of tests/tower_checks.py: offsets of 0 give the tower frame by frame; a temporal head reads the frame it
names and nothing else moves; merging changes no output, also after saving and loading, and leaves the tower's own keys.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
import warnings
from pathlib import Path
from typing import Any

import timm
import torch

sys.path.insert(0, str(Path(__file__).parents[1]))
from tests.tower_checks import SEED, check_tower
from zeroi2v import supported_towers
from zeroi2v.analysis.benchmark import provenance
from zeroi2v.errors import TowerError
from zeroi2v.models.towers import NAMES_FILE, TINY_NAME, find_blocks

RESULT = Path(__file__).parent / "results" / "towers.json"


def refusal(name: str) -> str | None:
    """Why a name of timm's cannot be adapted, or None if it can."""
    try:
        with torch.device("meta"):
            find_blocks(timm.create_model(name, num_classes=0), name)
    except TowerError as error:
        return str(error).removeprefix(f"{name}: ").removesuffix("; zeroi2v.supported_towers() lists what works")
    return None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--list", action="store_true", help="only decide which names are supported")
    parser.add_argument("names", nargs="*", help="check these alone, and write nothing")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    if arguments.list:
        names = [name for name in timm.list_models() if refusal(name) is None]
        NAMES_FILE.write_text(json.dumps(names, indent=0) + "\n", encoding="utf-8")
        print(f"{len(names)} of {len(timm.list_models())} names")
        return
    found: dict[str, Any] = {}
    for name in arguments.names or [name for name in supported_towers() if name != TINY_NAME]:
        start = time.perf_counter()
        try:
            found[name] = {"ok": True, **check_tower(name)}
        except Exception as error:  # noqa: BLE001  whatever a tower does is its result
            found[name] = {"ok": False, "why": " ".join([type(error).__name__, *str(error).splitlines()[:1]])}
        found[name]["seconds"] = round(time.perf_counter() - start, 1)
        print(name, found[name], flush=True)
    right = sum(entry["ok"] for entry in found.values())
    print(f"{right} of {len(found)} are right")
    if not arguments.names:
        reasons = {name: why for name in timm.list_models() if name not in found and (why := refusal(name))}
        attention = {name: why for name, why in reasons.items() if "no attention with" not in why}
        summary = {
            "right": right,
            "checked": len(found),
            "refused": len(reasons),
            "refused_with_attention": len(attention),
        }
        report = {**provenance(), "seeds": [SEED], **summary, "towers": found, "why_refused": attention}
        RESULT.parent.mkdir(exist_ok=True)
        RESULT.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
