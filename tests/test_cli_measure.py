"""What the commands that measure promise."""

from __future__ import annotations

import json
import math
import statistics
from pathlib import Path

import pytest
import torch

import zeroi2v
from zeroi2v.cli import main


def test_towers_lists_what_the_library_lists(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["towers", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == zeroi2v.supported_towers()
    assert main(["towers", "--partly", "--quiet"]) == 0
    assert capsys.readouterr().out.split() == zeroi2v.partly_covered_towers()


def test_towers_takes_a_pattern_and_names_the_nearest_where_none_matches(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["towers", "vit_base_patch16_clip*", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert "vit_base_patch16_clip_quickgelu_224" in found
    assert all(name.startswith("vit_base_patch16_clip") for name in found)
    assert main(["towers", "vit_base_patch16_cli_224"]) == 1
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert "did you mean 'vit_base_patch16_clip_224'" in error


def test_bench_measures_what_is_named_and_writes_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    saved = tmp_path / "saved"
    model = zeroi2v.create_model("zeroi2v_tiny", num_classes=5, frames=4, pretrained=True)
    model.save_pretrained(saved)
    words = ["bench", "plain", "lora:merged", "--model", str(saved), "--model", f"{saved}:merged"]
    assert main([*words, "--rounds", "3", "--warmup", "1", "--max-batch", "2", "--json", "--out", str(tmp_path)]) == 0
    output = capsys.readouterr()
    found = json.loads(output.out)
    assert "4 rounds instead of 3" in output.err  # four models: four balanced orders
    assert json.loads((tmp_path / "bench.json").read_text()) == found
    assert (tmp_path / "bench.svg").exists()
    assert found.keys() >= {"date", "machine", "versions", "seeds", "device", "dtype", "compiled", "rounds", "warmup"}
    assert found["machine"]["threads"] == torch.get_num_threads()
    models = {one["name"]: one for one in found["models"]}
    assert list(models) == ["plain", "lora:merged", str(saved), f"{saved}:merged"]
    assert [one["merged"] for one in models.values()] == [False, True, False, True]
    assert {one["frames"] for one in models.values()} == {4}  # as the saved model has
    merged = model.merge()
    params = [sum(parameter.numel() for parameter in one.parameters()) for one in (merged.tower, merged, model)]
    assert [models[name]["params"] for name in ("plain", f"{saved}:merged", str(saved))] == params
    for one in models.values():
        assert len(one["ms"]) == found["rounds"] == 4
        assert math.isclose(one["latency_ms"]["median"], statistics.median(one["ms"]), abs_tol=1e-3)
        within = statistics.median(a / b for a, b in zip(one["ms"], models["plain"]["ms"], strict=True))
        assert math.isclose(one["ratio"]["median"], within, rel_tol=1e-2)
        assert one["weights_mib"] >= 4 * one["params"] / 2**20
        assert one["peak_mib"] > 0
        assert [batch["batch"] for batch in one["throughput"]["tried"]] == [1, 2]


def test_bench_shows_a_table_and_takes_settings_of_the_model(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["bench", "plain", "zeroi2v", "--rounds", "2", "--warmup", "1", "--max-batch", "1", "--quiet"]
    assert main([*words, "--frames", "2", "--dtype", "bf16", "--set", "adapter_ratio=0.5"]) == 0
    output = capsys.readouterr()
    assert output.err == ""
    assert all(word in output.out for word in ("plain", "zeroi2v", "p95", "clips/s", "MiB", "bf16"))


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
        (["--memory", "0"], "--memory must be above 0 GiB, got 0.0"),
        (["--memory", "0.0001"], "does not fit into the memory of the cpu"),
    ],
)
def test_what_bench_cannot_do_is_one_line(words: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", *words, "--device", "cpu", "--quiet"]) == 1
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    assert message in error
