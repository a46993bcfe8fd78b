"""Pruning: numbers that are not needed become zeros, and zeros are not stored.

Again and again while training runs (DeepLight), or found by a first training and then
trained anew: the largest numbers (magnitude, which cuts trained tables too), single
numbers (PEP), columns of a field (SSEDS), the tails of rows (AMTL), whole rows (OptFS).
Or cut once at the end, by what each number gives the trained network (Shaver).
"""

from survey_code.mixed_dimension.pruning.amtl import (
    AMTL as AMTL,
    AMTLOptions as AMTLOptions,
    TwinMasks as TwinMasks,
    choose_hard as choose_hard,
    count_numbers as count_numbers,
    keep_likeliest as keep_likeliest,
    prefix_of as prefix_of,
    share_out as share_out,
)
from survey_code.mixed_dimension.pruning.deeplight import (
    DeepLight as DeepLight,
    DeepLightOptions as DeepLightOptions,
    rescale_constant as rescale_constant,
    scheduled_sparsity as scheduled_sparsity,
)
from survey_code.mixed_dimension.pruning.magnitude import (
    MagnitudeOptions as MagnitudeOptions,
    MagnitudePruning as MagnitudePruning,
    find_edge as find_edge,
)
from survey_code.mixed_dimension.pruning.optfs import (
    GatedRows as GatedRows,
    OptFS as OptFS,
    OptFSOptions as OptFSOptions,
    open_gates as open_gates,
)
from survey_code.mixed_dimension.pruning.pep import (
    PEP as PEP,
    PEPOptions as PEPOptions,
    Thresholded as Thresholded,
    ThresholdTable as ThresholdTable,
    soft_threshold as soft_threshold,
)
from survey_code.mixed_dimension.pruning.shaver import (
    Leaving as Leaving,
    Shaver as Shaver,
    ShaverOptions as ShaverOptions,
    average_fields as average_fields,
    share_out_game as share_out_game,
    value_entries as value_entries,
    walk_out as walk_out,
)
from survey_code.mixed_dimension.pruning.sseds import (
    SSEDS as SSEDS,
    GatedColumns as GatedColumns,
    SSEDSOptions as SSEDSOptions,
    column_saliencies as column_saliencies,
    widths_within as widths_within,
)
from survey_code.mixed_dimension.pruning.tickets import (
    LargestEntries as LargestEntries,
    PrefixTicket as PrefixTicket,
    TicketEmbedding as TicketEmbedding,
    draw_original as draw_original,
    keep_largest as keep_largest,
    plan_entries as plan_entries,
)
