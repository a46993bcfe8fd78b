"""Steps that a GPU records: what tables must keep to, and that digits stay."""

import torch

from survey_code.baselines import DenseTable
from survey_code.catalog import AFTER, methods
from survey_code.lab.experiment import Experiment
from survey_code.replay import each_once, is_recording, list_addresses


def test_most_methods_can_be_recorded():
    """So that a fair comparison of all of them takes hours and not days."""
    assert not is_recording()
    # Those that compress after training share the full table.
    alike = [m.key for m in methods() if m.stage == AFTER or m.load().steady]
    assert len(alike) >= 40
    assert "cafe" not in alike and "dhe" not in alike  # their shapes follow from ids


def test_a_class_that_changes_its_step_says_so_again():
    class Other(DenseTable):
        def embed(self, ids):
            return super().embed(ids)

    class Named(DenseTable):
        """Nothing new in a step."""

    assert DenseTable.steady and Named.steady and not Other.steady


def test_ids_each_once():
    ids, places = each_once(torch.tensor([[5, 2], [5, 9]]))
    assert ids.tolist() == [2, 5, 9] and places.tolist() == [[1, 0], [1, 2]]


def test_addresses_are_those_of_weights_and_buffers():
    table = torch.nn.BatchNorm1d(2)
    held = [*table.parameters(), *table.buffers()]
    assert list_addresses(table) == [part.data_ptr() for part in held]


def test_the_switch_changes_no_result():
    asked = [
        Experiment.of("full", "synthetic", settings={"replay": replay})
        for replay in (True, False)
    ]
    assert asked[0].key == asked[1].key
