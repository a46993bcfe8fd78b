"""Kernels start one at a time, patiently, and again where one does not answer.

On a busy machine two kernels that load torch at once can each take longer than the
start of a kernel may; and a chapter without a kernel fails in all its cells.
"""

from __future__ import annotations

import os
import queue
import tempfile
from pathlib import Path
from typing import Any

import nbval.plugin
import pytest
from filelock import FileLock
from nbval.kernel import RunningKernel

STARTS = 3
OUTPUT_SECONDS = 60  # for what a finished cell printed to arrive
# One lock a user; on Windows every user has a temporary folder of their own.
USER = os.getuid() if hasattr(os, "getuid") else ""
LOCK = Path(tempfile.gettempdir()) / f"survey_code_kernels_{USER}.lock"


class PatientKernel(RunningKernel):
    """A kernel that is started while no other is, up to three times."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        with FileLock(LOCK):
            for start in range(1, STARTS + 1):
                try:
                    return super().__init__(*args, **kwargs)
                except (RuntimeError, queue.Empty):
                    if self.is_alive():
                        self.stop()
                    if start == STARTS:
                        raise


nbval.plugin.RunningKernel = PatientKernel


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Give every cell's output time to arrive."""
    for item in items:
        if hasattr(item, "output_timeout"):
            item.output_timeout = OUTPUT_SECONDS
