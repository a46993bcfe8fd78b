"""Decomposition: a table is a product of smaller ones."""

from survey_code.weight_sharing.decomposition.ant import AnchorEmbedding
from survey_code.weight_sharing.decomposition.low_rank import (
    LowRankEmbedding,
    truncate,
)
from survey_code.weight_sharing.decomposition.mlet import CollapsedEmbedding
from survey_code.weight_sharing.decomposition.sttd import (
    SemiTensorEmbedding,
    semi_tensor_product,
)
from survey_code.weight_sharing.decomposition.trains import (
    TrainEmbedding,
    exact_stds,
    split_columns,
    split_rows,
)
from survey_code.weight_sharing.decomposition.tt_rec import (
    TensorTrainEmbedding,
    decompose,
    train_shapes,
)

__all__ = [
    "AnchorEmbedding",
    "CollapsedEmbedding",
    "LowRankEmbedding",
    "SemiTensorEmbedding",
    "TensorTrainEmbedding",
    "TrainEmbedding",
    "decompose",
    "exact_stds",
    "semi_tensor_product",
    "split_columns",
    "split_rows",
    "train_shapes",
    "truncate",
]
