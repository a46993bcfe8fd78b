"""How long a look-up takes: median and 99th percentile, warm and synchronised."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
import pandas as pd

from survey_code.layouts import Layout

BATCHES = (1, 256, 8192)


def measure_lookup(
    layout: Layout,
    batches: Sequence[int] = BATCHES,
    calls: int = 200,
    warm_up: int = 20,
    seed: int = 0,
) -> pd.DataFrame:
    """Time `layout.lookup` on uniform random ids, fresh for every call.

    Parameters
    ----------
    layout : Layout
        On the CPU, or on a GPU after ``to_gpu()``.
    batches : sequence of int
        Ids per call.
    calls, warm_up : int
        Timed calls, and calls before them.
    seed : int

    Returns
    -------
    DataFrame
        Indexed by ``batch``; columns ``p50_us`` and ``p99_us`` in microseconds
        per call, and ``rows_per_s`` at the median.
    """
    rng = np.random.default_rng(seed)
    rows = []
    for batch in batches:
        ids = rng.integers(0, layout.num_embeddings, size=(warm_up + calls, batch))
        wait: Callable[[], object] = lambda: None  # noqa: E731
        if layout.on_gpu:
            from survey_code.kernels.cuda import load_cupy

            cupy = load_cupy()
            ids, wait = cupy.asarray(ids), cupy.cuda.Device().synchronize
        p50, p99 = time_calls(layout.lookup, ids, wait, warm_up)
        rows.append([batch, p50, p99, 1e6 * batch / p50])
    columns = ["batch", "p50_us", "p99_us", "rows_per_s"]
    return pd.DataFrame(rows, columns=columns).set_index("batch")


def time_calls(
    call: Callable[[Any], object],
    batches: Iterable[Any],
    wait: Callable[[], object],
    warm_up: int,
) -> tuple[float, float]:
    """Median and 99th percentile of calls, one for each batch, in microseconds.

    Parameters
    ----------
    call : callable
    batches : iterable
        What each call is given.
    wait : callable
        Returns when all that was asked of a GPU is done.
    warm_up : int
        Calls at first that are not counted.
    """
    seconds = []
    for batch in batches:
        wait()
        start = time.perf_counter()
        call(batch)
        wait()
        seconds.append(time.perf_counter() - start)
    p50, p99 = np.percentile(seconds[warm_up:], [50, 99])
    return 1e6 * float(p50), 1e6 * float(p99)
