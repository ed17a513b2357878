"""`zeroi2v bench`: time models in turn, or count their kernels."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from zeroi2v.cli.options import (
    MODEL,
    Commands,
    OutputArguments,
    Parser,
    count,
    dtype_option,
    given,
    nonempty,
    nonempty_path,
    number,
    print_json,
    set_action,
    set_option,
)

if TYPE_CHECKING:
    import torch

    from zeroi2v.log import Log
    from zeroi2v.measure.subjects import Subject

FILES: Final = ("bench.json", "bench.svg")
COUNT_FILE: Final = "count.json"
NOTES = """\
MODEL is plain (only the image tower) or a strategy (zeroi2v, lora, evl ...). A strategy with
:merged behind it is timed with its adapters folded. The weights are random. Every model is compared
with the first model. Ctrl-C keeps the finished rounds. docs/speed.md explains the figures.

--count needs no GPU and runs no model. It counts the kernels that a call starts on a GPU, the bytes
that the kernels read and write, and their multiply-adds, and says how long a card needs at least.
It cannot see the time that Python takes between two kernels, which is most of the time of a small
batch."""


@dataclass(frozen=True, kw_only=True)
class BenchArguments(OutputArguments):
    """The arguments of `zeroi2v bench`."""

    names: list[str]
    saved: list[str]
    tower: str | None
    frames: int | None
    device: str | None
    dtype: str
    compile: bool
    rounds: int | None
    warmup: int | None
    max_batch: int | None
    memory: float | None
    count: bool
    batch: list[int]
    bandwidth: float | None
    rate: float | None
    out: Path | None
    settings: list[str]


def add(commands: Commands) -> None:
    """Declare the command."""
    parser = commands.add(
        "bench", "time models in turn: latency, throughput and memory; or count kernels", NOTES
    )
    text = "models to time (default: plain zeroi2v:merged zeroi2v)"
    parser.add_argument("names", nargs="*", metavar="MODEL", help=text)
    parser.add_argument(
        "--model",
        action="append",
        default=[],
        type=nonempty,
        metavar="RUN",
        dest="saved",
        help=f"a saved model to time too, as often as you like: {MODEL}; :merged may follow",
    )
    text = "image transformer (default: the tower of the first saved model, or zeroi2v_tiny)"
    parser.add_argument("--tower", type=nonempty, metavar="NAME", help=text)
    text = "frames of a clip (default: 8)"
    parser.add_argument("--frames", type=count, metavar="T", help=text)
    _add_timing(parser)
    _add_counting(parser)
    text = "folder to write bench.json and bench.svg to, or count.json with --count"
    parser.add_argument("--out", type=nonempty_path, metavar="FOLDER", help=text)
    set_option(
        parser,
        "change one setting of [model] for every MODEL: adapter_ratio=0.5, operator=hr_qkv ...",
    )
    set_action(parser, BenchArguments, run)


def _add_timing(parser: Parser) -> None:
    """Declare how the models are timed."""
    text = "device to run on (default: the GPU if there is one)"
    parser.add_argument("--device", choices=("cpu", "cuda"), help=text)
    dtype_option(parser, "precision of weights and clips (default: %(default)s)")
    text = "time the models after torch.compile"
    parser.add_argument("--compile", action="store_true", help=text)
    text = "timed calls of each model (default: 20)"
    parser.add_argument("--rounds", type=count, metavar="N", help=text)
    text = "untimed calls of each model before the timed calls (default: 3)"
    parser.add_argument("--warmup", type=count, metavar="N", help=text)
    text = "most clips of a batch, for throughput (default: as many as the memory holds)"
    parser.add_argument("--max-batch", type=count, metavar="N", help=text)
    text = "memory that a batch may take on a CPU (default: half of the free memory)"
    parser.add_argument("--memory", type=number, metavar="GIB", help=text)


def _add_counting(parser: Parser) -> None:
    """Declare how the kernels of the models are counted."""
    text = "count kernels, bytes and multiply-adds on a GPU, without a GPU, instead of timing"
    parser.add_argument("--count", action="store_true", help=text)
    text = "clips of a counted call, as often as you like (default: 1 and 32)"
    parser.add_argument("--batch", action="append", default=[], type=count, metavar="N", help=text)
    text = "bandwidth of the card in a count (default: 2.2, as an H100 reached it)"
    parser.add_argument("--bandwidth", type=number, metavar="TB/S", help=text)
    text = "rate of the card in a count (default: 560, or 42 in fp32, as an H100 reached it)"
    parser.add_argument("--rate", type=number, metavar="TFLOP/S", help=text)


def run(arguments: BenchArguments) -> int:
    """Time or count the models, write the files, and print the table."""
    from zeroi2v.files import check_writable, claimed
    from zeroi2v.measure.bench_options import check_mode

    names = ("device", "compile", "rounds", "warmup", "max_batch", "memory")
    timing = {name: getattr(arguments, name) for name in names}
    counting = {name: getattr(arguments, name) for name in ("batch", "bandwidth", "rate")}
    check_mode(counts=arguments.count, timing=timing, counting=counting)
    measure, files = (_count, (COUNT_FILE,)) if arguments.count else (_time, FILES)
    if arguments.out is None:
        return measure(arguments, None)
    for path in (arguments.out / name for name in files):
        check_writable(path)
    with claimed(arguments.out, "another bench"):
        return measure(arguments, arguments.out)


def _time(arguments: BenchArguments, out: Path | None) -> int:
    """Time the models. The table is printed even if the files cannot be written at the end."""
    from rich.console import Console

    from zeroi2v.files import write_json
    from zeroi2v.measure.bench import ROUNDS, WARMUP, bench
    from zeroi2v.measure.bench_options import checked_device
    from zeroi2v.measure.bench_table import bench_table, write_bench

    device = checked_device(arguments.device, arguments.memory)
    log = arguments.log()
    result = bench(
        _subjects(arguments, device, log),
        device=device,
        dtype=arguments.dtype,
        rounds=arguments.rounds or ROUNDS,
        warmup=arguments.warmup or WARMUP,
        max_batch=arguments.max_batch,
        memory=arguments.memory,
        on_progress=lambda result: write_json(out / FILES[0], result) if out else None,
        log=log,
    )
    try:
        if out:
            write_bench(result, *(out / name for name in FILES))
    finally:
        if arguments.json:
            print_json(result)
        else:
            Console().print(bench_table(result))
    return 130 if result["interrupted"] else 0


def _count(arguments: BenchArguments, out: Path | None) -> int:
    """Count the kernels of the models. What is counted is written after each model."""
    import torch
    from rich.console import Console

    from zeroi2v.files import write_json
    from zeroi2v.measure.count_models import BATCHES, card_for, count_models
    from zeroi2v.measure.count_table import count_table

    card = card_for(arguments.dtype, bandwidth=arguments.bandwidth, rate=arguments.rate)
    log = arguments.log()
    result = count_models(
        _subjects(arguments, torch.device("meta"), log),
        dtype=arguments.dtype,
        batches=list(dict.fromkeys(arguments.batch)) or BATCHES,
        card=card,
        on_progress=lambda result: write_json(out / COUNT_FILE, result) if out else None,
        log=log,
    )
    if arguments.json:
        print_json(result)
    else:
        Console().print(count_table(result))
    return 0


def _subjects(arguments: BenchArguments, device: torch.device, log: Log) -> list[Subject]:
    """The models that the arguments name, on a device."""
    from zeroi2v.measure.bench_options import checked_recipe, names_to_time
    from zeroi2v.measure.subjects import build_subjects

    flags = given({"model.tower": arguments.tower, "clip.frames": arguments.frames})
    recipe = checked_recipe(flags, arguments.settings, arguments.saved)
    return build_subjects(
        names_to_time(arguments.names, arguments.saved),
        arguments.saved,
        recipe,
        device=device,
        dtype=arguments.dtype,
        compiled=arguments.compile,
        log=log,
    )
