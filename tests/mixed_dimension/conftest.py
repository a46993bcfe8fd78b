"""One small world for searches and pruning."""

import pytest
from small_world import TRIAL

from survey_code.data.synthetic import make_clicks
from survey_code.lab.task import make_task


@pytest.fixture(autouse=True, scope="module")
def alone(one_thread):
    """Everything here trains."""


@pytest.fixture(scope="module")
def data():
    return make_clicks(field_sizes=(900, 400, 100, 10), rows=(4000, 1000, 1000))


@pytest.fixture(scope="module")
def task(data):
    return make_task(data, TRIAL, seed=1)
