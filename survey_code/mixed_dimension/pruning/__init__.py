"""Pruning: numbers that are not needed become zeros, and zeros are not stored.

Once after training (magnitude), again and again while it runs (DeepLight), or found
by a search and trained anew: single numbers (PEP), columns of a field (SSEDS), the
tails of rows (AMTL), whole rows (OptFS).
"""

from survey_code.mixed_dimension.pruning.amtl import (
    AMTL,
    TwinMasks,
    choose_hard,
    lengths_within,
    prefix_of,
)
from survey_code.mixed_dimension.pruning.deeplight import (
    DeepLight,
    rescale_constant,
    scheduled_sparsity,
)
from survey_code.mixed_dimension.pruning.magnitude import MagnitudePruning
from survey_code.mixed_dimension.pruning.optfs import (
    GatedRows,
    OptFS,
    open_gates,
)
from survey_code.mixed_dimension.pruning.pep import (
    PEP,
    ThresholdTable,
    soft_threshold,
)
from survey_code.mixed_dimension.pruning.sseds import (
    SSEDS,
    GatedColumns,
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
    "AMTL",
    "PEP",
    "SSEDS",
    "DeepLight",
    "GatedColumns",
    "GatedRows",
    "MagnitudePruning",
    "OptFS",
    "PrefixTicket",
    "ThresholdTable",
    "TicketEmbedding",
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
