"""Recorded steps on a GPU: they learn what steps as usual learn."""

import pytest
import torch

import survey_code
from survey_code.replay import RecordedStep

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")


@pytest.mark.parametrize(
    ("key", "ratio"),
    [
        ("full", 1),
        ("hashing", 10),
        ("quotient_remainder", 10),
        ("robe", 10),
        ("mde_popularity", 10),
        ("tt_rec", 10),
        ("sttd", 10),
        ("lsq", 4),
        ("deeplight", 4),
        ("autosrh", 4),
        ("pep", 4),
        ("ant", 10),
        ("cafe", 10),
    ],
)
def test_a_replayed_training_learns_the_same(key, ratio):
    found = [
        survey_code.run(
            key, "synthetic", ratio, device="cuda", measure=False,
            settings={"replay": replay, "patience": 2, "epochs": 2},
        ).test["auc"]
        for replay in (True, False)
    ]  # fmt: skip
    # Sums on a GPU have no order of their own.
    assert found[0] == pytest.approx(found[1], abs=2e-3) and found[0] > 0.7


@pytest.mark.parametrize("key", ["full", "hashing", "cafe", "optembed", "lsq"])
def test_a_replayed_plateau_goes_back_to_the_best_weights(key):
    """Weights and moments are written into the memory that the recording reads."""
    found = []
    for replay in (True, False):
        how = {"schedule": "plateau", "decay": 0.3, "drops": 2, "patience": 2}
        run = survey_code.run(
            key, "synthetic", 1 if key == "full" else 4, device="cuda", measure=False,
            settings={"replay": replay, "epochs": 2, **how},
        )  # fmt: skip
        found.append(run.test["auc"])
    assert found[0] == pytest.approx(found[1], abs=2e-3) and found[0] > 0.7


@pytest.mark.parametrize("key", ["uniform", "cigar", "recjpq"])
def test_rankings_replay_too(key):
    found = [
        survey_code.run(
            key, "synthetic-interactions", 4, device="cuda", measure=False,
            settings={"replay": replay},
        ).test["recall@20"]
        for replay in (True, False)
    ]  # fmt: skip
    assert found[0] == pytest.approx(found[1], abs=0.01)


def test_a_step_is_recorded_anew_where_a_weight_was_replaced():
    layer = torch.nn.Linear(3, 1).cuda()
    learnt = []

    def learn(batch):
        learnt.append(None)
        return layer(batch[0]).sum().detach()

    step = RecordedStep(learn, layer)
    ones = (torch.ones(2, 3, device="cuda"),)
    for _ in range(6):
        assert torch.allclose(step(ones), layer(ones[0]).sum())
    assert len(learnt) == 4  # three as usual, one recorded
    layer.weight.data = torch.zeros(1, 3, device="cuda")
    for _ in range(6):
        assert torch.allclose(step(ones), layer(ones[0]).sum())
    assert len(learnt) == 8
    tail = (torch.ones(1, 3, device="cuda"),)
    assert torch.allclose(step(tail), layer(tail[0]).sum()) and len(learnt) == 9


def test_a_step_that_asks_the_gpu_is_an_error():
    layer = torch.nn.Linear(3, 1).cuda()
    step = RecordedStep(lambda batch: layer(batch[0]) * batch[0].sum().item(), layer)
    ones = (torch.ones(2, 3, device="cuda"),)
    with pytest.raises(RuntimeError):
        for _ in range(4):
            step(ones)
