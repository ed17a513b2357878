"""Is every supported tower right, and every partly covered one where it is covered? Builds each small and checks what it must keep.

    python benchmarks/towers.py --list            # which names: builds all of timm's without storage; writes models/towers.json
    python benchmarks/towers.py                   # checks every name, about a quarter of an hour on one core; writes results/towers.json

The checks are those of tests/tower_checks.py: offsets of 0 give the tower frame by frame; a temporal head reads the frame it
names and nothing else moves; merging changes no output, also after saving and loading, and leaves the tower's own keys.
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
import time
import warnings
from pathlib import Path
from typing import Any

import timm
import torch

sys.path.insert(0, str(Path(__file__).parents[1]))
from tests.tower_checks import SEED, check_tower
from zeroi2v import partly_covered_towers, supported_towers
from zeroi2v.errors import TowerError
from zeroi2v.machine import provenance
from zeroi2v.models.towers import NAMES_FILE, TINY_NAME, find_blocks, spatial_blocks

RESULT = Path(__file__).parent / "results" / "towers.json"


def coverage(name: str) -> tuple[str, str]:
    """Whether "every_block" of a timm model can be temporal, or "some_blocks", or "none", and then why."""
    try:
        with torch.device("meta"):
            tower = timm.create_model(name, num_classes=0)
            find_blocks(tower, name)
    except TowerError as error:
        return "none", str(error).removeprefix(f"{name}: ").removesuffix(
            "; zeroi2v.supported_towers() lists what works"
        )
    return ("some_blocks" if spatial_blocks(tower) else "every_block"), ""


def check(name: str) -> dict[str, Any]:
    """What the checks found about one tower."""
    start = time.perf_counter()
    found: dict[str, Any]
    try:
        found = {"ok": True, **check_tower(name)}
    except Exception as error:  # noqa: BLE001  whatever a tower does is its result
        found = {"ok": False, "why": " ".join([type(error).__name__, *str(error).splitlines()[:1]])}
    found["seconds"] = round(time.perf_counter() - start, 1)
    print(name, found, flush=True)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--list", action="store_true", help="only decide which names are supported")
    parser.add_argument("names", nargs="*", help="check these alone, and write nothing")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    logging.getLogger("zeroi2v").setLevel(
        logging.ERROR
    )  # that a tower is partly covered is not news here
    if arguments.names:
        right = [check(name)["ok"] for name in arguments.names]
        sys.exit(f"{sum(right)} of {len(right)} are right" if not all(right) else 0)
    covered = {name: coverage(name) for name in timm.list_models()}
    names = {
        key: [name for name in covered if covered[name][0] == key]
        for key in ("every_block", "some_blocks")
    }
    if arguments.list:
        NAMES_FILE.write_text(json.dumps(names, indent=0) + "\n", encoding="utf-8")
        print({key: len(one) for key, one in names.items()})
        return
    towers = {name: check(name) for name in supported_towers() if name != TINY_NAME}
    partly = {name: check(name) for name in partly_covered_towers()}
    refused = {name: why for name, (key, why) in covered.items() if key == "none"}
    with_attention = {name: why for name, why in refused.items() if "no attention with" not in why}
    summary = {
        "checked": len(towers),
        "right": sum(entry["ok"] for entry in towers.values()),
        "partly_covered": len(partly),
        "partly_covered_right": sum(entry["ok"] for entry in partly.values()),
        "refused": len(refused),
        "refused_with_attention": len(with_attention),
    }
    print(summary)
    report = {**provenance(), "seeds": [SEED], **summary}
    report |= {"towers": towers, "partly_covered_towers": partly, "why_refused": with_attention}
    RESULT.parent.mkdir(exist_ok=True)
    RESULT.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
