"""`zeroi2v bench`: time models in turn."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Final

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
    print_json,
    set_action,
    set_option,
)

FILES: Final = ("bench.json", "bench.svg")
NOTES = """\
MODEL is plain (the image tower alone) or a strategy (zeroi2v, lora, evl ...). A strategy with
:merged behind it is timed with its adapters folded. The weights are random. Every model is compared
with the first model. Ctrl-C keeps the finished rounds. docs/speed.md explains the figures."""


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
    rounds: int
    warmup: int
    max_batch: int | None
    memory: float | None
    out: Path | None
    settings: list[str]


def add(commands: Commands) -> None:
    """Declare the command."""
    parser = commands.add("bench", "time models in turn: latency, throughput and memory", NOTES)
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
    _add_measuring(parser)
    text = "folder to write bench.json and bench.svg to"
    parser.add_argument("--out", type=nonempty_path, metavar="FOLDER", help=text)
    set_option(
        parser,
        "change one setting of [model] for every MODEL: adapter_ratio=0.5, operator=hr_qkv ...",
    )
    set_action(parser, BenchArguments, run)


def _add_measuring(parser: Parser) -> None:
    """Declare how the models are timed."""
    text = "device to run on (default: the GPU if there is one)"
    parser.add_argument("--device", choices=("cpu", "cuda"), help=text)
    dtype_option(parser, "precision of weights and clips (default: %(default)s)")
    text = "time the models after torch.compile"
    parser.add_argument("--compile", action="store_true", help=text)
    text = "timed calls of each model (default: %(default)s)"
    parser.add_argument("--rounds", type=count, default=20, metavar="N", help=text)
    text = "untimed calls of each model before the timed calls (default: %(default)s)"
    parser.add_argument("--warmup", type=count, default=3, metavar="N", help=text)
    text = "most clips of a batch, for throughput (default: as many as the memory holds)"
    parser.add_argument("--max-batch", type=count, metavar="N", help=text)
    text = "memory that a batch may take on a CPU (default: half of the free memory)"
    parser.add_argument("--memory", type=float, metavar="GIB", help=text)


def run(arguments: BenchArguments) -> int:
    """Time the models, write the files, and print the table."""
    from zeroi2v.files import check_writable, claimed

    if arguments.out is None:
        return _measure(arguments, None)
    for path in (arguments.out / name for name in FILES):
        check_writable(path)
    with claimed(arguments.out, "another bench"):
        return _measure(arguments, arguments.out)


def _measure(arguments: BenchArguments, out: Path | None) -> int:
    """Time the models. The table is printed even if the files cannot be written at the end."""
    from rich.console import Console

    from zeroi2v.files import write_json
    from zeroi2v.measure.bench import bench
    from zeroi2v.measure.bench_options import checked_device, checked_recipe, names_to_time
    from zeroi2v.measure.bench_table import bench_table, write_bench
    from zeroi2v.measure.subjects import build_subjects

    device = checked_device(arguments.device, arguments.memory)
    flags = given({"model.tower": arguments.tower, "clip.frames": arguments.frames})
    recipe = checked_recipe(flags, arguments.settings, arguments.saved)
    names = names_to_time(arguments.names, arguments.saved)
    log = arguments.log()
    subjects = build_subjects(
        names,
        arguments.saved,
        recipe,
        device=device,
        dtype=arguments.dtype,
        compiled=arguments.compile,
        log=log,
    )
    result = bench(
        subjects,
        device=device,
        dtype=arguments.dtype,
        rounds=arguments.rounds,
        warmup=arguments.warmup,
        max_batch=arguments.max_batch,
        memory=arguments.memory,
        each=lambda result: write_json(out / FILES[0], result) if out else None,
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
