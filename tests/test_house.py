"""Does the source keep the house rules? Imports, homes, public names, the cost of `--help`.

Most tests read the source with `ast` and import nothing of it. So they hold for a module that
cannot even be imported.
"""

import ast
import json
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import zeroi2v

ROOT = Path(__file__).resolve().parents[1]
SOURCE = ROOT / "src" / "zeroi2v"
MODULES = sorted(SOURCE.rglob("*.py"))

# Room -> the rooms that it may import. A room is a folder or a module at the top of the package;
# "zeroi2v" is the package itself. Every room may import those of EVERYBODY.
EVERYBODY = {"errors", "files", "log", "machine", "version"}
SHOWN = {"config", "recipes", "method", "models", "data", "inference", "pages"}
ALLOWED: dict[str, set[str]] = {
    "errors": set(),
    "files": {"errors"},
    "version": set(),
    "machine": {"errors", "version"},
    "log": {"errors"},
    "config": {"errors"},
    "recipes": {"errors", "config", "files"},
    "method": {"errors"},
    "models": {"config", "recipes", "method"} | EVERYBODY,
    "data": {"config"} | EVERYBODY,
    "inference": {"config", "recipes", "method", "models", "data"} | EVERYBODY,
    "engine": {"config", "recipes", "method", "models", "data", "inference"} | EVERYBODY,
    "pages": {"files"} | EVERYBODY,
    "deploy": SHOWN | EVERYBODY,
    "explain": SHOWN | EVERYBODY,
    "measure": SHOWN | EVERYBODY,
    "experiments": SHOWN | {"engine", "measure", "explain", "deploy", "zeroi2v"} | EVERYBODY,
    "cli": SHOWN | {"engine", "measure", "explain", "deploy", "experiments", "zeroi2v"} | EVERYBODY,
    "__main__": {"cli"},
    "zeroi2v": {"config", "errors", "version", "models", "deploy", "measure"},
}

PUBLIC = {
    "Prediction",
    "Predictor",
    "VideoClassifier",
    "ZeroI2VError",
    "cost",
    "create_model",
    "load",
    "load_official",
    "partly_covered_towers",
    "supported_towers",
}
HEAVY = (
    "torch",
    "torchvision",
    "timm",
    "av",
    "numpy",
    "jinja2",
    "huggingface_hub",
    "safetensors",
)

# of ImageNet and CLIP, as shares and as 0..255 (CLIP's also as other projects round them)
PIXEL_STATISTICS = {
    0.485,
    0.456,
    0.406,
    0.229,
    0.224,
    0.225,
    0.481,
    0.458,
    0.408,
    0.269,
    0.261,
    0.276,
}
PIXEL_STATISTICS |= {
    123.675,
    116.28,
    103.53,
    58.395,
    57.12,
    57.375,
    122.771,
    116.746,
    104.094,
    68.501,
    66.632,
    70.323,
}
PIXEL_STATISTICS |= {122.769, 116.74, 104.04, 68.493, 66.63, 70.321}


def located(path: Path, node: ast.AST) -> str:
    return f"{path.relative_to(SOURCE)}:{getattr(node, 'lineno', 1)}"


def room_of(path: Path) -> str:
    """The room of a source file."""
    first = path.relative_to(SOURCE).parts[0]
    return "zeroi2v" if first == "__init__.py" else first.removesuffix(".py")


def nodes(path: Path) -> Iterator[ast.AST]:
    return ast.walk(ast.parse(path.read_text(encoding="utf-8"), str(path)))


def imported_modules(path: Path) -> Iterator[tuple[ast.AST, str]]:
    """Every import of a file with its dotted name: in functions, for typing, by `import_module`."""
    for node in nodes(path):
        if isinstance(node, ast.Import):
            yield from ((node, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:  # relative: one level is the file's own package
                package = ["zeroi2v", *path.relative_to(SOURCE).parent.parts]
                base = ".".join([*package[: len(package) - node.level + 1], *filter(None, [base])])
            yield from ((node, f"{base}.{alias.name}") for alias in node.names)
        elif isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant):
            function = (
                node.func.attr
                if isinstance(node.func, ast.Attribute)
                else getattr(node.func, "id", "")
            )
            if function in ("import_module", "__import__"):
                yield node, str(node.args[0].value)


def room_imported(name: str) -> str | None:
    """The room of a dotted name: None outside the package, "zeroi2v" for a public name."""
    package, _, rest = name.partition(".")
    if package != "zeroi2v":
        return None
    first = rest.partition(".")[0]
    return first if first in ALLOWED else "zeroi2v"


def test_every_room_has_its_row() -> None:
    assert {room_of(path) for path in MODULES} <= set(ALLOWED)


def test_imports_go_one_way() -> None:
    wrong = [
        f"{located(path, node)}: {room} imports {name}"
        for path in MODULES
        for room in [room_of(path)]
        for node, name in imported_modules(path)
        for target in [room_imported(name)]
        if target not in (None, room) and target not in ALLOWED.get(room, set())
    ]
    assert not wrong, "\n".join(wrong)


def test_the_method_is_pure_pytorch() -> None:
    """The kernels are written in Triton, and lie in a folder of their own."""
    wrong = [
        f"{located(path, node)}: imports {name}"
        for path in MODULES
        if room_of(path) == "method"
        for node, name in imported_modules(path)
        if name.partition(".")[0] not in {"torch", "zeroi2v", *sys.stdlib_module_names}
        and not (path.parent.name == "kernels" and name.partition(".")[0] == "triton")
    ]
    assert not wrong, "\n".join(wrong)


def module_of(path: Path) -> str:
    """The dotted name of a source file."""
    parts = path.relative_to(SOURCE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def files_imported(path: Path, files: dict[str, Path]) -> set[Path]:
    """The files of the package that a file imports, lazily, for typing or by `import_module`."""
    found = set()
    for _, name in imported_modules(path):
        while name and name not in files:  # the name in a module, then the module
            name = name.rpartition(".")[0]
        if name and name != "zeroi2v":
            found.add(files[name])
    return found - {path}


def test_no_files_import_each_other_in_a_circle() -> None:
    files = {module_of(path): path for path in MODULES}
    imports = {path: files_imported(path, files) for path in MODULES}
    while True:  # drop files that import none of the rest, and files that none of the rest imports
        wanted = {target for targets in imports.values() for target in targets}
        rest = {
            path: targets & imports.keys()
            for path, targets in imports.items()
            if targets & imports.keys() and path in wanted
        }
        if rest.keys() == imports.keys():
            break
        imports = rest
    circles = sorted(str(path.relative_to(SOURCE)) for path in imports)
    assert not circles, f"in a circle, or between two: {', '.join(circles)}"


def functions(path: Path) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    return (
        node for node in nodes(path) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    )


def test_a_function_fits_on_a_screen() -> None:
    """60 lines, or a comment above the function that begins "# Long:" and says why."""
    too_long = []
    for path in MODULES:
        lines = path.read_text(encoding="utf-8").splitlines()
        for function in functions(path):
            length = (function.end_lineno or 0) - function.lineno + 1
            first = min([function.lineno, *(node.lineno for node in function.decorator_list)])
            reason = lines[first - 2].strip() if first > 1 else ""
            if length > 60 and not reason.startswith("# Long:"):
                too_long.append(f"{located(path, function)}: {function.name} has {length} lines")
    assert not too_long, "\n".join(too_long)


MODEL_NAMES = re.compile(r"(?:\w+_)?(?:model|merged|adapted|classifier|predictor)")


def test_nobody_outside_models_changes_an_attribute_of_a_model() -> None:
    """A model is recognised by its name, or by the annotation of a parameter."""
    changed = []
    for path in MODULES:
        if room_of(path) == "models":
            continue
        annotated = {
            argument.arg
            for function in functions(path)
            for argument in (*function.args.args, *function.args.kwonlyargs)
            if argument.annotation and "VideoClassifier" in ast.unparse(argument.annotation)
        }
        for node in nodes(path):
            targets: list[ast.expr] = []
            if isinstance(node, ast.Assign):
                targets = node.targets
            elif isinstance(node, ast.AnnAssign | ast.AugAssign):
                targets = [node.target]
            elif isinstance(node, ast.Call) and ast.unparse(node.func) in ("setattr", "delattr"):
                targets = [ast.Attribute(node.args[0], "?", ast.Store())]
            for target in (inner for whole in targets for inner in ast.walk(whole)):
                if isinstance(target, ast.Attribute) and isinstance(target.ctx, ast.Store):
                    owner = ast.unparse(target.value)
                    last = owner.rpartition(".")[2]
                    is_part_of_self = owner == "self"
                    if not is_part_of_self and (last in annotated or MODEL_NAMES.fullmatch(last)):
                        changed.append(f"{located(path, node)}: {ast.unparse(node)[:60]}")
    assert not changed, "\n".join(changed)


def is_import_of_av(node: ast.AST) -> bool:
    if isinstance(node, ast.Import):
        return any(alias.name.partition(".")[0] == "av" for alias in node.names)
    return (
        isinstance(node, ast.ImportFrom)
        and node.level == 0
        and (node.module or "").partition(".")[0] == "av"
    )


def is_print(node: ast.AST) -> bool:
    return (
        isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "print"
    )


def is_pixel_statistic(node: ast.AST) -> bool:
    """A mean or standard deviation of pixels, or the name under which timm and others keep one."""
    if isinstance(node, ast.Constant):
        return isinstance(node.value, float) and round(node.value, 3) in PIXEL_STATISTICS
    name = (
        node.name if isinstance(node, ast.alias) else getattr(node, "id", getattr(node, "attr", ""))
    )
    return (
        isinstance(name, str)
        and re.fullmatch(r"(IMAGENET|OPENAI_CLIP)\w*_(MEAN|STD)", name) is not None
    )


@pytest.mark.parametrize(
    ("matches", "homes"),
    [
        pytest.param(
            is_import_of_av,
            {*(f"data/{path.name}" for path in (SOURCE / "data").glob("*.py"))},
            id="import av",
        ),
        pytest.param(
            is_print,
            {*(f"cli/{path.name}" for path in (SOURCE / "cli").glob("*.py")), "log.py"},
            id="print",
        ),
        pytest.param(is_pixel_statistic, set(), id="mean and std"),
    ],
)
def test_it_lives_only_at_home(matches: Callable[[ast.AST], bool], homes: set[str]) -> None:
    strays = [
        located(path, node)
        for path in MODULES
        if path.relative_to(SOURCE).as_posix() not in homes
        for node in nodes(path)
        if matches(node)
    ]
    assert not strays, "\n".join(strays)


def test_every_file_is_named_after_what_it_holds() -> None:
    nameless = re.compile(
        r"_?(utils?|common|helpers?|misc)|v\d+|.*_(v\d+|new|old|copy)|new_.*|old_.*"
    )
    names = [
        path.relative_to(SOURCE) for path in SOURCE.rglob("*") if "__pycache__" not in path.parts
    ]
    assert [str(name) for name in names if nameless.fullmatch(name.stem)] == []


def test_public_names_are_listed_and_sorted() -> None:
    assert set(zeroi2v.__all__) == PUBLIC
    assert zeroi2v.__all__ == sorted(PUBLIC)
    assert set(dir(zeroi2v)) >= PUBLIC | {"__version__"}


@pytest.mark.parametrize("name", sorted(PUBLIC))
def test_a_public_name_can_be_imported(name: str) -> None:
    assert getattr(zeroi2v, name).__name__ == name


def test_an_unknown_name_is_refused() -> None:
    name = "creat_model"
    with pytest.raises(AttributeError, match=name):
        getattr(zeroi2v, name)


def heavy_modules_after(statement: str) -> list[str]:
    """The heavy modules that a fresh interpreter has loaded after a statement."""
    loaded_ones = f"[name for name in {HEAVY!r} if name in sys.modules]"
    report = f"import sys, json; sys.stderr.write(json.dumps({loaded_ones}))"
    program = (
        f"try:\n    {statement}\n"
        f"except SystemExit as stop:\n    assert not stop.code, stop.code\n{report}"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    loaded = json.loads(done.stderr)
    assert isinstance(loaded, list)
    return loaded


@pytest.mark.parametrize("module", ["zeroi2v", "zeroi2v.cli.main"])
def test_importing_is_free(module: str) -> None:
    assert heavy_modules_after(f"import {module}") == []


def test_help_is_free(capsys: pytest.CaptureFixture[str]) -> None:
    statement = (
        "import sys; sys.argv = ['zeroi2v', '--help']; "
        "import zeroi2v.cli.main; sys.exit(zeroi2v.cli.main.main())"
    )
    seconds = []
    for _ in range(5):
        started = time.perf_counter()
        assert heavy_modules_after(statement) == []
        seconds.append(time.perf_counter() - started)
    with (
        capsys.disabled()
    ):  # for the reader of the log: a limit in seconds would depend on the machine
        print(f"\nzeroi2v --help: median {statistics.median(seconds):.2f} s of {len(seconds)} runs")


def text_files() -> Iterator[tuple[str, str]]:
    """The name and text of every file that git tracks, or would track after `git add`.

    Outside a repository the test is skipped.
    """
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    try:
        listed = subprocess.run(
            command, cwd=ROOT, capture_output=True, text=True, check=True
        ).stdout
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("needs git and a repository, to tell which files belong to it")
    for name in filter(None, listed.split("\0")):
        if (ROOT / name).is_file():  # a deleted file stays listed until the deletion is staged
            try:
                yield name, (ROOT / name).read_text(encoding="utf-8")
            except UnicodeDecodeError:
                continue


@pytest.mark.parametrize(
    "banned",
    [
        pytest.param(r"(?<![\w.])/(work|root|farm|home)/", id="a path of one machine"),
        pytest.param(r"\b(TO[D]O|FIX[M]E)\b", id="work left for later"),
    ],
)
def test_no_file_holds(banned: str) -> None:
    found = [
        f"{name}:{number}: {line.strip()[:100]}"
        for name, text in text_files()
        for number, line in enumerate(text.splitlines(), start=1)
        if re.search(banned, line)
    ]
    assert not found, "\n".join(found)


def test_a_result_says_where_it_comes_from() -> None:
    wanted = {"machine", "versions", "date", "seeds"}
    missing = {}
    for path in sorted((ROOT / "benchmarks" / "results").rglob("*.json")):
        lacking = wanted - set(json.loads(path.read_text(encoding="utf-8")))
        if lacking:
            missing[path.name] = sorted(lacking)
    assert missing == {}


def test_every_setting_is_documented_with_its_default() -> None:
    from zeroi2v.config import Recipe
    from zeroi2v.recipes import to_dict

    documents = [
        (ROOT / "docs" / name).read_text(encoding="utf-8") for name in ("training.md", "data.md")
    ]
    for table, settings in to_dict(Recipe()).items():
        for name, value in settings.items():
            label = f"`data.{name}`" if table == "data" else f"`{name}`"
            default = "none" if value is None else json.dumps(value)
            if isinstance(value, list) and value:
                default = f"[{', '.join(str(round(number, 3)) for number in value)}]"
            lines = [
                line
                for text in documents
                for line in text.splitlines()
                if line.startswith(f"| {label} |")
            ]
            assert any(default in line.split("|")[2] for line in lines), (
                table,
                name,
                default,
                lines,
            )
