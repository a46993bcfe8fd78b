"""Hashing: ids share rows, and arithmetic on the id says which.

Who collides, and how ids that collide are told apart again: by a second hash
(`DoubleHashing`, `BloomEmbeddings`), by weights of their own
(`HashEmbeddings`, `MEmCom`), by digits that are never all the same
(`QuotientRemainder`, `BinaryCodeHash`), by collisions of single
blocks (`ROBE`), by a network that reads the hashes
(`DHE`), or by rows of their own for those that matter
(`CAFE`).
"""

from survey_code.weight_sharing.hashing.base import HashedEmbedding
from survey_code.weight_sharing.hashing.binary_code import BinaryCodeHash
from survey_code.weight_sharing.hashing.bloom import BloomEmbeddings
from survey_code.weight_sharing.hashing.cafe import CAFE, HotSketch
from survey_code.weight_sharing.hashing.dhe import DHE
from survey_code.weight_sharing.hashing.double import DoubleHashing
from survey_code.weight_sharing.hashing.quotient_remainder import (
    QuotientRemainder,
)
from survey_code.weight_sharing.hashing.robe import ROBE
from survey_code.weight_sharing.hashing.trick import HashingTrick
from survey_code.weight_sharing.hashing.weighted import HashEmbeddings, MEmCom

__all__ = [
    "CAFE",
    "DHE",
    "ROBE",
    "BinaryCodeHash",
    "BloomEmbeddings",
    "DoubleHashing",
    "HashEmbeddings",
    "HashedEmbedding",
    "HashingTrick",
    "HotSketch",
    "MEmCom",
    "QuotientRemainder",
]
