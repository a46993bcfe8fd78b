"""Architecture search: the table's shape is learnt, then a table of that shape.

Each search ends in an array, one width for each field, group or id, and the table
that has these widths is trained anew.
"""

from survey_code.mixed_dimension.architecture_search.autodim import (
    AutoDim,
    FieldWidths,
)
from survey_code.mixed_dimension.architecture_search.autoemb import (
    AutoEmb,
    PopularityWidths,
)
from survey_code.mixed_dimension.architecture_search.autosrh import (
    AutoSrh,
    ColumnMasks,
    keep_columns,
)
from survey_code.mixed_dimension.architecture_search.bet import (
    BET,
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
from survey_code.mixed_dimension.architecture_search.esapn import ESAPN
from survey_code.mixed_dimension.architecture_search.nis import (
    NIS,
    BlockSupernet,
    reinforce,
)
from survey_code.mixed_dimension.architecture_search.optembed import (
    MaskedSupernet,
    OptEmbed,
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
    "BET",
    "ESAPN",
    "NIS",
    "AutoDim",
    "AutoEmb",
    "AutoSrh",
    "BlockSupernet",
    "ChoiceStep",
    "ColumnMasks",
    "FieldWidths",
    "MaskedSupernet",
    "OptEmbed",
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
