"""Quantisation: each weight becomes a small integer."""

from survey_code.low_precision.quantization.greedy import (
    GreedyQuantization,
    quantize_greedily,
    search_range,
)
from survey_code.low_precision.quantization.rowwise import (
    RowwiseQuantization,
    quantize_rows,
    quantize_symmetric,
    quantize_table,
)

__all__ = [
    "GreedyQuantization",
    "RowwiseQuantization",
    "quantize_greedily",
    "quantize_rows",
    "quantize_symmetric",
    "quantize_table",
    "search_range",
]
