"""Architecture search: the table's shape is learnt, then a table of that shape.

Each search ends in an array, one width for each field, group or id, and the table
that has these widths is trained anew.
"""

from survey_code.mixed_dimension.architecture_search.autodim import (
    FieldWidthEmbedding,
    FieldWidths,
)
from survey_code.mixed_dimension.architecture_search.autoemb import (
    PopularityEmbedding,
    PopularityWidths,
)
from survey_code.mixed_dimension.architecture_search.autosrh import (
    ColumnEmbedding,
    ColumnMasks,
    keep_columns,
)
from survey_code.mixed_dimension.architecture_search.bet import (
    BudgetedSampling,
    ProfileSupernet,
    draw_curve,
    draw_profile,
)
from survey_code.mixed_dimension.architecture_search.bilevel import (
    ChoiceStep,
    choice_gradient,
)
from survey_code.mixed_dimension.architecture_search.choices import (
    choose_within,
    cut_by_frequency,
    rank_by_frequency,
)
from survey_code.mixed_dimension.architecture_search.esapn import GrowingEmbedding
from survey_code.mixed_dimension.architecture_search.nis import (
    BlockEmbedding,
    BlockSupernet,
    reinforce,
)
from survey_code.mixed_dimension.architecture_search.optembed import (
    EvolvedEmbedding,
    MaskedSupernet,
    StepThrough,
    estimate_slope,
    evolve,
)
from survey_code.mixed_dimension.architecture_search.prefix import (
    PrefixEmbedding,
    PrefixSupernet,
    cut_to_budget,
    prefix_bytes,
    prefix_mask,
)

__all__ = [
    "BlockEmbedding",
    "BlockSupernet",
    "BudgetedSampling",
    "ChoiceStep",
    "ColumnEmbedding",
    "ColumnMasks",
    "EvolvedEmbedding",
    "FieldWidthEmbedding",
    "FieldWidths",
    "GrowingEmbedding",
    "MaskedSupernet",
    "PopularityEmbedding",
    "PopularityWidths",
    "PrefixEmbedding",
    "PrefixSupernet",
    "ProfileSupernet",
    "StepThrough",
    "choice_gradient",
    "choose_within",
    "cut_by_frequency",
    "cut_to_budget",
    "draw_curve",
    "draw_profile",
    "estimate_slope",
    "evolve",
    "keep_columns",
    "prefix_bytes",
    "prefix_mask",
    "rank_by_frequency",
    "reinforce",
]
