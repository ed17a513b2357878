"""What does a comparison promise? One budget for all rows, nothing trained twice, a page of all."""

from __future__ import annotations

import dataclasses
import fcntl
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import torch

from zeroi2v.cli.main import main
from zeroi2v.config import ClipConfig, Recipe, TrainConfig
from zeroi2v.data.datasets import VideoDataset, open_dataset
from zeroi2v.engine.run import train
from zeroi2v.errors import ConfigError, ZeroI2VError
from zeroi2v.experiments.compare import (
    Row,
    compare,
    plan_trials,
    rows_asked,
    strategy_row,
    summarise_rows,
)
from zeroi2v.experiments.trial import data_facts
from zeroi2v.experiments.trial_folder import ROWS_FILE, check_trials
from zeroi2v.files import append_json, read_json_lines
from zeroi2v.log import Log
from zeroi2v.models.build import build_model
from zeroi2v.models.spec import numbered_labels
from zeroi2v.recipes import names_in, override, read_recipe, to_dict

BUDGET = Recipe(
    clip=ClipConfig(frames=2),
    train=TrainConfig(epochs=1, batch_size=16, warmup_epochs=0.5, workers=0),
)
ROWS = (
    Row("probe", ("strategy=linear_probe",)),
    Row("gelu", ("strategy=gelu_adapter", "adapter_ratio=0.5")),
)
PROBE = ["--row", "probe", "strategy=linear_probe"]
SETTINGS = ["--seeds", "0", "--set", "frames=2", "--set", "epochs=1", "--set", "batch_size=16"]
SETTINGS += ["--set", "warmup_epochs=0.5", "--set", "workers=0"]
COMMAND = [*PROBE, "--row", "gelu", "strategy=gelu_adapter", "adapter_ratio=0.5", *SETTINGS]
QUIET = Log(quiet=True)


def test_the_row_of_a_peer_resets_the_settings_that_have_no_meaning_for_it_and_says_so() -> None:
    budget = override(BUDGET, ["heads=[-1, 1]", "temporal_embedding=zero", "adapter_ratio=0.5"])
    rows = [
        strategy_row(name, budget)
        for name in ("zeroi2v", "evl", "st_adapter_published", "aim", "joint")
    ]
    resets = [
        ("strategy=zeroi2v",),
        ("strategy=evl", "adapter_ratio=none", "temporal_embedding=trained", "heads=none"),
        ("strategy=st_adapter_published", "temporal_embedding=trained", "heads=none"),
        ("strategy=aim", "heads=none", "temporal_embedding=trained"),
        ("strategy=joint", "adapter_ratio=none", "heads=none", "temporal_embedding=trained"),
    ]
    for row, expected in zip(rows, resets, strict=True):
        assert row.settings[: len(expected)] == expected
    for trial in plan_trials(rows, budget, [0]):
        config = dataclasses.replace(trial.recipe.model, pretrained=False)
        with torch.device("meta"):
            build_model(config, labels=numbered_labels(8), clip=trial.recipe.clip)
        assert trial.recipe.model.temporal_embedding == (
            "zero" if trial.row == "zeroi2v" else "trained"
        )
    for name in ("zeroi2v", "joint", "full"):
        assert strategy_row(name, Recipe()) == Row(name, (f"strategy={name}",))
    shaped = override(
        Recipe(), ['sites=["qkv", "up"]', "adapted_blocks=2", "adapter_scale=0.5", "batch_size=64"]
    )
    assert strategy_row("aim", shaped).settings[:4] == (
        "strategy=aim",
        "adapted_blocks=none",
        "sites=none",
        "adapter_scale=0.5",  # the user's word, which the row repeats
    )
    assert strategy_row("lora", shaped).settings == ("strategy=lora",)
    own_sites = override(Recipe(), ['sites=["block", "mlp"]', "strategy=st_adapter_published"])
    assert "sites=none" not in strategy_row("st_adapter_published", own_sites).settings
    assert "sites=none" in strategy_row("aim", own_sites).settings
    other = override(Recipe(), ["strategy=evl", "decoder_layers=2"])
    assert strategy_row("zeroi2v", other).settings == ("strategy=zeroi2v", "decoder_layers=none")


AUTHORS = {  # the authors' settings for batches of 32 clips
    "evl": (5e-5, 0.05, 0.0, 0.5, {"adapter_dropout": 0.5}),
    "aim": (1.5e-4, 0.05, 2.5, 0.5, {"warmup_start": 0.1, "drop_path": 0.2}),
    "st_adapter_published": (1.25e-4, 0.01, 2.0, 0.5, {"warmup_start": 0.0}),
}


@pytest.mark.parametrize("name", AUTHORS)
def test_a_peer_trains_as_its_authors_do_in_proportion_to_the_batch(name: str) -> None:
    rate, decay, warmup, dropout, others = AUTHORS[name]
    budget = override(Recipe(), ["batch_size=32"])
    row = strategy_row(name, budget)
    (trial,) = plan_trials([row], budget, [0])
    train_settings = trial.recipe.train
    assert train_settings.learning_rate == pytest.approx(rate)
    assert (train_settings.weight_decay, train_settings.warmup_epochs) == (decay, warmup)
    assert trial.recipe.model.classifier_dropout == dropout
    settings = {**to_dict(trial.recipe.model), **to_dict(train_settings)}
    assert {key: settings[key] for key in others} == others
    for key in ("learning_rate", "weight_decay", "warmup_epochs", "classifier_dropout", *others):
        assert f"{key}={settings[key]}" in row.settings, "the page lists the settings of a row"


def test_what_the_user_gives_counts_more_than_what_authors_set(tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.toml"
    recipe.write_text("[train]\nlearning_rate = 1e-3\n[model]\nclassifier_dropout = 0.0\n")
    budget, given = read_recipe(recipe), names_in(recipe)
    assert given == {"train.learning_rate", "model.classifier_dropout"}
    own = [["mine", "strategy=aim", "train.warmup_epochs=1", "drop_path=0.1", "batch_size=64"]]
    rows = rows_asked(["aim", "zeroi2v"], own, budget, given)
    assert rows[0].settings == (
        "strategy=aim",
        "learning_rate=0.001",  # the default of every row, and still the user's word
        "weight_decay=0.05",
        "warmup_epochs=2.5",
        "warmup_start=0.1",
        "classifier_dropout=0.0",
        "drop_path=0.2",
    )
    assert rows[1].settings == ("strategy=zeroi2v",)
    assert rows[2].settings == (
        *own[0][1:],
        "learning_rate=0.001",
        "weight_decay=0.05",
        "warmup_start=0.1",
        "classifier_dropout=0.0",
    )
    _, _, mine = (trial.recipe for trial in plan_trials(rows, budget, [0]))
    assert (mine.train.warmup_epochs, mine.model.drop_path) == (1.0, 0.1)
    changed_budget = override(Recipe(), ["weight_decay=0.2"])
    assert "weight_decay=0.2" in strategy_row("st_adapter_published", changed_budget).settings
    by_default = strategy_row("st_adapter_published", Recipe(), {"train.weight_decay"})
    assert "weight_decay=0.05" in by_default.settings
    (scaled,) = rows_asked([], [["wide", "strategy=aim", "batch_size=128"]], Recipe())
    assert "learning_rate=0.0006" in scaled.settings


@pytest.mark.parametrize("name", ["aim", "joint"])
def test_a_row_that_would_be_blind_to_the_order_of_frames_is_refused(name: str) -> None:
    (row,) = rows_asked([], [["own", f"strategy={name}", "temporal_embedding=zero"]], Recipe())
    with pytest.raises(ConfigError) as caught:
        plan_trials([row], Recipe(), [0])
    assert str(caught.value) == (
        f"row own: without a temporal embedding, strategy {name} is blind to the order of frames; "
        "give the row temporal_embedding=trained"
    )
    blind = override(Recipe(), ["temporal_embedding=zero"])
    (row,) = rows_asked([], [["own", f"strategy={name}"]], blind)
    assert "temporal_embedding=trained" in row.settings
    with pytest.raises(ConfigError, match="is blind to the order of frames"):
        plan_trials([Row("own", (f"strategy={name}",))], blind, [0])


def test_a_row_of_a_peer_shows_its_settings_on_the_page_of_a_comparison(
    motion_videos: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    words = ["compare", str(motion_videos), "--strategies", "evl", *SETTINGS, "--out", str(out)]
    assert main([*words, "--set", "weight_decay=0.05", "--quiet"]) == 0
    (line,) = json.loads((out / "compare.json").read_text())["rows"]
    assert line["settings"] == [
        "strategy=evl",
        "learning_rate=2.5e-05",
        "weight_decay=0.05",
        "warmup_epochs=0.5",
        "classifier_dropout=0.5",
        "adapter_dropout=0.5",
    ]
    page = Reader()
    page.feed((out / "compare.html").read_text())
    assert " ".join(line["settings"]) in page.words


def test_an_older_comparison_goes_on_but_not_with_peers_that_have_changed(
    dataset: VideoDataset, tmp_path: Path
) -> None:
    """Older comparisons have no settings of peers, and a dropout of 0 where there is none now."""
    rows = [Row("probe", ("strategy=linear_probe",)), Row("evl", ("strategy=evl",))]
    new = ("drop_path", "decoder_layers", "strategy_rules")
    old_dropouts = {"adapter_dropout": 0.0, "classifier_dropout": 0.0}
    for trial in plan_trials(rows, BUDGET, [0]):
        tables = to_dict(trial.recipe)
        kept = {name: value for name, value in tables["model"].items() if name not in new}
        tables["model"] = {**kept, **old_dropouts}
        del tables["train"]["learning_rate_shares"]
        entry = {"row": trial.row, "seed": 0, "recipe": tables, "data": data_facts(dataset)}
        append_json(tmp_path / ROWS_FILE, entry)
    probe, evl = plan_trials(rows, BUDGET, [0])
    check_trials([probe], dataset, tmp_path)
    with pytest.raises(ConfigError, match=r"evl, seed 0 was begun with .*strategy_rules = '0.1.0'"):
        check_trials([evl], dataset, tmp_path)
    other = override(BUDGET, ["learning_rate_shares.classifier=0.5"])
    with pytest.raises(ConfigError, match=r"shares = \{\}, not \{'classifier': 0.5\}"):
        check_trials(plan_trials(rows[:1], other, [0]), dataset, tmp_path)


@pytest.fixture(scope="module")
def dataset(motion_videos: Path) -> VideoDataset:
    return open_dataset(motion_videos)


@pytest.fixture(scope="module")
def out(motion_videos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the command leaves for two rows and one seed."""
    folder = tmp_path_factory.mktemp("compare") / "out"
    assert main(["compare", str(motion_videos), *COMMAND, "--out", str(folder), "--quiet"]) == 0
    return folder


@pytest.fixture(scope="module")
def lines(out: Path) -> dict[str, dict[str, Any]]:
    return {line["row"]: line for line in json.loads((out / "compare.json").read_text())["rows"]}


class Reader(HTMLParser):
    """The text of a page, and every address that it asks for."""

    def __init__(self) -> None:
        super().__init__()
        self.words: list[str] = []
        self.addresses: list[str | None] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.addresses += [
            value
            for name, value in attrs
            if name in ("src", "href", "srcset", "data", "xlink:href")
        ]
        assert tag not in ("script", "link", "iframe")

    def handle_data(self, data: str) -> None:
        self.words.append(data)


def test_a_row_is_what_training_it_alone_gives(
    lines: dict[str, dict[str, Any]], out: Path, dataset: VideoDataset, tmp_path: Path
) -> None:
    alone = train(
        override(BUDGET, ["strategy=gelu_adapter", "adapter_ratio=0.5"]),
        dataset,
        tmp_path / "alone",
    )
    assert lines["gelu"]["scores"] == [alone.best]
    assert (out / "runs/gelu/seed-0/model.safetensors").read_bytes() == (
        alone.folder / "model.safetensors"
    ).read_bytes()
    classes = len(dataset.classes)
    classifier = 96 * classes + classes  # of the embedded tower: all that a linear probe trains
    assert lines["probe"]["trainable_params"] == classifier


def test_a_row_that_does_not_merge_says_so(lines: dict[str, dict[str, Any]], out: Path) -> None:
    assert lines["gelu"]["merged_ms"] is None
    assert lines["gelu"]["adapted_ms"] > 0
    assert lines["probe"]["merged_ms"] > 0
    page = (out / "compare.html").read_text()
    assert page.count("<td>does not merge</td>") == 1


def test_the_page_holds_every_row_and_asks_for_nothing(
    lines: dict[str, dict[str, Any]], out: Path
) -> None:
    page = Reader()
    page.feed((out / "compare.html").read_text())
    assert page.addresses == []
    for name, line in lines.items():
        assert page.words.count(name) >= 4  # in the table, both plots, and the list of settings
        assert f"{100 * line['scores'][0]:.1f}\u00a0%" in page.words
        assert " ".join(line["settings"]) in page.words
    assert "One seed, so no spread" in " ".join(page.words)


def test_what_is_finished_is_not_trained_again_and_a_new_row_is_added(
    motion_videos: Path, out: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = read_json_lines(out / ROWS_FILE)
    words = ["compare", str(motion_videos), *COMMAND, "--out", str(out), "--json"]
    assert main([*words, "--row", "plain", "heads=[]"]) == 0
    output = capsys.readouterr()
    assert "finished already: 2 of 3 trainings" in output.err
    assert [line["row"] for line in json.loads(output.out)["rows"]] == ["probe", "gelu", "plain"]
    after = read_json_lines(out / ROWS_FILE)
    assert after[:2] == before
    assert [entry["row"] for entry in after[2:]] == ["plain"]


def test_a_changed_budget_or_other_videos_are_refused_and_nothing_changes(
    motion_videos: Path, out: Path, dataset: VideoDataset, capsys: pytest.CaptureFixture[str]
) -> None:
    before = (out / ROWS_FILE).read_bytes(), (out / "compare.json").read_bytes()
    other_epochs = ["epochs=2" if word == "epochs=1" else word for word in COMMAND]
    words = ["compare", str(motion_videos), *other_epochs, "--out", str(out)]
    assert main(words) == 1
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    assert "probe, seed 0 was begun with" in error
    assert "train.epochs = 1, not 2" in error
    swapped = (dataset.val[1], dataset.val[0], *dataset.val[2:])
    for splits in ({"train": dataset.train[1:]}, {"val": dataset.val[1:]}, {"val": swapped}):
        other = dataclasses.replace(dataset, splits={**dataset.splits, **splits})
        with pytest.raises(ConfigError, match="other videos"):
            compare(ROWS, BUDGET, [0], other, out, log=QUIET)
    assert before == ((out / ROWS_FILE).read_bytes(), (out / "compare.json").read_bytes())


@pytest.mark.parametrize(
    ("rows", "seeds", "message"),
    [
        ([Row("one", ("adapter_ration=1",))], [0], "row one: .*did you mean 'adapter_ratio'"),
        ([Row("a/b", ())], [0], "row 'a/b': choose a name of letters"),
        ([Row("one", ()), Row("one", ())], [0], "at least one row and no row twice, got one, one"),
        ([Row("one", ())], [1, 1], "at least one seed and no seed twice"),
        ([Row("one", ("seed=3",))], [0], "row one: train.seed is the same for all rows"),
        ([Row("one", ("multi_label=true",))], [0], r"row one: \[data\] is the same for all rows"),
    ],
)
def test_what_is_no_comparison_is_named(rows: list[Row], seeds: list[int], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        plan_trials(rows, BUDGET, seeds)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (("strategy=lorra",), "row wrong: .*did you mean 'lora'"),
        (("strategy=evl", "heads=[-1]"), "row wrong: heads: strategy evl has only spatial heads"),
        (
            ("strategy=evl", "few_frames=1", "few_frames_epochs=1"),
            "row wrong: .*few_frames: strategy evl",
        ),
        (("strategy=aim", "token_share=0.5"), "row wrong: .*token_share"),
    ],
)
def test_a_row_that_cannot_be_built_is_refused_before_anything_is_trained(
    settings: tuple[str, ...], message: str, dataset: VideoDataset, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=message):
        compare(
            [ROWS[0], Row("wrong", settings)],
            BUDGET,
            [0],
            dataset,
            tmp_path / "out",
            log=QUIET,
        )
    assert not (tmp_path / "out").exists()


def test_a_training_that_fails_costs_no_other_and_is_named(
    motion_videos: Path, dataset: VideoDataset, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    bad = ["--row", "bad", "strategy=linear_probe", "learning_rate=1e30"]
    words = ["compare", str(motion_videos), *bad, *PROBE, *SETTINGS]
    assert main([*words, "--out", str(out), "--json"]) == 1
    output = capsys.readouterr()
    result = json.loads(output.out)
    assert [line["row"] for line in result["rows"]] == ["probe"]
    assert list(result["failed"]) == ["bad, seed 0"]
    assert "loss" in result["failed"]["bad, seed 0"]
    assert result["trainings"] == {"finished": 1, "planned": 2}
    assert "Failed: bad, seed 0: " in (out / "compare.html").read_text()
    with pytest.raises(ZeroI2VError, match="no training finished: bad, seed 0: "):
        compare(
            [Row("bad", ("learning_rate=1e30",))],
            BUDGET,
            [0],
            dataset,
            tmp_path / "other",
            log=QUIET,
        )


def test_a_folder_in_use_is_left_to_its_user(dataset: VideoDataset, out: Path) -> None:
    held = os.open(out, os.O_RDONLY)
    fcntl.flock(held, fcntl.LOCK_EX)
    with pytest.raises(ConfigError, match="another comparison is running there"):
        compare(ROWS, BUDGET, [0], dataset, out, log=QUIET)
    os.close(held)


def test_videos_that_cannot_be_read_are_named_and_not_counted(
    motion_videos: Path, tmp_path: Path
) -> None:
    videos, out = tmp_path / "videos", tmp_path / "out"
    shutil.copytree(motion_videos, videos)
    broken = min((videos / "val").rglob("*.mp4"))
    broken.write_bytes(b"no video")
    words = ["compare", str(videos), *PROBE, *SETTINGS, "--set", "broken=skip"]
    assert main([*words, "--out", str(out), "--quiet"]) == 0
    result = json.loads((out / "compare.json").read_text())
    assert list(result["left_out"]) == [str(broken)]
    assert result["videos"]["judged"] == result["videos"]["val"] - 1
    page = (out / "compare.html").read_text()
    assert f"on {result['videos']['judged']} validation videos" in page
    assert broken.name in page


def test_a_folder_of_something_else_is_left_alone(dataset: VideoDataset, tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("precious")
    with pytest.raises(ConfigError, match="not from a comparison"):
        compare(ROWS, BUDGET, [0], dataset, tmp_path, log=QUIET)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_the_table_gives_mean_and_spread_over_seeds() -> None:
    shared = {"row": "one", "trainable_params": 5, "peak_memory": 10}
    entries = [
        {**shared, "seed": 0, "score": 0.5, "seconds": 2.0, "latency": latency(merged=4.0)},
        {**shared, "seed": 1, "score": 0.75, "seconds": 4.0, "latency": latency(merged=6.0)},
    ]
    entries[1]["peak_memory"] = 30
    (line,) = summarise_rows([Row("one", ()), Row("not begun", ())], entries)
    assert line["scores"] == [0.5, 0.75]
    assert (line["mean_score"], line["seconds"], line["peak_memory"]) == (0.625, 3.0, 30)
    assert line["merged_ms"] == 5.0


def latency(merged: float) -> dict[str, float]:
    return {
        "adapted_ms": 8.0,
        "merged_ms": merged,
        "adapted_over_tower": 2.0,
        "merged_over_tower": 1.0,
    }


@pytest.mark.slow
def test_a_comparison_killed_half_way_loses_at_most_the_row_in_progress(
    motion_videos: Path, lines: dict[str, dict[str, Any]], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    words = ["compare", str(motion_videos), *COMMAND, "--out", str(out), "--quiet"]
    command = [sys.executable, "-m", "zeroi2v", *words]
    process = subprocess.Popen(command)
    while not (out / "runs/gelu/seed-0/recipe.toml").exists():
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    before = read_json_lines(out / ROWS_FILE)
    assert [entry["row"] for entry in before] == ["probe"]
    assert json.loads((out / "compare.json").read_text())["trainings"] == {
        "finished": 1,
        "planned": 2,
    }
    with (out / ROWS_FILE).open("a") as file:
        file.write('{"row": "gelu", "se')  # as if it had been killed while it wrote
    again = subprocess.run([*command, "--json"], check=True, capture_output=True, text=True)
    assert read_json_lines(out / ROWS_FILE)[:1] == before
    scores = {line["row"]: line["scores"] for line in json.loads(again.stdout)["rows"]}
    assert scores == {name: line["scores"] for name, line in lines.items()}


@pytest.mark.slow
def test_a_training_ends_with_the_comparison_that_began_it(
    motion_videos: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    words = [*COMMAND, "--set", "epochs=1000", "--set", "workers=2", "--out", str(out), "--quiet"]
    command = [sys.executable, "-m", "zeroi2v", "compare", str(motion_videos), *words]
    process = subprocess.Popen(command, start_new_session=True)
    log = out / "runs/probe/seed-0/log.jsonl"
    while not log.exists():
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    deadline = time.monotonic() + 30  # on a busy machine; seconds elsewhere
    while (left := living_processes(process.pid)) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert left == []


def living_processes(session: int) -> list[str]:
    """The states of the processes of a session that have not ended."""
    command = ["ps", "-o", "stat=", "--sid", str(session)]
    states = subprocess.run(command, check=False, capture_output=True, text=True).stdout.split()
    return [state for state in states if not state.startswith("Z")]
