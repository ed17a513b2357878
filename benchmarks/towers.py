"""Is every supported tower right, and every partly covered tower where it is covered?

    python benchmarks/towers.py --list   # which names are supported: writes models/towers.json
    python benchmarks/towers.py          # checks every name: a quarter of an hour on one core

A tower is built small and must pass the checks of tests/tower_checks.py: offsets of 0 give the
tower frame by frame; a temporal head reads the frame it names and nothing else moves; merging
changes no output, also after saving and loading, and leaves the tower's own keys. Writes
results/towers.json. With --list, all towers of timm are built without storage.
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
import time
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import timm
import torch

sys.path.insert(0, str(Path(__file__).parents[1]))
from tests.tower_checks import SEED, check_tower
from zeroi2v import partly_covered_towers, supported_towers
from zeroi2v.errors import TowerError
from zeroi2v.files import write_json, write_text
from zeroi2v.machine import provenance
from zeroi2v.models.survey import survey
from zeroi2v.models.towers import NAMES_FILE, TINY_NAME

RESULT = Path(__file__).parent / "results" / "towers.json"


def coverage(name: str) -> tuple[str, str]:
    """Which blocks of a timm model can be temporal: every_block, some_blocks or none; why none."""
    try:
        with torch.device("meta"):
            anatomy = survey(timm.create_model(name, num_classes=0), name)
    except TowerError as error:
        reason = str(error).removeprefix(f"{name}: ")
        return "none", reason.removesuffix("; zeroi2v.supported_towers() lists what works")
    return ("some_blocks" if anatomy.spatial_blocks else "every_block"), ""


def check(name: str) -> dict[str, Any]:
    """The result of the checks of one tower."""
    start = time.perf_counter()
    result: dict[str, Any]
    try:
        result = {"ok": True, **check_tower(name)}
    except Exception as error:  # noqa: BLE001  whatever a tower does is its result
        why = " ".join([type(error).__name__, *str(error).splitlines()[:1]])
        result = {"ok": False, "why": why}
    result["seconds"] = round(time.perf_counter() - start, 1)
    print(name, result, flush=True)
    return result


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--list", action="store_true", help="only decide which names are supported")
    parser.add_argument("names", nargs="*", help="check only these towers, and write nothing")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    logging.getLogger("zeroi2v").setLevel(logging.ERROR)  # partly covered towers are no news here
    if arguments.names:
        right = [check(name)["ok"] for name in arguments.names]
        sys.exit(f"{sum(right)} of {len(right)} towers are right" if not all(right) else 0)
    covered = {name: coverage(name) for name in timm.list_models()}
    names = {
        key: [name for name in covered if covered[name][0] == key]
        for key in ("every_block", "some_blocks")
    }
    if arguments.list:
        write_text(NAMES_FILE, json.dumps(names, indent=0) + "\n")
        print({key: len(listed) for key, listed in names.items()})
        return
    towers = {name: check(name) for name in supported_towers() if name != TINY_NAME}
    partly = {name: check(name) for name in partly_covered_towers()}
    refused = {name: why for name, (key, why) in covered.items() if key == "none"}
    write_result(towers, partly, refused)


def write_result(
    towers: Mapping[str, Mapping[str, Any]],
    partly: Mapping[str, Mapping[str, Any]],
    refused: Mapping[str, str],
) -> None:
    """Write and print how many towers are right, and the result of each."""
    with_attention = {name: why for name, why in refused.items() if "no attention with" not in why}
    summary = {
        "checked": len(towers),
        "right": sum(result["ok"] for result in towers.values()),
        "partly_covered": len(partly),
        "partly_covered_right": sum(result["ok"] for result in partly.values()),
        "refused": len(refused),
        "refused_with_attention": len(with_attention),
    }
    print(summary)
    results = {
        "towers": towers,
        "partly_covered_towers": partly,
        "why_refused": with_attention,
    }
    write_json(RESULT, {**provenance(), "seeds": [SEED], **summary, **results})


if __name__ == "__main__":
    main()
