"""What can be asked of a model or tower on the command line? Cost, speed, where it looks, what does best; cli.py says how."""

from __future__ import annotations

import argparse
import dataclasses
import fnmatch
import json
import math
import sys
from pathlib import Path
from typing import Any

from zeroi2v.cli.main import (
    Parser,
    count,
    data_argument,
    log_of,
    model_option,
    open_data,
    output_options,
    print_json,
    set_option,
    with_flip_pairs,
)
from zeroi2v.errors import ConfigError, nearest


def add_commands(command: Any, commands: Any, parser: Parser) -> None:
    """Add the commands; `command` is what `build_parser` adds its own with."""
    one = command(
        commands, parser, "towers", towers, "list the image transformers that can be adapted"
    )
    text = "only names that match, such as '*clip*' (default: all)"
    one.add_argument("pattern", nargs="?", default="*", metavar="PATTERN", help=text)
    one.add_argument(
        "--partly", action="store_true", help="those where some attention blocks stay spatial"
    )
    output_options(one)

    one = command(
        commands, parser, "show", show, "draw where the heads of one block look in a video"
    )
    one.add_argument(
        "video", type=Path, metavar="VIDEO", help="video file, or folder of the images of one clip"
    )
    model_option(one)
    one.add_argument(
        "--block", type=int, metavar="N", help="attention block, from 1 (default: the last)"
    )
    one.add_argument(
        "--label", metavar="NAME", help="class that Grad-CAM explains (default: the predicted one)"
    )
    text = "folder for show.png, show.mp4 and show.html, which are replaced (default: %(default)s)"
    one.add_argument("--out", type=Path, default=Path("show"), metavar="FOLDER", help=text)
    output_options(one)

    notes = (
        "Counted without computing: no weights are fetched and no GPU is needed. docs/costs.md says what is counted.\n"
        "--table 3, 4, 5, 10 or 11 prints that table of the paper, our counts beside its figures."
    )
    one = command(
        commands, parser, "cost", cost, "count parameters, multiply-adds and memory", notes
    )
    one.add_argument("--model", metavar="RUN", help="run folder, model folder or Hub name")
    one.add_argument(
        "--tower", metavar="NAME", help="image transformer (default: the embedded zeroi2v_tiny)"
    )
    one.add_argument("--strategy", metavar="NAME", help="what is adapted (default: zeroi2v)")
    one.add_argument("--frames", type=count, metavar="T", help="frames of a clip (default: 8)")
    one.add_argument("--classes", type=count, metavar="N", help="without --model (default: 400)")
    one.add_argument(
        "--clips", type=count, metavar="N", help="clips per video (default: the model's, or 1)"
    )
    one.add_argument(
        "--crops", type=int, choices=(1, 3), help="crops per clip (default: the model's, or 1)"
    )
    one.add_argument(
        "--table", type=int, choices=(3, 4, 5, 10, 11), help="a table of the paper instead"
    )
    set_option(one, "change a setting of [model], [clip] or [views], as often as you like")
    output_options(one)

    text = "time models in turn: latency, throughput and memory"
    notes = (
        "MODEL is plain (the image tower alone) or a strategy (zeroi2v, lora, evl ...), followed by :merged where its\n"
        "adapters are to be folded first; the weights are random. All others are compared with the first. Ctrl-C keeps the\n"
        "rounds that are finished. docs/speed.md says what the figures mean."
    )
    one = command(commands, parser, "bench", bench, text, notes)
    one.add_argument(
        "names",
        nargs="*",
        metavar="MODEL",
        help="what to time (default: plain zeroi2v:merged zeroi2v)",
    )
    text = "time a saved model too, as often as you like: run folder, model folder or Hub name, also followed by :merged"
    one.add_argument("--model", action="append", default=[], metavar="RUN", dest="saved", help=text)
    text = "image transformer (default: the first saved model's, or zeroi2v_tiny)"
    one.add_argument("--tower", metavar="NAME", help=text)
    one.add_argument("--frames", type=count, metavar="T", help="frames of a clip (default: 8)")
    one.add_argument(
        "--device", choices=("cpu", "cuda"), help="where to run (default: the GPU if there is one)"
    )
    text = "of weights and clips (default: %(default)s)"
    one.add_argument("--dtype", choices=("fp32", "bf16", "fp16"), default="fp32", help=text)
    one.add_argument("--compile", action="store_true", help="time the models after torch.compile")
    one.add_argument(
        "--rounds",
        type=count,
        default=20,
        metavar="N",
        help="timed calls of each (default: %(default)s)",
    )
    text = "untimed calls of each before them (default: %(default)s)"
    one.add_argument("--warmup", type=count, default=3, metavar="N", help=text)
    text = "largest batch to try for throughput; 1 tries none (default: as memory allows)"
    one.add_argument("--max-batch", type=count, metavar="N", help=text)
    text = "memory that a batch may take on a CPU (default: half of what is free)"
    one.add_argument("--memory", type=float, metavar="GIB", help=text)
    one.add_argument(
        "--out", type=Path, metavar="FOLDER", help="write bench.json and bench.svg there"
    )
    set_option(
        one,
        "change one setting of [model] for all that is built: adapter_ratio=0.5, operator=hr_qkv ...",
    )
    output_options(one)

    notes = (
        "Each strategy is a row of the table, and so is each --row with settings of its own:\n"
        "  --row no_time 'heads=[]' --row wide strategy=lora adapter_ratio=0.5\n"
        "Interrupted or killed, the same command goes on where it was; more rows or seeds can be asked for later."
    )
    text = "train several strategies under one budget, and write one table and one page"
    one = command(commands, parser, "compare", compare, text, notes)
    data_argument(one)
    text = "rows: strategies of docs/training.md (default: zeroi2v lora linear_probe, unless there is a --row)"
    one.add_argument("--strategies", nargs="+", default=[], metavar="NAME", help=text)
    text = "a row with settings of its own, as often as you like"
    one.add_argument(
        "--row", nargs="+", action="append", default=[], metavar=("NAME", "KEY=VALUE"), help=text
    )
    text = "of the trainings; every row is trained with each (default: 0 1)"
    one.add_argument("--seeds", nargs="+", type=int, default=[0, 1], metavar="N", help=text)
    one.add_argument(
        "--recipe", type=Path, metavar="FILE", help="TOML file of the settings that all rows share"
    )
    text = "folder to write, or to go on in (default: %(default)s)"
    one.add_argument("--out", type=Path, default=Path("compare"), metavar="FOLDER", help=text)
    set_option(one, "change one setting of all rows, as often as you like")
    output_options(one)


def towers(arguments: argparse.Namespace) -> int:
    """`zeroi2v towers`"""
    from zeroi2v.models.towers import partly_covered_towers, supported_towers

    known = partly_covered_towers() if arguments.partly else supported_towers()
    found = [name for name in known if fnmatch.fnmatchcase(name, arguments.pattern)]
    if not found:
        near = nearest(arguments.pattern.strip("*"), known)
        raise ConfigError(
            f"no tower is called {arguments.pattern!r}{near}; a part of a name needs stars: '*clip*'"
        )
    if arguments.json:
        print_json(found)
    else:
        print("\n".join(found))
        if not arguments.quiet:
            print(
                f"{len(found)} towers; their pretrained weights: docs/weights.md", file=sys.stderr
            )
    return 0


def show(arguments: argparse.Namespace) -> int:
    """`zeroi2v show`"""
    from zeroi2v.explain.show import show as draw
    from zeroi2v.machine import best_device
    from zeroi2v.models.loading import load
    from zeroi2v.pages.show import beside_heads, heads_text

    model = load(arguments.model).to(best_device())
    result = draw(
        arguments.video, model, arguments.out, block=arguments.block, label=arguments.label
    )
    if arguments.json:
        print_json(result)
    else:
        for group in result["heads"]:
            heads = heads_text(group["heads"])
            print(
                f"offset {group['offset']:+d}: heads {heads}; frame by frame they read {group['reads']}"
            )
        if aside := beside_heads(result):
            print(aside)
        print(f"{result['label']} ({result['score']:.1%}): {', '.join(result['files'])}")
    return 0


def cost(arguments: argparse.Namespace) -> int:
    """`zeroi2v cost`"""
    from zeroi2v.config import TrainConfig
    from zeroi2v.engine.spare import spared
    from zeroi2v.measure.cost_table import compare_table, model_costs

    given = {
        "model.tower": arguments.tower,
        "model.strategy": arguments.strategy,
        "clip.frames": arguments.frames,
        "views.clips": arguments.clips,
        "views.crops": arguments.crops,
    }
    changes = [
        f"{key}={json.dumps(value)}" for key, value in given.items() if value is not None
    ] + arguments.settings
    if arguments.table:
        if arguments.model or changes or arguments.classes is not None:
            raise ConfigError("--table counts the paper's models; give it alone")
        value, lines = compare_table(arguments.table)
    else:
        value, lines = model_costs(
            arguments.model,
            changes,
            num_classes=arguments.classes,
            training_mode=lambda model: spared(model, TrainConfig()),
        )
    if arguments.json:
        print_json(value)
    else:
        for line in lines:
            print(line, flush=True)
    return 0


def bench(arguments: argparse.Namespace) -> int:
    """`zeroi2v bench`"""
    import torch
    from rich.console import Console

    from zeroi2v.config import ClipConfig, ModelConfig, Recipe
    from zeroi2v.files import check_writable, write_json
    from zeroi2v.measure.bench import bench as measure
    from zeroi2v.measure.bench_table import bench_table, write_bench
    from zeroi2v.measure.subjects import MERGED, PLAIN, build_subjects
    from zeroi2v.recipes import override

    if arguments.device == "cuda" and not torch.cuda.is_available():
        raise ConfigError(
            "--device cuda: torch finds no GPU here; leave it out, or say --device cpu"
        )
    device = torch.device(arguments.device or ("cuda" if torch.cuda.is_available() else "cpu"))
    if arguments.memory is not None and not 0 < arguments.memory < math.inf:
        raise ConfigError(f"--memory must be above 0 GiB, and finite, got {arguments.memory}")
    if arguments.memory is not None and device.type == "cuda":
        raise ConfigError(
            "--memory is of a CPU; on a GPU batches are doubled until its own memory ends"
        )
    flags = {"model.tower": arguments.tower, "clip.frames": arguments.frames}
    given = [f"{key}={json.dumps(value)}" for key, value in flags.items() if value is not None]
    settings = [*given, *arguments.settings]
    if arguments.saved and settings and not arguments.tower:
        raise ConfigError(
            "without --tower all is built like the first saved model; add --tower, or leave out --frames and --set"
        )
    recipe = override(Recipe(), settings)
    if dataclasses.replace(recipe, model=ModelConfig()) != Recipe(
        clip=ClipConfig(frames=recipe.clip.frames)
    ):
        raise ConfigError(
            "--set: only settings of [model] change what is timed; leave out the others"
        )
    if (recipe.model.strategy, recipe.model.weights) != (
        ModelConfig().strategy,
        ModelConfig().weights,
    ):
        raise ConfigError(
            "--set: the models' names say the strategies, and all weights are random; leave strategy and weights out"
        )
    names = arguments.names or (
        [PLAIN] if arguments.saved else [PLAIN, "zeroi2v" + MERGED, "zeroi2v"]
    )
    files = [arguments.out / name for name in ("bench.json", "bench.svg")] if arguments.out else []
    for path in files:
        check_writable(path)
    log = log_of(arguments)
    subjects = build_subjects(
        names,
        arguments.saved,
        None if arguments.saved and not arguments.tower else recipe,
        device=device,
        dtype=arguments.dtype,
        compiled=arguments.compile,
        log=log,
    )
    result = measure(
        subjects,
        device=device,
        dtype=arguments.dtype,
        rounds=arguments.rounds,
        warmup=arguments.warmup,
        max_batch=arguments.max_batch,
        memory=arguments.memory,
        each=lambda result: write_json(files[0], result) if files else None,
        log=log,
    )
    try:
        if files:
            write_bench(result, *files)
    finally:
        if arguments.json:
            print_json(result)
        else:
            Console().print(bench_table(result))
    return 130 if result["interrupted"] else 0


def compare(arguments: argparse.Namespace) -> int:
    """`zeroi2v compare`"""
    from rich.console import Console

    from zeroi2v.config import Recipe
    from zeroi2v.experiments.compare import Row, compare, strategy_row
    from zeroi2v.pages.compare import terminal
    from zeroi2v.recipes import override, read_recipe

    strategies = arguments.strategies or (
        [] if arguments.row else ["zeroi2v", "lora", "linear_probe"]
    )
    budget = override(
        read_recipe(arguments.recipe) if arguments.recipe else Recipe(), arguments.settings
    )
    rows = [strategy_row(name, budget) for name in strategies]
    rows += [Row(name, tuple(settings)) for name, *settings in arguments.row]
    dataset = open_data(arguments.data, budget.data, budget.train.broken)
    log = log_of(arguments)
    budget = with_flip_pairs(budget, dataset, log)
    result = compare(rows, budget, arguments.seeds, dataset, arguments.out, log=log)
    if arguments.json:
        print_json(result)
    else:
        Console().print(terminal(result))
        print(f"The page: {arguments.out / 'compare.html'}")
    return 1 if result["failed"] else 0
