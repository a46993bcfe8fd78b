"""Vector quantisation: similar rows share codewords, and what is stored are codes.

After training (`SAEC`, `ProductQuantization`), on the way into the network while
float vectors stay behind (`DPQ`, `MGQE`, `LightRec`), or from the first step on
(`RecJPQ`, `BACO`, `CCE`), which then needs no full table in training either.
"""

from survey_code.weight_sharing.lloyd import (
    Clusters as Clusters,
    ResidualCodes as ResidualCodes,
    assigning_on as assigning_on,
    cluster_rows as cluster_rows,
    nearest_rows as nearest_rows,
    quantize_residuals as quantize_residuals,
)
from survey_code.weight_sharing.vector_quantization.additive import (
    LightRec as LightRec,
    LightRecOptions as LightRecOptions,
)
from survey_code.weight_sharing.vector_quantization.baco import (
    BACO as BACO,
    BACOOptions as BACOOptions,
    find_kin as find_kin,
    group_kin as group_kin,
    group_pairs as group_pairs,
    settle_ids as settle_ids,
    weigh_links as weigh_links,
)
from survey_code.weight_sharing.vector_quantization.books import (
    BookOptions as BookOptions,
)
from survey_code.weight_sharing.vector_quantization.cce import (
    CCE as CCE,
    CCEOptions as CCEOptions,
)
from survey_code.weight_sharing.vector_quantization.clustering import (
    SAEC as SAEC,
    SAECOptions as SAECOptions,
)
from survey_code.weight_sharing.vector_quantization.dpq import (
    DPQ as DPQ,
    DPQOptions as DPQOptions,
    LearnedCodes as LearnedCodes,
    count_perplexity as count_perplexity,
)
from survey_code.weight_sharing.vector_quantization.mgqe import (
    MGQE as MGQE,
    MGQEOptions as MGQEOptions,
)
from survey_code.weight_sharing.vector_quantization.pq import (
    PQOptions as PQOptions,
    ProductCodes as ProductCodes,
    ProductQuantization as ProductQuantization,
    quantize_product as quantize_product,
    split_books as split_books,
)
from survey_code.weight_sharing.vector_quantization.recjpq import (
    RecJPQ as RecJPQ,
    RecJPQOptions as RecJPQOptions,
    rank_into_bins as rank_into_bins,
)
