"""Binarisation: each weight becomes one bit.

Three ways to get there: train real numbers and threshold them (`BCCF`),
search among the codes themselves (`DCF`), or train through a smooth
or pretended sign (`CIGAR`, `HashGNN`, `BiGeaR`).
"""

from survey_code.low_precision.binarization.bccf import (
    BCCF,
    center_at_median,
    fit_scales,
    learn_rotation,
    split_magnitudes,
)
from survey_code.low_precision.binarization.bigear import BiGeaR, ScaledSign
from survey_code.low_precision.binarization.cigar import CIGAR, rerank
from survey_code.low_precision.binarization.dcf import (
    DCF,
    decorrelate,
    descend_bit,
    draw_unobserved,
    spectral_codes,
)
from survey_code.low_precision.binarization.hashgnn import (
    HashGNN,
    straight_through,
)
from survey_code.low_precision.binarization.signs import (
    PropagatedEmbedding,
    SignedEmbedding,
    take_signs,
)

__all__ = [
    "BCCF",
    "CIGAR",
    "DCF",
    "BiGeaR",
    "HashGNN",
    "PropagatedEmbedding",
    "ScaledSign",
    "SignedEmbedding",
    "center_at_median",
    "decorrelate",
    "descend_bit",
    "draw_unobserved",
    "fit_scales",
    "learn_rotation",
    "rerank",
    "spectral_codes",
    "split_magnitudes",
    "straight_through",
    "take_signs",
]
