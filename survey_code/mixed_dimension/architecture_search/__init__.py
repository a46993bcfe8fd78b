"""Architecture search: the table's shape is learnt, then a table of that shape.

Each search ends in an array, one width for each field, group or id, and the table
that has these widths is trained anew.
"""

from survey_code.mixed_dimension.architecture_search.autodim import (
    AutoDim as AutoDim,
    AutoDimOptions as AutoDimOptions,
    FieldWidths as FieldWidths,
)
from survey_code.mixed_dimension.architecture_search.autoemb import (
    AutoEmb as AutoEmb,
    AutoEmbOptions as AutoEmbOptions,
    PopularityWidths as PopularityWidths,
)
from survey_code.mixed_dimension.architecture_search.autosrh import (
    AutoSrh as AutoSrh,
    AutoSrhOptions as AutoSrhOptions,
    ColumnMasks as ColumnMasks,
    keep_columns as keep_columns,
)
from survey_code.mixed_dimension.architecture_search.bet import (
    BET as BET,
    BETOptions as BETOptions,
    ProfileSupernet as ProfileSupernet,
    draw_curve as draw_curve,
    draw_profile as draw_profile,
    draw_profiles as draw_profiles,
)
from survey_code.mixed_dimension.architecture_search.bilevel import (
    ChoiceStep as ChoiceStep,
    choice_gradient as choice_gradient,
)
from survey_code.mixed_dimension.architecture_search.esapn import (
    ESAPN as ESAPN,
    ESAPNOptions as ESAPNOptions,
)
from survey_code.mixed_dimension.architecture_search.nis import (
    NIS as NIS,
    BlockSupernet as BlockSupernet,
    NISOptions as NISOptions,
    reinforce as reinforce,
)
from survey_code.mixed_dimension.architecture_search.optembed import (
    MaskedSupernet as MaskedSupernet,
    OptEmbed as OptEmbed,
    OptEmbedOptions as OptEmbedOptions,
    StepThrough as StepThrough,
    estimate_slope as estimate_slope,
    evolve as evolve,
)
from survey_code.mixed_dimension.prefix import (
    PrefixEmbedding as PrefixEmbedding,
    PrefixSupernet as PrefixSupernet,
    cut_to_budget as cut_to_budget,
    prefix_bytes as prefix_bytes,
    prefix_mask as prefix_mask,
)
from survey_code.mixed_dimension.search import (
    choose_within as choose_within,
    cut_by_frequency as cut_by_frequency,
    rank_by_frequency as rank_by_frequency,
)
