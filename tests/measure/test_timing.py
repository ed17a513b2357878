"""Are calls timed in balanced orders, and are the statistics of their times what they are named?"""

from __future__ import annotations

import itertools
import math
import statistics
from collections import Counter
from collections.abc import Callable

import pytest
import torch

from tests.measure.conftest import Clock
from zeroi2v.measure.timing import balanced_orders, fast_ratio, interleave, ratios, spread


@pytest.mark.parametrize("count", range(1, 10))
def test_each_has_every_place_and_follows_each_other_equally_often(count: int) -> None:
    orders = balanced_orders(count)
    assert all(sorted(order) == list(range(count)) for order in orders)
    places = Counter((place, call) for order in orders for place, call in enumerate(order))
    assert set(places.values()) == {len(orders) / count}
    assert len(places) == count**2
    followers = Counter(pair for order in orders for pair in itertools.pairwise(order))
    assert len(followers) == count * (count - 1)
    assert len(set(followers.values())) <= 1


def test_rounds_are_timed_in_those_orders_after_the_warm_up(clock: Clock) -> None:
    calls: list[str] = []
    seconds = {"a": 1.0, "b": 2.0, "c": 4.0}

    def call(name: str) -> Callable[[], None]:
        def run() -> None:
            calls.append(name)
            slower = 100 if len(calls) <= 3 else len(calls)  # in the warm-up; then ever slower
            clock.spend(seconds[name] * slower)

        return run

    times = interleave({name: call(name) for name in seconds}, rounds=6, warmup=1)
    orders = [
        tuple("abc".index(name) for name in calls[start : start + 3]) for start in range(0, 21, 3)
    ]
    assert sorted(orders[1:]) == sorted(balanced_orders(3))
    counts = {
        name: [count for count, called in enumerate(calls, 1) if called == name and count > 3]
        for name in seconds
    }
    assert times == {
        name: [seconds[name] * 1000 * count for count in counts[name]] for name in seconds
    }
    assert ratios(times, "b", "a") == [
        2 * b / a for b, a in zip(counts["b"], counts["a"], strict=True)
    ]


def test_the_ratio_of_faster_halves_does_not_hear_of_disturbed_rounds() -> None:
    quiet = {"one": [30.0, 32.0, 31.0, 33.0], "other": [20.0, 24.0, 21.0, 22.0]}
    ratio = fast_ratio(quiet, "one", "other")
    assert math.isclose(ratio["fast"], (30 + 31) / (20 + 21))
    assert ratio["low"] < ratio["fast"] < ratio["high"]
    assert ratio["median"] == statistics.median([30 / 20, 32 / 24, 31 / 21, 33 / 22])
    disturbed = fast_ratio({**quiet, "one": [30.0, 90.0, 31.0, 500.0]}, "one", "other")
    assert disturbed["fast"] == ratio["fast"]
    assert set(fast_ratio({"one": [6.0], "other": [4.0]}, "one", "other").values()) == {1.5}
    odd = fast_ratio({"one": [3.0, 9.0, 1.0], "other": [2.0, 4.0, 8.0]}, "one", "other")
    assert odd["fast"] == (1 + 3) / (2 + 4)


def test_the_interval_of_a_ratio_holds_the_ratio_as_often_as_it_says() -> None:
    """Two calls of the same speed, 40 rounds of noise, 300 times."""
    generator = torch.Generator().manual_seed(0)
    held = 0
    for _ in range(300):
        noise = torch.rand(2, 40, dtype=torch.double, generator=generator) + 9
        ratio = fast_ratio({"one": noise[0].tolist(), "other": noise[1].tolist()}, "one", "other")
        held += ratio["low"] <= 1 <= ratio["high"]
    assert 0.88 * 300 <= held <= 0.99 * 300


def test_median_quartiles_and_percentile_are_those_of_torch() -> None:
    series = torch.rand(31, dtype=torch.double, generator=torch.Generator().manual_seed(0))
    figures = spread(series.tolist())
    for name, share in {"q1": 0.25, "median": 0.5, "q3": 0.75, "p95": 0.95}.items():
        assert math.isclose(figures[name], series.quantile(share).item()), name
    assert set(spread([3.0]).values()) == {3.0}
