"""How long does a call take? Calls are timed in turn: a drift of the speed falls on all alike."""

from __future__ import annotations

import itertools
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Final

import torch
from torch import Tensor

DRAWS: Final = 2000


def balanced_orders(count: int) -> list[tuple[int, ...]]:
    """Orders in which each call has every place, and follows each other call, equally often.

    These are the designs of Williams (1949) for `count` calls. There are `count` orders where
    `count` is even, and twice as many where it is odd: each order is then followed by its reverse.
    """
    zigzag = [
        (place + 1) // 2 if place % 2 else -(place // 2) for place in range(count)
    ]  # 0, 1, -1, 2, -2 ...
    rows = [tuple((step + shift) % count for step in zigzag) for shift in range(count)]
    return [order for row in rows for order in ((row, row[::-1]) if count % 2 else (row,))]


def timed_rounds(
    calls: Mapping[str, Callable[[], object]], *, rounds: int, warmup: int = 3
) -> Iterator[dict[str, float]]:
    """The milliseconds of each call, round by round, after `warmup` rounds that are left out.

    Every round makes every call once. The rounds go through the balanced orders in turn.
    """
    names = list(calls)
    orders = itertools.cycle(balanced_orders(len(names)))
    for number, order in enumerate(itertools.islice(orders, warmup + rounds)):
        times = {}
        for name in (names[index] for index in order):
            _synchronize()
            start = time.perf_counter()
            calls[name]()
            _synchronize()
            times[name] = (time.perf_counter() - start) * 1000
        if number >= warmup:
            yield times


def interleave(
    calls: Mapping[str, Callable[[], object]], *, rounds: int, warmup: int = 3
) -> dict[str, list[float]]:
    """The milliseconds of `timed_rounds`, as one series for each call."""
    timed = list(timed_rounds(calls, rounds=rounds, warmup=warmup))
    return {name: [times[name] for times in timed] for name in calls}


def ratios(times: Mapping[str, list[float]], over: str, under: str) -> list[float]:
    """For every round, the time of one call divided by the time of another call in the round."""
    return [a / b for a, b in zip(times[over], times[under], strict=True)]


def median_ratio(times: Mapping[str, list[float]], over: str, under: str) -> float:
    """The median of `ratios`."""
    return statistics.median(ratios(times, over, under))


def fast_ratio(times: Mapping[str, list[float]], over: str, under: str) -> dict[str, float]:
    """The ratio of two calls by their faster rounds, the interval of this ratio, and the median.

    `fast`: the mean of the faster half of the times of one call, divided by the same mean of the
    other call. Other work on the machine makes a call slower and never faster, so the faster
    half moves less from run to run than a median does. `low` and `high`: the middle 95 % of `fast`
    over as many rounds, drawn anew from the measured rounds (bootstrap). `median`: the median of
    the ratios round by round.
    """
    series = torch.tensor([times[over], times[under]], dtype=torch.double)  # (2, N rounds)
    count = series.shape[1]
    draws = torch.randint(count, (DRAWS, count), generator=torch.Generator().manual_seed(0))

    def fast(rounds: Tensor) -> Tensor:  # (2, ..., N) -> (...)
        means = rounds.sort(-1).values[..., : (count + 1) // 2].mean(-1)
        return means[0] / means[1]

    bounds = torch.tensor([0.025, 0.975], dtype=torch.double)
    low, high = fast(series[:, draws]).quantile(bounds).tolist()
    return {
        "fast": fast(series).item(),
        "low": low,
        "high": high,
        "median": median_ratio(times, over, under),
    }


def spread(series: Sequence[float]) -> dict[str, float]:
    """Median, quartiles and 95th percentile of a series, interpolated between neighbours."""
    cuts = statistics.quantiles(
        series if len(series) > 1 else [*series, *series], n=20, method="inclusive"
    )
    return {"median": cuts[9], "q1": cuts[4], "q3": cuts[14], "p95": cuts[18]}


def _synchronize() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
