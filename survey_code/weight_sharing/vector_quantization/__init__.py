"""Vector quantisation: similar rows share codewords, and what is stored are codes.

After training (`SAEC`, `ProductQuantization`), on the way into the network
while float vectors stay behind (`DPQ`, `MGQE`,
`LightRec`), or from the first step on (`RecJPQ`,
`CCE`), which then needs no full table in training either.
"""

from survey_code.weight_sharing.vector_quantization.additive import (
    LightRec,
    ResidualCodes,
    quantize_residuals,
)
from survey_code.weight_sharing.vector_quantization.cce import CCE
from survey_code.weight_sharing.vector_quantization.clustering import SAEC
from survey_code.weight_sharing.vector_quantization.dpq import (
    DPQ,
    count_perplexity,
)
from survey_code.weight_sharing.vector_quantization.lloyd import (
    Clusters,
    cluster_rows,
    nearest_rows,
)
from survey_code.weight_sharing.vector_quantization.mgqe import MGQE
from survey_code.weight_sharing.vector_quantization.pq import (
    ProductCodes,
    ProductQuantization,
    quantize_product,
    split_books,
)
from survey_code.weight_sharing.vector_quantization.recjpq import (
    RecJPQ,
    rank_into_bins,
)

__all__ = [
    "CCE",
    "DPQ",
    "MGQE",
    "SAEC",
    "Clusters",
    "LightRec",
    "ProductCodes",
    "ProductQuantization",
    "RecJPQ",
    "ResidualCodes",
    "cluster_rows",
    "count_perplexity",
    "nearest_rows",
    "quantize_product",
    "quantize_residuals",
    "rank_into_bins",
    "split_books",
]
