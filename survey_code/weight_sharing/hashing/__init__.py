"""Hashing: ids share rows, and arithmetic on the id says which.

Who collides, and how ids that collide are told apart again: by a second hash
(`DoubleHashing`, `BloomEmbeddings`), by weights of their own (`HashEmbeddings`,
`MEmCom`), by digits that are never all the same (`QuotientRemainder`,
`BinaryCodeHash`), by collisions of single blocks (`ROBE`), by a network that reads the
hashes (`DHE`), or by rows of their own for those that matter (`CAFE`), or for all that
are there (`ZeroCollision`).  `UnifiedEmbedding` puts short rows of one table side by
side.  With `SemanticIDs` ids collide on purpose: those whose content is alike.
"""

from survey_code.weight_sharing.hashing.base import HashedEmbedding as HashedEmbedding
from survey_code.weight_sharing.hashing.binary_code import (
    BinaryCodeHash as BinaryCodeHash,
    BinaryCodeOptions as BinaryCodeOptions,
)
from survey_code.weight_sharing.hashing.bloom import (
    BloomEmbeddings as BloomEmbeddings,
    BloomOptions as BloomOptions,
)
from survey_code.weight_sharing.hashing.cafe import (
    CAFE as CAFE,
    CAFEOptions as CAFEOptions,
    HotSketch as HotSketch,
)
from survey_code.weight_sharing.hashing.dhe import DHE as DHE, DHEOptions as DHEOptions
from survey_code.weight_sharing.hashing.double import (
    DoubleHashing as DoubleHashing,
    DoubleHashingOptions as DoubleHashingOptions,
)
from survey_code.weight_sharing.hashing.quotient_remainder import (
    QuotientRemainder as QuotientRemainder,
    QuotientRemainderOptions as QuotientRemainderOptions,
)
from survey_code.weight_sharing.hashing.robe import (
    ROBE as ROBE,
    ROBEOptions as ROBEOptions,
)
from survey_code.weight_sharing.hashing.semantic import (
    SemanticIDs as SemanticIDs,
    SemanticIDsOptions as SemanticIDsOptions,
)
from survey_code.weight_sharing.hashing.trick import (
    HashingOptions as HashingOptions,
    HashingTrick as HashingTrick,
)
from survey_code.weight_sharing.hashing.unified import (
    UnifiedEmbedding as UnifiedEmbedding,
    UnifiedOptions as UnifiedOptions,
)
from survey_code.weight_sharing.hashing.weighted import (
    HashEmbeddings as HashEmbeddings,
    HashEmbeddingsOptions as HashEmbeddingsOptions,
    MEmCom as MEmCom,
    MEmComOptions as MEmComOptions,
)
from survey_code.weight_sharing.hashing.zero_collision import (
    ZeroCollision as ZeroCollision,
    ZeroCollisionOptions as ZeroCollisionOptions,
)
