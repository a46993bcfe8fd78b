"""Quantisation: each weight becomes a small integer.

Three moments to round: after training (`RowwiseQuantization`,
`GreedyQuantization`, `RotatedQuantization`), on the way into the network while float
weights stay behind (`LSQ`), or on the way back into a table that has no other copy
(`HalfPrecision`, `LPT`, `ALPT`,
`MixedPrecisionCache`, `SHARK`).
"""

from survey_code.low_precision.quantization.alpt import (
    ALPT as ALPT,
    ALPTOptions as ALPTOptions,
)
from survey_code.low_precision.quantization.cache import (
    CacheOptions as CacheOptions,
    MixedPrecisionCache as MixedPrecisionCache,
)
from survey_code.low_precision.quantization.greedy import (
    GreedyOptions as GreedyOptions,
    GreedyQuantization as GreedyQuantization,
    quantize_greedily as quantize_greedily,
    search_range as search_range,
)
from survey_code.low_precision.quantization.half import (
    HalfOptions as HalfOptions,
    HalfPrecision as HalfPrecision,
    round_to_format as round_to_format,
)
from survey_code.low_precision.quantization.lpt import (
    LPT as LPT,
    LPTOptions as LPTOptions,
)
from survey_code.low_precision.quantization.lsq import (
    LSQ as LSQ,
    LSQOptions as LSQOptions,
    clip_through as clip_through,
)
from survey_code.low_precision.quantization.mpe import (
    MPE as MPE,
    MPEOptions as MPEOptions,
)
from survey_code.low_precision.quantization.rotated import (
    RotatedOptions as RotatedOptions,
    RotatedQuantization as RotatedQuantization,
    code_rows as code_rows,
    find_distortion as find_distortion,
    find_levels as find_levels,
    search_stretch as search_stretch,
)
from survey_code.low_precision.quantization.rounding import (
    quantize_through as quantize_through,
    round_stochastically as round_stochastically,
)
from survey_code.low_precision.quantization.rowwise import (
    RowwiseOptions as RowwiseOptions,
    RowwiseQuantization as RowwiseQuantization,
    keep_lengths as keep_lengths,
    quantize_rows as quantize_rows,
    quantize_symmetric as quantize_symmetric,
    quantize_table as quantize_table,
)
from survey_code.low_precision.quantization.shark import (
    SHARK as SHARK,
    SHARKOptions as SHARKOptions,
)
from survey_code.low_precision.quantization.writeback import (
    WriteBackEmbedding as WriteBackEmbedding,
)
