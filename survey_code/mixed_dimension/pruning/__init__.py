"""Pruning: numbers that are not needed become zeros, and zeros are not stored.

Once after training (magnitude), again and again while it runs (DeepLight), or found
by a search and trained anew: single numbers (PEP), columns of a field (SSEDS), the
tails of rows (AMTL), whole rows (OptFS).
"""

from survey_code.mixed_dimension.pruning.amtl import (
    AMTL as AMTL,
    AMTLOptions as AMTLOptions,
    TwinMasks as TwinMasks,
    choose_hard as choose_hard,
    keep_likeliest as keep_likeliest,
    prefix_of as prefix_of,
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
from survey_code.mixed_dimension.pruning.sseds import (
    SSEDS as SSEDS,
    GatedColumns as GatedColumns,
    SSEDSOptions as SSEDSOptions,
    column_saliencies as column_saliencies,
    widths_within as widths_within,
)
from survey_code.mixed_dimension.pruning.tickets import (
    PrefixTicket as PrefixTicket,
    TicketEmbedding as TicketEmbedding,
    draw_original as draw_original,
    keep_largest as keep_largest,
    plan_entries as plan_entries,
)
