"""Vector quantisation: similar rows share codewords, and what is stored are codes.

After training (`RowClustering`, `ProductQuantization`), on the way into the network
while float vectors stay behind (`ProductEmbedding`, `GranularEmbedding`,
`AdditiveEmbedding`), or from the first step on (`InteractionCodesEmbedding`,
`ClusteredEmbedding`), which then needs no full table in training either.
"""

from survey_code.weight_sharing.vector_quantization.additive import (
    AdditiveEmbedding,
    ResidualCodes,
    quantize_residuals,
)
from survey_code.weight_sharing.vector_quantization.cce import ClusteredEmbedding
from survey_code.weight_sharing.vector_quantization.clustering import RowClustering
from survey_code.weight_sharing.vector_quantization.dpq import (
    ProductEmbedding,
    count_perplexity,
)
from survey_code.weight_sharing.vector_quantization.lloyd import (
    Clusters,
    cluster_rows,
    nearest_rows,
)
from survey_code.weight_sharing.vector_quantization.mgqe import GranularEmbedding
from survey_code.weight_sharing.vector_quantization.pq import (
    ProductCodes,
    ProductQuantization,
    quantize_product,
    split_books,
)
from survey_code.weight_sharing.vector_quantization.recjpq import (
    InteractionCodesEmbedding,
    rank_into_bins,
)

__all__ = [
    "AdditiveEmbedding",
    "ClusteredEmbedding",
    "Clusters",
    "GranularEmbedding",
    "InteractionCodesEmbedding",
    "ProductCodes",
    "ProductEmbedding",
    "ProductQuantization",
    "ResidualCodes",
    "RowClustering",
    "cluster_rows",
    "count_perplexity",
    "nearest_rows",
    "quantize_product",
    "quantize_residuals",
    "rank_into_bins",
    "split_books",
]
