"""The book's contests: which data, which network, and who competes."""

from __future__ import annotations

import dataclasses
from functools import partial

from survey_code.lab.contest import Contest, list_entrants
from survey_code.lab.stream import StreamExperiment
from survey_code.lab.trial import TRIALS, Trial


def until_plateau(trial: Trial) -> Trial:
    """A trial as all of a contest are trained: at a constant rate until validation
    stands still, at three lower ones in turn, and no longer.  Its epochs are those of a
    method's own schedule.
    """
    return trial.adjust(schedule="plateau", decay=0.3, drops=3)


FEWER_NEGATIVES = dataclasses.replace(
    TRIALS["gowalla", "mf"], objective={"loss": "softmax", "negatives": 1024}
)
# How rankings are trained until a plateau; batches and rates are each data set's own.
RANKED = until_plateau(FEWER_NEGATIVES).adjust(
    epochs=20, evaluate_every=4, patience=1, tolerance=1e-2, products="tf32"
)

CONTESTS = {
    contest.name: contest
    for contest in (
        Contest(
            "synthetic", "synthetic",
            until_plateau(TRIALS["synthetic", "dcnv2"].adjust(
                epochs=3, patience=2, tolerance=1e-4, table_learning_rate=1e-2,
            )),
            list_entrants("ctr", 16),
        ),
        Contest(
            "synthetic_large", "synthetic-large",
            until_plateau(TRIALS["synthetic", "dcnv2"].adjust(
                epochs=2, batch_size=4096, patience=1, tolerance=1e-4,
                table_learning_rate=1e-2, precision="float32", products="tf32",
            )),
            list_entrants("ctr", 16), ratios=(2.0, 4.0, 10.0, 30.0, 100.0),
            tuned_on=(0,),
        ),
        Contest(
            "frappe", "frappe",
            until_plateau(TRIALS["frappe", "dcnv2"].adjust(
                epochs=15, patience=2, tolerance=1e-4,
            )),
            list_entrants("ctr", 16), tuned_on=(0,),
        ),
        Contest(
            "gowalla", "gowalla",
            RANKED.adjust(batch_size=16384, learning_rate=2e-2),
            list_entrants("top-n", 64), tuned_on=(0,),
        ),
        Contest(
            "movietweetings", "movietweetings-pairs",
            RANKED.adjust(batch_size=4096, learning_rate=1e-2),
            list_entrants("top-n", 64), tuned_on=(0,),
        ),
        Contest(
            "stream", "movietweetings",
            until_plateau(TRIALS["frappe", "dcnv2"].adjust(
                epochs=6, batch_size=1024, patience=2, tolerance=1e-4,
            )),
            list_entrants("ctr", 16), tuned_on=(0,),
            kind=partial(StreamExperiment, update_epochs=1),
        ),
    )
}  # fmt: skip
