"""Binarisation: each weight becomes one bit.

Three ways to get there: train real numbers and threshold them (`MedianCodes`),
search among the codes themselves (`DiscreteFiltering`), or train through a smooth
or pretended sign (`AnnealedCodes`, `GuidedCodes`, `LayerwiseCodes`).
"""

from survey_code.low_precision.binarization.bccf import (
    MedianCodes,
    center_at_median,
    fit_scales,
    learn_rotation,
    split_magnitudes,
)
from survey_code.low_precision.binarization.bigear import LayerwiseCodes, ScaledSign
from survey_code.low_precision.binarization.cigar import AnnealedCodes, rerank
from survey_code.low_precision.binarization.dcf import (
    DiscreteFiltering,
    decorrelate,
    descend_bit,
    draw_unobserved,
    spectral_codes,
)
from survey_code.low_precision.binarization.hashgnn import (
    GuidedCodes,
    straight_through,
)
from survey_code.low_precision.binarization.signs import (
    PropagatedEmbedding,
    SignedEmbedding,
    take_signs,
)

__all__ = [
    "AnnealedCodes",
    "DiscreteFiltering",
    "GuidedCodes",
    "LayerwiseCodes",
    "MedianCodes",
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
