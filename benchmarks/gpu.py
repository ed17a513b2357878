"""Is everything right and fast on a GPU? All checks and timings that need a CUDA device, in parts.

    python -m benchmarks.gpu                          # or: make gpu
    python -m benchmarks.gpu inference --minutes 3    # one part
    PYTHONPATH=src python3 -m benchmarks.gpu --out FOLDER      # from a bare checkout
    python -m benchmarks.gpu --work WORK --tower FILE          # with the trainings of evidence.py
    python -m benchmarks.gpu --dry                    # on a CPU, small: does every part run?
    python -m benchmarks.gpu --docs                   # only writes the tables of docs/speed.md

The parts, in this order, with the most minutes that each may take:

    inference   (2) ViT-B/16, 8 frames, bf16: the plain image transformer beside the merged model,
                in each form of relocation, eager and captured, 1 clip and 32 clips
    compiled    (2) the models of `inference` after torch.compile, with and without capturing
    training    (4) the training step of the paper's plain graph and of this library, 8 and 32 clips
    tests       (3) pytest -m gpu: the kernels against slow loops
    evidence    (5) `benchmarks.evidence confirm`, where --work and --tower are given
    peers       (3) ST-Adapter, EVL and AIM, compiled and not
    others      (3) as `inference`, for other dtypes and towers
    agreement   (1) how far logits lie from logits in float64, for each form of relocation
    moves       (1) all moves of a block alone, in each form
    tiles       (1) the attention kernel with different tiles, beside PyTorch's own attention

Captured: the kernels are recorded in a CUDA graph, and replayed. `plain` of the results includes
the mean over frames and the classifier, and takes no temporal embedding; the `plain` of `zeroi2v
bench` has no classifier. Each part is a process of its own, and
each case of a part is measured by itself: a fault costs only its case. Each result is written as
soon as it is there: results/gpu-<part>.json. The results in results/ are the tables of
docs/speed.md. `tflops` is the rate of multiply-adds; `matrix_tflops` is what the card reaches with
a product of two large matrices.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any, Final

import torch

from benchmarks import gpu_inference
from benchmarks.gpu_inference import Case, Row
from benchmarks.gpu_place import Place
from zeroi2v.errors import how_many, one_line
from zeroi2v.files import write_json, write_text
from zeroi2v.machine import provenance

ROOT: Final = Path(__file__).parents[1]
RESULTS: Final = Path(__file__).parent / "results"
PAGE: Final = ROOT / "docs" / "speed.md"
# The forms of the table, in order.
FORMS: Final = ("moved", "indexed", "reads", "reads, offsets 0", "adapted")


def training(place: Place) -> Iterator[Case]:
    """The part `training`."""
    from benchmarks import gpu_training

    return gpu_training.training(place)


def moves(place: Place) -> Iterator[Case]:
    """The part `moves`."""
    from benchmarks import gpu_kernels  # Triton is not everywhere

    return gpu_kernels.moves(place)


def tiles(place: Place) -> Iterator[Case]:
    """The part `tiles`."""
    from benchmarks import gpu_kernels

    return gpu_kernels.tiles(place)


def tests(place: Place) -> Iterator[Case]:
    """The outcome of the tests that need a CUDA device, file by file; dry, of finding them."""
    files = sorted(
        str(path.relative_to(ROOT))
        for path in (ROOT / "tests").rglob("test_*.py")
        if "mark.gpu" in path.read_text(encoding="utf-8")
    )
    for name in files:
        yield {"file": name}, partial(_test, place, name)


def _test(place: Place, name: str) -> Iterator[Row]:
    command = [sys.executable, "-m", "pytest", "-m", "gpu", "-q", "-p", "no:cacheprovider", name]
    if place.dry:
        command.append("--collect-only")
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode:
        print(done.stdout[-6000:], done.stderr[-2000:])
    yield {"exit": done.returncode, "last_line": (done.stdout.strip().splitlines() or [""])[-1]}


PARTS: Final[Mapping[str, tuple[float, Callable[[Place], Iterator[Case]]]]] = {
    "inference": (2, gpu_inference.inference),
    "compiled": (2, gpu_inference.compiled),
    "training": (4, training),
    "tests": (3, tests),
    "peers": (3, gpu_inference.peers),
    "others": (3, gpu_inference.others),
    "agreement": (1, gpu_inference.agreement),
    "moves": (1, moves),
    "tiles": (1, tiles),
}
EVIDENCE_MINUTES: Final = 5


def measure(part: str, place: Place, out: Path) -> bool:
    """Run one part in this process, write its rows as they come, and return whether all went well.

    Where a case fails, its error is a row, and the next case is measured.
    """
    result: dict[str, Any] = {
        **provenance(),
        "seeds": [0],
        "matrix_tflops": place.matrix_rate() / 1e12,
        "rows": [],
    }
    failed = 0
    for case, rows in PARTS[part][1](place):
        try:
            for row in rows():
                failed += bool(row.get("errors")) or row.get("exit", 0) not in (0, 5)
                keep(part, {**case, **row}, result, out)
        except Exception as error:  # noqa: BLE001  only this case fails: measure the other cases
            failed += 1
            keep(part, {**case, "error": one_line(error)}, result, out)
        if not place.dry:
            torch.cuda.empty_cache()
    return not failed


def keep(part: str, row: Row, result: dict[str, Any], out: Path) -> None:
    """Write a row, after the rows that are there."""
    result["rows"].append(row)
    write_json(out / f"gpu-{part}.json", result)
    print(part, summary(row), flush=True)


def summary(row: Mapping[str, Any]) -> str:
    """A row as one line."""
    if "times_plain" not in row:
        return str(row)
    head = {key: value for key, value in row.items() if not isinstance(value, dict)}
    cells = [
        f"{name} {row['ms'][name]['median']:.3f} ms"
        f" ({ratio['fast']:.3f}, {ratio['low']:.3f} to {ratio['high']:.3f})"
        for name, ratio in row["times_plain"].items()
    ]
    return f"{head} {', '.join(cells)} {row['errors'] or ''}"


def read(part: str) -> dict[str, Any]:
    """The committed result of a part. A part that was not measured has no rows."""
    path = RESULTS / f"gpu-{part}.json"
    if not path.exists():
        return {"rows": []}
    result: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return result


def inference_table() -> str:
    """The times of the parts `inference` and `compiled`, as a table in Markdown."""
    results = [result for result in map(read, ("inference", "compiled")) if result["rows"]]
    if not results:
        return "Not measured yet."
    rows = [row for result in results for row in result["rows"] if "times_plain" in row]
    forms = [form for form in FORMS if any(form in row["times_plain"] for row in rows)]
    machine, versions = results[0]["machine"], results[0]["versions"]
    lines = [
        f"{machine['gpu']}, bf16, torch {versions['torch']}, {results[0]['date']}.",
        f"A product of two 8192 x 8192 matrices reaches {results[0]['matrix_tflops']:.0f} TFLOP/s.",
        "",
        f"| | with classifier, ms | {' | '.join(forms)} |",
        f"| --- | --- | {' | '.join('---' for _ in forms)} |",
    ]
    for row in rows:
        cells = [
            f"{ratio['fast']:.3f} ({ratio['low']:.3f} to {ratio['high']:.3f})" if ratio else ""
            for ratio in (row["times_plain"].get(form) for form in forms)
        ]
        plain, clips = row["ms"]["plain"]["median"], how_many(row["clips"], "clip")
        lines.append(f"| {row['mode']}, {clips} | {plain:.2f} | {' | '.join(cells)} |")
    return "\n".join(lines)


def with_tables(text: str) -> str:
    """The page, with the tables of what was measured between its markers."""
    for name, table in (("gpu-inference", inference_table()),):
        start, end = f"<!-- {name} -->\n", f"<!-- end of {name} -->"
        before, rest = text.split(start)
        text = f"{before}{start}{table}\n{end}{rest.split(end)[1]}"
    return text


def commands(arguments: argparse.Namespace) -> Iterator[tuple[str, float, list[str]]]:
    """The name, the most minutes and the command of each part, in order."""
    here = [sys.executable, "-m", "benchmarks.gpu", "--here", "--out", str(arguments.out.resolve())]
    here += ["--dry"] if arguments.dry else []
    for part in arguments.parts or PARTS:
        yield part, PARTS[part][0], [*here, part]
        if part == "tests" and (arguments.work or arguments.dry):
            yield "evidence", EVIDENCE_MINUTES, evidence_command(arguments)


def evidence_command(arguments: argparse.Namespace) -> list[str]:
    """The trainings of evidence.py; a dry run only asks what they can be told."""
    command = [sys.executable, "-m", "benchmarks.evidence", "confirm"]
    if arguments.dry:
        return [*command, "--help"]
    paths = ["--work", str(arguments.work.resolve()), "--tower", str(arguments.tower.resolve())]
    return [*command, *paths, "--device", "cuda", "--workers", "6"]


def run_all(arguments: argparse.Namespace) -> None:
    """Run the parts one after the other, each in a process, until the minutes are over."""
    end = time.monotonic() + 60 * arguments.minutes
    environment = {**os.environ, **({"TRITON_INTERPRET": "1"} if arguments.dry else {})}
    failed = []
    for part, minutes, command in commands(arguments):
        seconds = min(60 * minutes, end - time.monotonic())
        if seconds < 5:
            failed.append(part)
            continue
        if part == "evidence" and not arguments.dry:
            command += ["--minutes", f"{max(0.1, seconds / 60 - 0.5):.1f}"]
        if exit_status(command, environment, seconds) != 0:
            failed.append(part)
    if failed:
        raise SystemExit(f"error: these parts failed or were cut off: {', '.join(failed)}")


def exit_status(command: list[str], environment: dict[str, str], seconds: float) -> int | None:
    """The exit status of a command; None if it was stopped after so many seconds.

    The processes that the command has started are stopped too: they would keep the GPU busy.
    """
    with subprocess.Popen(command, cwd=ROOT, env=environment, start_new_session=True) as process:
        try:
            return process.wait(seconds)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            print(f"stopped after {how_many(round(seconds), 'second')}: {command}", flush=True)
            return None
        except BaseException:  # Ctrl-C stops everything
            os.killpg(process.pid, signal.SIGKILL)
            raise


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "parts", nargs="*", help=f"parts to run, of {', '.join(PARTS)}; default: all"
    )
    parser.add_argument("--minutes", type=float, default=10, help="minutes for all parts together")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the results")
    parser.add_argument("--work", type=Path, help="packed clips of evidence.py; needs --tower")
    parser.add_argument("--tower", type=Path, help="weights of the tower of evidence.py")
    parser.add_argument("--dry", action="store_true", help="small, on the CPU; needs --out")
    parser.add_argument("--here", action="store_true", help="run the parts in this process")
    parser.add_argument("--docs", action="store_true", help="only write the tables of the page")
    arguments = parser.parse_args()
    if unknown := [part for part in arguments.parts if part not in PARTS]:
        parser.error(f"unknown part {unknown[0]}; there are {', '.join(PARTS)}")
    if arguments.dry and arguments.out == RESULTS:
        parser.error("a dry run measures nothing; name another folder with --out")
    if (arguments.work is None) != (arguments.tower is None):
        parser.error("--work and --tower belong together")
    if arguments.docs:
        write_text(PAGE, with_tables(PAGE.read_text(encoding="utf-8")))
        return
    if not arguments.dry and not torch.cuda.is_available():
        raise SystemExit("error: no CUDA device; these checks need one (or --dry)")
    if not arguments.here:
        run_all(arguments)
        return
    place = Place(dry=arguments.dry)
    # every part runs, also after a part that failed
    done = [measure(part, place, arguments.out) for part in arguments.parts]
    if not all(done):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
