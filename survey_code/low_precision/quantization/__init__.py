"""Quantisation: each weight becomes a small integer.

Three moments to round: after training (`RowwiseQuantization`,
`GreedyQuantization`), on the way into the network while float weights stay behind
(`LSQ`), or on the way back into a table that has no other copy
(`HalfPrecision`, `LPT`, `ALPT`,
`MixedPrecisionCache`).
"""

from survey_code.low_precision.quantization.alpt import ALPT
from survey_code.low_precision.quantization.cache import MixedPrecisionCache
from survey_code.low_precision.quantization.greedy import (
    GreedyQuantization,
    quantize_greedily,
    search_range,
)
from survey_code.low_precision.quantization.half import HalfPrecision, round_to_format
from survey_code.low_precision.quantization.lpt import LPT
from survey_code.low_precision.quantization.lsq import (
    LSQ,
    clip_through,
)
from survey_code.low_precision.quantization.rounding import (
    quantize_through,
    round_stochastically,
)
from survey_code.low_precision.quantization.rowwise import (
    RowwiseQuantization,
    quantize_rows,
    quantize_symmetric,
    quantize_table,
)
from survey_code.low_precision.quantization.writeback import WriteBackEmbedding

__all__ = [
    "ALPT",
    "LPT",
    "LSQ",
    "GreedyQuantization",
    "HalfPrecision",
    "MixedPrecisionCache",
    "RowwiseQuantization",
    "WriteBackEmbedding",
    "clip_through",
    "quantize_greedily",
    "quantize_rows",
    "quantize_symmetric",
    "quantize_table",
    "quantize_through",
    "round_stochastically",
    "round_to_format",
    "search_range",
]
