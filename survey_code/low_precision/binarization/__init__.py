"""Binarisation: each weight becomes one bit.

Three ways to get there: train real numbers and threshold them (`BCCF`),
search among the codes themselves (`DCF`), or train through a smooth
or pretended sign (`CIGAR`, `HashGNN`, `BiGeaR`).
"""

from survey_code.low_precision.binarization.bccf import (
    BCCF as BCCF,
    BalancedEmbedding as BalancedEmbedding,
    BCCFOptions as BCCFOptions,
    fit_scales as fit_scales,
    learn_rotation as learn_rotation,
    split_at_medians as split_at_medians,
    split_magnitudes as split_magnitudes,
)
from survey_code.low_precision.binarization.bigear import (
    BiGeaR as BiGeaR,
    BiGeaROptions as BiGeaROptions,
    ScaledSign as ScaledSign,
)
from survey_code.low_precision.binarization.cigar import (
    CIGAR as CIGAR,
    CIGAROptions as CIGAROptions,
    rerank as rerank,
)
from survey_code.low_precision.binarization.dcf import (
    DCF as DCF,
    DCFOptions as DCFOptions,
    decorrelate as decorrelate,
    descend_bit as descend_bit,
    draw_unobserved as draw_unobserved,
    spectral_codes as spectral_codes,
)
from survey_code.low_precision.binarization.hashgnn import (
    HashGNN as HashGNN,
    HashGNNOptions as HashGNNOptions,
    sign_through as sign_through,
)
from survey_code.low_precision.binarization.signs import (
    PropagatedEmbedding as PropagatedEmbedding,
    SignedEmbedding as SignedEmbedding,
    take_signs as take_signs,
)
