"""The way of a run through the package: down, room by room, and never back up."""

import sys
from pathlib import Path

import pytest

import survey_code
from survey_code.data.synthetic import make_clicks
from survey_code.lab import Experiment, Trial
from survey_code.training import TrainingSettings

PACKAGE = Path(survey_code.__file__).parent
CLICKS = Trial(
    "dcnv2", 8, TrainingSettings(epochs=2, batch_size=200, patience=1),
    {"hidden": (4,), "cross_layers": 1},
)  # fmt: skip
RANKING = Trial("mf", 8, TrainingSettings(epochs=2, batch_size=100))


def room(frame):
    """The package's folder or module that a frame belongs to, or None."""
    path = Path(frame.f_code.co_filename)
    if PACKAGE not in path.parents:
        return None
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def follow(call):
    """Calls into the lab from below it, and the lab's functions in their order."""
    climbs, visited = [], []

    def note(frame, event, _):
        if event != "call" or room(frame) != "lab":
            return
        name = f"{Path(frame.f_code.co_filename).stem}.{frame.f_code.co_name}"
        visited.append(name)
        if name in METER:
            return
        above = frame.f_back
        while above is not None and room(above) in (None, "lab"):
            if room(above) == "lab":
                return
            above = above.f_back
        if above is not None:
            climbs.append((room(above), name))

    sys.setprofile(note)
    try:
        call()
    finally:
        sys.setprofile(None)
    return climbs, visited


@pytest.fixture(scope="module")
def clicks():
    return make_clicks(field_sizes=(50, 30, 20), rows=(600, 200, 200))


pytestmark = pytest.mark.usefixtures("one_thread")

# Torch asks the meter of memory at every operation, Python when a tensor goes; and a
# search asks for the loss that it was handed.
METER = ("memory.__torch_dispatch__", "memory._release", "memory.loss")

STEPS = ("plan", "search", "learn", "validate", "for_testing", "test", "measure",
         "report")  # fmt: skip


@pytest.mark.parametrize("key", ["hashing", "rowwise", "pep", "nis", "optembed"])
@pytest.mark.parametrize("kind", ["clicks", "pairs"])
def test_the_way_leads_down_only(key, kind, request):
    trial = CLICKS if kind == "clicks" else RANKING
    data = request.getfixturevalue(kind)
    one = Experiment.of(key, data, 2, 1, trial=trial)
    climbs, visited = follow(one.run)
    assert climbs == []
    places = [
        next(k for k, name in enumerate(visited) if name.split(".")[1] == step)
        for step in STEPS
    ]
    assert places == sorted(places)
    assert sum(name == "experiment.run" for name in visited) == 1
    # Trained once by the search, once for the hold-out, and once on all pairs.
    trainings = sum(name == "task.train" for name in visited)
    searches = key in ("pep", "nis", "optembed")
    if key != "rowwise":
        assert trainings == 1 + searches + (kind == "pairs")


def test_a_method_of_its_own_way_asks_its_task(pairs):
    """DCF follows no gradients: through `Task` it asks for a network, no more."""
    one = Experiment.of("dcf", pairs, 2, 1, trial=RANKING, rounds=1)
    climbs, _ = follow(lambda: one.run(measure=False))
    assert {name for _, name in climbs} <= {"task.surround", "task.build_network"}
