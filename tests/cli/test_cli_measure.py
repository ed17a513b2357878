"""What the commands that measure promise."""

from __future__ import annotations

import json
import math
import statistics
from pathlib import Path

import pytest
import torch

import zeroi2v
from zeroi2v.cli.main import main


def test_towers_lists_what_the_library_lists(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["towers", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == zeroi2v.supported_towers()
    assert main(["towers", "--partly", "--quiet"]) == 0
    assert capsys.readouterr().out.split() == zeroi2v.partly_covered_towers()


def test_towers_takes_a_pattern_and_names_the_nearest_where_none_matches(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["towers", "vit_base_patch16_clip*", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert "vit_base_patch16_clip_quickgelu_224" in found
    assert all(name.startswith("vit_base_patch16_clip") for name in found)
    assert main(["towers", "vit_base_patch16_cli_224"]) == 1
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert "did you mean 'vit_base_patch16_clip_224'" in error


def test_show_draws_into_a_folder_and_refuses_in_one_line(
    motion_videos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model, out = tmp_path / "model", tmp_path / "drawn"
    zeroi2v.create_model("zeroi2v_tiny", num_classes=2, frames=4).save_pretrained(model)
    video = str(next(motion_videos.glob("val/left/*.mp4")))
    assert (
        main(["show", video, "--model", str(model), "--block", "1", "--out", str(out), "--json"])
        == 0
    )
    said = json.loads(capsys.readouterr().out)
    assert said["block"] == 1
    assert [Path(name) for name in said["files"]] == [
        out / name for name in ("show.png", "show.mp4", "show.html")
    ]
    assert all(Path(name).stat().st_size for name in said["files"])
    for wrong, complaint in (
        (["--block", "9"], "block must be 1 to 6"),
        (["--label", "zzz"], "no class is called 'zzz'; the classes are 0, 1"),
    ):
        assert (
            main(["show", video, "--model", str(model), "--out", str(tmp_path / "no"), *wrong]) == 1
        )
        error = capsys.readouterr().err
        assert error.startswith("error: ")
        assert error.count("\n") == 1
        assert complaint in error
    assert not (tmp_path / "no").exists()


@pytest.mark.parametrize(
    ("operator", "lines"),
    [
        (
            "shift_kv",
            [
                "offset +0: heads 1 (75%), 2 (75%), 3 (75%); frame by frame they read [1, 2, 3]",
                "offset -1: heads 1 (12.5%), 2 (12.5%), 3 (12.5%); "
                "frame by frame they read [1, 1, 2]",
                "offset +1: heads 1 (12.5%), 2 (12.5%), 3 (12.5%); "
                "frame by frame they read [2, 3, 3]",
            ],
        ),
        (
            "cls_shift",
            [
                "offset +0: heads 1, 2, 3; frame by frame they read [1, 2, 3]",
                "The [cls] shift moves channels of the class token between neighbouring frames; "
                "every head reads its own frame.",
            ],
        ),
    ],
)
def test_show_says_how_much_of_a_head_moves_and_what_moves_beside_heads(
    operator: str,
    lines: list[str],
    motion_videos: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    options = {"depth": 1, "num_heads": 3, "embed_dim": 192}
    model = zeroi2v.create_model(
        "zeroi2v_tiny",
        num_classes=2,
        frames=3,
        operator=operator,
        ratio=0.25,
        tower_options=options,
    )
    model.save_pretrained(tmp_path / "model")
    video = str(next(motion_videos.glob("val/left/*.mp4")))
    assert main(["show", video, "--model", str(tmp_path / "model"), "--out", str(tmp_path)]) == 0
    assert capsys.readouterr().out.splitlines()[:-1] == lines
    page = (tmp_path / "show.html").read_text(encoding="utf-8")
    assert ("12.5%" in page) == (operator == "shift_kv")
    assert (lines[-1] in page) == (operator == "cls_shift")


def test_cost_counts_what_the_library_counts(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = [
        "--tower",
        "zeroi2v_tiny",
        "--frames",
        "4",
        "--classes",
        "5",
        "--clips",
        "2",
        "--crops",
        "3",
    ]
    assert main(["cost", *options, "--set", "heads=[-1]", "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert answer["views"] == "4x3x2"
    model = zeroi2v.create_model("zeroi2v_tiny", num_classes=5, frames=4, heads=[-1])
    for kind, one in (("adapted", model), ("merged", model.eval().merge())):
        found = zeroi2v.cost(one)
        assert answer[kind]["params"] == found.params
        assert answer[kind]["new_params"] == found.new_params
        assert answer[kind]["gmacs_per_view"] == found.gmacs
        assert answer[kind]["gmacs"] == 6 * found.gmacs
        assert answer[kind]["extra_gmacs"] == 6 * found.extra_gmacs
    assert answer["adapted"]["trainable_params"] == zeroi2v.cost(model).trainable_params
    assert answer["merged"]["extra_gmacs"] == 0
    model.save_pretrained(tmp_path)
    assert main(["cost", "--model", str(tmp_path), "--clips", "2", "--crops", "3", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == answer


@pytest.mark.parametrize(
    "options", [["--frames", "8"], ["--classes", "400"], ["--set", "model.tower=zeroi2v_tiny"]]
)
def test_cost_of_a_saved_model_refuses_what_it_says_itself_whatever_the_default(
    options: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    zeroi2v.create_model("zeroi2v_tiny", num_classes=5, frames=16).save_pretrained(tmp_path)
    assert main(["cost", "--model", str(tmp_path), *options]) == 1
    assert "the settings of a saved model cannot be changed" in capsys.readouterr().err
    assert (
        main(["cost", "--model", str(tmp_path), "--clips", "1", "--set", "crops=1", "--json"]) == 0
    )
    assert json.loads(capsys.readouterr().out)["views"] == "16x1x1"


def test_cost_shows_why_a_peer_has_no_merged_column(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["cost", "--strategy", "evl"]) == 0
    text = capsys.readouterr().out
    assert "strategy evl cannot be merged" in text
    assert all(len(line) <= 120 for line in text.splitlines())


def test_cost_prints_a_table_of_the_paper_beside_ours(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["cost", "--table", "5"]) == 0
    rows = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert [
        "ZeroI2V",
        "ViT-B/16",
        "8x1x3",
        "422",
        "/",
        "421.5",
        "28.89",
        "40.08",
        "83",
        "67.7",
    ] in rows
    assert ["UniFormer-B", "32x1x4", "1036", "245.38", "4.24", "82.9", "-"] in rows
    assert main(["cost", "--table", "5", "--json"]) == 0
    last = json.loads(capsys.readouterr().out)["rows"][-1]
    assert last["printed"]["GFLOPs"] == 422
    assert last["counted"]["GFLOPs"] == pytest.approx(421.5, abs=0.05)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--table", "5", "--frames", "8"], "leave the other options out"),
        (["--table", "5", "--classes", "400"], "leave the other options out"),
        (
            ["--set", "train.epochs=3"],
            "--set train.epochs: only settings of [model], [clip] and [views]",
        ),
        (
            ["--set", "split=1"],
            "--set data.split: only settings of [model], [clip] and [views]",
        ),  # the default
        (["--strategy", "evll"], "did you mean 'evl'"),
        (["--set", "framse=8"], "did you mean"),
        (["--strategy", "aim", "--set", "heads=[-1]"], "only spatial heads"),
    ],
)
def test_cost_refuses_what_it_cannot_count(
    options: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["cost", *options]) == 1
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert message in error
    assert error.count("\n") == 1


def test_bench_measures_what_is_named_and_writes_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    saved = tmp_path / "saved"
    model = zeroi2v.create_model("zeroi2v_tiny", num_classes=5, frames=4, pretrained=True)
    model.save_pretrained(saved)
    words = ["bench", "plain", "lora:merged", "--model", str(saved), "--model", f"{saved}:merged"]
    assert (
        main(
            [
                *words,
                "--rounds",
                "3",
                "--warmup",
                "1",
                "--max-batch",
                "2",
                "--json",
                "--out",
                str(tmp_path),
            ]
        )
        == 0
    )
    output = capsys.readouterr()
    found = json.loads(output.out)
    assert "4 rounds instead of 3" in output.err  # four models: four balanced orders
    assert json.loads((tmp_path / "bench.json").read_text()) == found
    assert (tmp_path / "bench.svg").exists()
    assert found.keys() >= {
        "date",
        "machine",
        "versions",
        "seeds",
        "device",
        "dtype",
        "compiled",
        "rounds",
        "warmup",
    }
    assert found["machine"]["threads"] == torch.get_num_threads()
    models = {one["name"]: one for one in found["models"]}
    assert list(models) == ["plain", "lora:merged", str(saved), f"{saved}:merged"]
    assert [one["merged"] for one in models.values()] == [False, True, False, True]
    assert {one["frames"] for one in models.values()} == {4}  # as the saved model has
    merged = model.merge()
    params = [
        sum(parameter.numel() for parameter in one.parameters())
        for one in (merged.tower, merged, model)
    ]
    assert [models[name]["params"] for name in ("plain", f"{saved}:merged", str(saved))] == params
    for one in models.values():
        assert len(one["ms"]) == found["rounds"] == 4
        assert math.isclose(one["latency_ms"]["median"], statistics.median(one["ms"]), abs_tol=1e-3)
        within = statistics.median(
            a / b for a, b in zip(one["ms"], models["plain"]["ms"], strict=True)
        )
        assert math.isclose(one["ratio"]["median"], within, rel_tol=1e-2)
        assert one["weights_mib"] >= 4 * one["params"] / 2**20
        assert one["peak_mib"] > 0
        assert [batch["batch"] for batch in one["throughput"]["tried"]] == [1, 2]


def test_bench_shows_a_table_and_takes_settings_of_the_model(
    capsys: pytest.CaptureFixture[str],
) -> None:
    words = [
        "bench",
        "plain",
        "zeroi2v",
        "evl",
        "--rounds",
        "2",
        "--warmup",
        "1",
        "--max-batch",
        "1",
        "--quiet",
    ]
    settings = [
        "--set",
        "adapter_ratio=0.5",
        "--set",
        "heads=[-1, 1]",
    ]  # a peer takes back what has no meaning for it
    assert main([*words, "--frames", "2", "--dtype", "bf16", *settings]) == 0
    output = capsys.readouterr()
    assert output.err == ""
    assert all(word in output.out for word in ("plain", "zeroi2v", "p95", "clips/s", "MiB", "bf16"))


def only_line(capsys: pytest.CaptureFixture[str]) -> str:
    """The line of an error, the only line on standard error."""
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    return error


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["zeroi2w:merged"], "did you mean 'zeroi2v'"),
        (["plain:merged"], "'plain:merged': expected plain or a strategy"),
        (["plain", "lora", "lora"], "lora is there twice"),
        (["gelu_adapter:merged"], "cannot be merged"),
        (["--model", "missing/run/folder"], "missing/run/folder: no such folder"),
        (["--tower", "vit_base_patch16_223"], "did you mean 'vit_base_patch16_224'"),
        (["--set", "train.epochs=3"], "only settings of [model]"),
        (["--model", "RUN", "--frames", "3"], "add --tower"),
        (["--memory", "0"], "--memory must be above 0 GiB, and finite, got 0.0"),
        (["--memory", "inf"], "and finite, got inf"),
        (["--set", "strategy=lora"], "leave strategy and weights out"),
        (
            ["--out", "/dev/null"],
            "/dev/null/bench.json: cannot be written: /dev/null is no folder; ",
        ),
        (["--memory", "0.0001"], "does not fit into the memory of the cpu"),
        (["--count"], "--device: --count runs no model"),
        (["--batch", "2"], "--batch changes nothing that is timed; add --count"),
        (["--rate", "0"], "--rate changes nothing that is timed; add --count"),
    ],
)
def test_what_bench_cannot_do_is_one_line(
    words: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["bench", *words, "--device", "cpu", "--quiet"]) == 1
    assert message in only_line(capsys)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--rounds", "20"], "--rounds: --count runs no model"),
        (["--max-batch", "4"], "--max-batch: --count runs no model"),
        (["--memory", "0"], "--memory: --count runs no model"),
        (["--compile"], "--compile: --count runs no model"),
        (["--rate", "0"], "--rate must be above 0, and finite, got 0.0"),
        (["--bandwidth", "nan"], "--bandwidth must be above 0, and finite, got nan"),
        (["zeroi2w"], "did you mean 'zeroi2v'"),
        (["--set", "train.epochs=3"], "only settings of [model]"),
        (["--out", "/dev/null"], "/dev/null/count.json: cannot be written"),
    ],
)
def test_what_a_count_cannot_do_is_one_line(
    words: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["bench", *words, "--count", "--quiet"]) == 1
    assert message in only_line(capsys)


def test_bench_counts_without_a_gpu_and_writes_what_it_prints(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    saved = tmp_path / "saved"
    zeroi2v.create_model("zeroi2v_tiny", num_classes=5, frames=4).save_pretrained(saved)
    words = ["bench", "plain", "--model", f"{saved}:merged", "--model", str(saved), "--count"]
    options = ["--dtype", "bf16", "--batch", "2", "--batch", "4", "--batch", "2"]
    assert main([*words, *options, "--out", str(tmp_path), "--json", "--quiet"]) == 0
    output = capsys.readouterr()
    result = json.loads(output.out)
    assert output.err == ""
    assert json.loads((tmp_path / "count.json").read_text()) == result
    assert not (tmp_path / "bench.json").exists()
    assert result["card"]["teraflops"] == 560
    plain, merged, adapted = result["models"]
    for model in result["models"]:
        two, four = model["counts"]
        assert (two["batch"], four["batch"]) == (2, 4)
        assert four["kernels"] == two["kernels"]
        assert four["gmacs"] == pytest.approx(2 * two["gmacs"])
        kernels = [entry["kernels"] for entry in two["by_operation"].values()]
        assert sum(kernels) == two["kernels"]
    assert merged["counts"][0]["gmacs"] == pytest.approx(
        2 * zeroi2v.cost(zeroi2v.load(saved).merge()).gmacs
    )
    products = [model["counts"][0]["gmacs"] for model in (plain, merged, adapted)]
    assert products == sorted(set(products))  # the merged model adds a classifier alone
    assert merged["counts"][0]["kernels"] < adapted["counts"][0]["kernels"]
    assert merged["counts"][0]["gb"] < adapted["counts"][0]["gb"]


def test_bench_shows_a_count_and_what_it_cannot_see(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["bench", "plain", "zeroi2v", "--count", "--quiet", "--rate", "100"]
    assert main([*words, "--bandwidth", "0.9"]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    rows = ("kernels", "GMACs", "least ms", "/ plain", "plain 1 ", "zeroi2v 32 ", "1.000")
    assert all(word in shown for word in rows)
    assert "bytes / 0.9 TB/s, operations / 100 TFLOP/s, and 3 us" in shown
    assert "Not counted: the time that Python takes between two kernels" in shown


@pytest.mark.parametrize("option", ["--bandwidth", "--rate"])
def test_a_faster_card_needs_less_time(option: str, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["bench", "zeroi2v:merged", "--count", "--json", "--quiet", "--batch", "1024"]
    times = []
    for value in ("0.1", "1", "1000000"):
        assert main([*words, option, value]) == 0
        ((counts,),) = (model["counts"] for model in json.loads(capsys.readouterr().out)["models"])
        times.append(counts["least_ms"])
    assert times == sorted(times, reverse=True)
    assert times[0] > 2 * times[1]
