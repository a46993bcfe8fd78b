"""What every test run shares."""

from __future__ import annotations

import gc
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

# Two test processes on two cores; must come before NumPy and torch.
for _name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ.setdefault(_name, "1")
os.environ.setdefault("MPLBACKEND", "agg")

import hypothesis  # noqa: E402
import pytest  # noqa: E402

# Nothing depends on how fast the machine is.
hypothesis.settings.register_profile(
    "repeatable",
    derandomize=True,
    deadline=None,
    database=None,
    suppress_health_check=[hypothesis.HealthCheck.too_slow],
)
hypothesis.settings.load_profile("repeatable")

# `make fuzz`: other examples in every run, and so many times as many.
FUZZ = 20
hypothesis.settings.register_profile(
    "fuzz",
    hypothesis.settings.get_profile("repeatable"),
    derandomize=False,
    max_examples=100 * FUZZ,
    print_blob=True,
)

DATA = "SURVEY_CODE_DATA"


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of real data; a test that asks for it is skipped without one."""
    if not os.environ.get(DATA):
        pytest.skip(f"{DATA} is not set: no real data")
    return Path(os.environ[DATA])


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """Networks as small as a test's wait for a second thread more than it helps."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.hookimpl(tryfirst=True)
def pytest_sessionstart(session: Any) -> None:
    """Catch no log records: nothing here logs, and preparing torch's forty loggers
    takes a millisecond a test, of ten thousand tests."""
    plugins = session.config.pluginmanager
    if plugins.has_plugin("logging-plugin"):
        plugins.unregister(name="logging-plugin")


def pytest_collection_modifyitems(config: Any, items: list[Any]) -> None:
    """Under ``make fuzz``, tests that number their own examples try more as well."""
    if config.getoption("hypothesis_profile", None) != "fuzz":
        return
    fuzz = hypothesis.settings.get_profile("fuzz")
    for test in {item.function for item in items if hasattr(item, "function")}:
        own = getattr(test, "_hypothesis_internal_use_settings", fuzz)
        if own.max_examples != fuzz.max_examples:
            many = hypothesis.settings(fuzz, max_examples=FUZZ * own.max_examples)
            test._hypothesis_internal_use_settings = many


def pytest_collection_finish() -> None:
    """Leave what was collected, millions of objects, out of collecting garbage."""
    gc.freeze()


def refuse_skip(report: Any) -> None:
    """Turn a skip for want of what is there, or must be, into a failure.

    Real data is there if ``SURVEY_CODE_DATA`` names a folder; programs must be that
    ``SURVEY_CODE_REQUIRES`` names (in continuous integration).
    """
    if not report.skipped:
        return
    reason = report.longrepr
    reason = str(reason[2]) if isinstance(reason, tuple) else str(reason)
    wanted = os.environ.get("SURVEY_CODE_REQUIRES", "").split()
    missing = [name for name in wanted if name in reason]
    if Path(os.environ.get(DATA) or "/nowhere").is_dir() and DATA in reason:
        why = f"{DATA} is {os.environ[DATA]}, a folder"
    elif missing:
        why = f"SURVEY_CODE_REQUIRES names {missing[0]}"
    else:
        return
    report.outcome = "failed"
    report.longrepr = f"{why}, and still this was skipped: {reason}"


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_makereport(item: Any, call: Any) -> Iterator[Any]:
    """Look at each test."""
    report = yield
    refuse_skip(report)
    return report


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_make_collect_report(collector: Any) -> Iterator[Any]:
    """Look at each module, which can skip as a whole."""
    report = yield
    refuse_skip(report)
    return report
