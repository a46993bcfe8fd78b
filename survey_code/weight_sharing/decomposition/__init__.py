"""Decomposition: a table is a product of smaller ones."""

from survey_code.weight_sharing.decomposition.ant import ANT
from survey_code.weight_sharing.decomposition.low_rank import (
    LowRank,
    truncate,
)
from survey_code.weight_sharing.decomposition.mlet import MLET
from survey_code.weight_sharing.decomposition.sttd import (
    STTD,
    semi_tensor_product,
)
from survey_code.weight_sharing.decomposition.trains import (
    TrainEmbedding,
    exact_stds,
    split_columns,
    split_rows,
)
from survey_code.weight_sharing.decomposition.tt_rec import (
    TTRec,
    decompose,
    train_shapes,
)

__all__ = [
    "ANT",
    "MLET",
    "STTD",
    "LowRank",
    "TTRec",
    "TrainEmbedding",
    "decompose",
    "exact_stds",
    "semi_tensor_product",
    "split_columns",
    "split_rows",
    "train_shapes",
    "truncate",
]
