"""Ids that training never saw: what a table makes of them, and what its mean would."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from survey_code.data.tasks import ClickData, DataSet
from survey_code.embedding import Network, decode_layout
from survey_code.lab.experiment import Experiment
from survey_code.lab.task import ClickTask
from survey_code.layouts import DenseLayout, Layout
from survey_code.spec import TableSpec


def fill_unseen(layout: Layout, spec: TableSpec) -> DenseLayout:
    """A table's rows, but for ids that no training row shows the mean of their field.

    Parameters
    ----------
    layout : Layout
    spec : TableSpec
        Its counts weigh the rows of a field, and say who was never seen.  Of a field
        without reads all rows weigh alike.

    Returns
    -------
    DenseLayout
        float32 of shape (num_embeddings, embedding_dim).

    Raises
    ------
    ValueError
        If the layout and the spec are of different tables.
    """
    shape = (spec.num_embeddings, spec.embedding_dim)
    if (layout.num_embeddings, layout.embedding_dim) != shape:
        raise ValueError(
            f"the spec is of a table of {shape[0]} x {shape[1]}, got a layout of "
            f"{layout.num_embeddings} x {layout.embedding_dim}"
        )
    rows = decode_layout(layout)
    for start, stop in pairwise(spec.field_starts.tolist()):
        own, reads = rows[start:stop], spec.train_counts[start:stop]
        unseen = reads == 0
        weights = unseen.astype(np.int64) if unseen.all() else reads
        own[unseen] = np.average(own.astype(np.float64), axis=0, weights=weights)
    return DenseLayout(rows)


class UnseenTask(ClickTask):
    """Predict clicks, and say apart how well for rows of ids that training never saw.

    Raises
    ------
    ValueError
        At the test, if no row of it shows such an id.
    """

    def test(self, network: Network, layout: Layout) -> dict[str, float]:
        """AUC and log-loss on the test rows; beside them ``"auc_seen"`` and
        ``"auc_unseen"``, of rows without and with an unseen id, and
        ``"auc_unseen_mean"``, where such ids have the mean row of their field.
        """
        if not self.data.shows_unseen(self.data.test).any():
            raise ValueError(
                f"all ids in the test rows of {self.data.name} were seen in training"
            )
        found = self.test_apart(network, layout)
        mean = self.test_apart(network, fill_unseen(layout, self.spec))
        return {
            **super().test(network, layout),
            "auc_seen": found["seen"]["auc"],
            "auc_unseen": found["unseen"]["auc"],
            "auc_unseen_mean": mean["unseen"]["auc"],
        }


@dataclass(frozen=True)
class UnseenExperiment(Experiment):
    """An experiment whose test looks at unseen ids apart; see `UnseenTask`.

    Parameters
    ----------
    method, options, data, trial, ratio, seed
        Of `Experiment`; the data set is one of clicks.
    """

    def _open_task(self, data: DataSet) -> UnseenTask:
        if not isinstance(data, ClickData):
            raise ValueError(f"unseen ids are looked at in clicks, not in {data.name}")
        return UnseenTask(data, self.trial, self.seed)
