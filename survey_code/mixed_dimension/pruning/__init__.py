"""Pruning: numbers that are not needed become zeros, and zeros are not stored.

Once after training (magnitude), again and again while it runs (DeepLight), or found
by a search and trained anew: single numbers (PEP), columns of a field (SSEDS), the
tails of rows (AMTL), whole rows (OptFS).
"""

from survey_code.mixed_dimension.pruning.amtl import (
    TwinLengths,
    TwinMasks,
    choose_hard,
    lengths_within,
    prefix_of,
)
from survey_code.mixed_dimension.pruning.deeplight import (
    DeepLightEmbedding,
    rescale_constant,
    scheduled_sparsity,
)
from survey_code.mixed_dimension.pruning.magnitude import MagnitudePruning
from survey_code.mixed_dimension.pruning.optfs import (
    GatedRows,
    SelectedRows,
    open_gates,
)
from survey_code.mixed_dimension.pruning.pep import (
    ThresholdEmbedding,
    ThresholdTable,
    soft_threshold,
)
from survey_code.mixed_dimension.pruning.sseds import (
    GatedColumns,
    SalientColumns,
    column_saliencies,
    widths_within,
)
from survey_code.mixed_dimension.pruning.tickets import (
    PrefixTicket,
    TicketEmbedding,
    draw_original,
    keep_largest,
    plan_entries,
)

__all__ = [
    "DeepLightEmbedding",
    "GatedColumns",
    "GatedRows",
    "MagnitudePruning",
    "PrefixTicket",
    "SalientColumns",
    "SelectedRows",
    "ThresholdEmbedding",
    "ThresholdTable",
    "TicketEmbedding",
    "TwinLengths",
    "TwinMasks",
    "choose_hard",
    "column_saliencies",
    "draw_original",
    "keep_largest",
    "lengths_within",
    "open_gates",
    "plan_entries",
    "prefix_of",
    "rescale_constant",
    "scheduled_sparsity",
    "soft_threshold",
    "widths_within",
]
