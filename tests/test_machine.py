"""A process belongs to a group only if a launcher started one, whatever else a cluster sets."""

from __future__ import annotations

import pytest

from zeroi2v.machine import GROUP_VARIABLES, announced_group, started_group, worker_count

STARTED = {
    "RANK": "1",
    "LOCAL_RANK": "1",
    "WORLD_SIZE": "4",
    "MASTER_ADDR": "node1",
    "MASTER_PORT": "29500",
}


def set_only(monkeypatch: pytest.MonkeyPatch, variables: dict[str, str]) -> None:
    for name in GROUP_VARIABLES:
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)


def test_a_launcher_sets_all_variables_of_a_group(monkeypatch: pytest.MonkeyPatch) -> None:
    set_only(monkeypatch, STARTED)
    assert started_group() == (1, 4)
    assert announced_group() == ""
    for missing in STARTED:
        set_only(monkeypatch, {**STARTED, missing: ""})
        assert started_group() is None


@pytest.mark.parametrize(
    ("variables", "announced"),
    [
        ({}, ""),
        ({"RANK": "1"}, "RANK=1"),
        ({"WORLD_SIZE": "2"}, "WORLD_SIZE=2"),
        ({"RANK": "0", "WORLD_SIZE": "2"}, "RANK=0, WORLD_SIZE=2"),
        ({"RANK": "0", "WORLD_SIZE": "1"}, ""),
        ({"RANK": "first", "WORLD_SIZE": "many"}, ""),
        ({**STARTED, "RANK": "0", "WORLD_SIZE": "1"}, ""),
        ({**STARTED, "RANK": "4"}, "RANK=4, WORLD_SIZE=4"),
        ({**STARTED, "MASTER_PORT": "none"}, "RANK=1, WORLD_SIZE=4"),
        ({"SLURM_PROCID": "1", "SLURM_NTASKS": "2"}, ""),
        ({"OMPI_COMM_WORLD_RANK": "1", "OMPI_COMM_WORLD_SIZE": "2", "PMI_RANK": "1"}, ""),
    ],
)
def test_other_variables_start_no_group(
    variables: dict[str, str], announced: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    set_only(monkeypatch, variables)
    assert started_group() is None
    assert announced_group() == announced


def test_the_automatic_number_of_workers_leaves_cores_free(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for cores, beside_one, beside_none in ((1, 0, 1), (4, 3, 4), (64, 8, 8), (None, 0, 1)):
        monkeypatch.setattr("os.cpu_count", lambda cores=cores: cores)
        assert worker_count(-1) == beside_one
        assert worker_count(-1, cores_kept=0) == beside_none
    assert [worker_count(asked) for asked in (0, 3, 99)] == [0, 3, 99]
