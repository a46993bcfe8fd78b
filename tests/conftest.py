"""What every test run shares."""

from __future__ import annotations

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

hypothesis.settings.register_profile(
    "repeatable", derandomize=True, deadline=None, database=None
)
hypothesis.settings.load_profile("repeatable")

DATA = "SURVEY_CODE_DATA"


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of real data; a test that asks for it is skipped without one."""
    if not os.environ.get(DATA):
        pytest.skip(f"{DATA} is not set: no real data")
    return Path(os.environ[DATA])


def refuse_skip(report: Any) -> None:
    """Turn a skip for want of real data into a failure where the data is there."""
    if not report.skipped or not Path(os.environ.get(DATA) or "/nowhere").is_dir():
        return
    reason = report.longrepr
    reason = str(reason[2]) if isinstance(reason, tuple) else str(reason)
    if DATA in reason:
        report.outcome = "failed"
        report.longrepr = (
            f"{DATA} is {os.environ[DATA]}, a folder, and still this was skipped: "
            f"{reason}"
        )


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
