"""One small world for searches and pruning."""

import pytest
import torch
from small_world import TRIAL

from survey_code.data.synthetic import make_clicks
from survey_code.lab.task import make_task


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def data():
    return make_clicks(field_sizes=(900, 400, 100, 10), rows=(4000, 1000, 1000))


@pytest.fixture(scope="module")
def task(data):
    return make_task(data, TRIAL, seed=1)
