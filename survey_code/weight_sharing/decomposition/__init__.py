"""Decomposition: a table is a product of smaller ones."""

from survey_code.weight_sharing.decomposition.ant import (
    ANT as ANT,
    ANTOptions as ANTOptions,
)
from survey_code.weight_sharing.decomposition.low_rank import (
    LowRank as LowRank,
    LowRankOptions as LowRankOptions,
    truncate as truncate,
)
from survey_code.weight_sharing.decomposition.mlet import (
    MLET as MLET,
    MLETOptions as MLETOptions,
)
from survey_code.weight_sharing.decomposition.sttd import (
    STTD as STTD,
    STTDOptions as STTDOptions,
    semi_tensor_product as semi_tensor_product,
)
from survey_code.weight_sharing.decomposition.trains import (
    TrainEmbedding as TrainEmbedding,
    divide_columns as divide_columns,
    divide_rows as divide_rows,
    exact_std as exact_std,
    train_shapes as train_shapes,
)
from survey_code.weight_sharing.decomposition.tt_rec import (
    TTRec as TTRec,
    TTRecOptions as TTRecOptions,
    decompose as decompose,
)
