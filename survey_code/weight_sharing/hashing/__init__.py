"""Hashing: ids share rows, and arithmetic on the id says which.

Who collides, and how ids that collide are told apart again: by a second hash
(`DoubleHashingEmbedding`, `BloomEmbedding`), by weights of their own
(`HashEmbedding`, `MultiEmbedding`), by digits that are never all the same
(`QuotientRemainderEmbedding`, `BinaryCodeEmbedding`), by collisions of single
blocks (`RobeEmbedding`), by a network that reads the hashes
(`DeepHashEmbedding`), or by rows of their own for those that matter
(`HotSketchEmbedding`).
"""

from survey_code.weight_sharing.hashing.base import HashedEmbedding
from survey_code.weight_sharing.hashing.binary_code import BinaryCodeEmbedding
from survey_code.weight_sharing.hashing.bloom import BloomEmbedding
from survey_code.weight_sharing.hashing.cafe import HotSketch, HotSketchEmbedding
from survey_code.weight_sharing.hashing.dhe import DeepHashEmbedding
from survey_code.weight_sharing.hashing.double import DoubleHashingEmbedding
from survey_code.weight_sharing.hashing.quotient_remainder import (
    QuotientRemainderEmbedding,
)
from survey_code.weight_sharing.hashing.robe import RobeEmbedding
from survey_code.weight_sharing.hashing.trick import HashingEmbedding
from survey_code.weight_sharing.hashing.weighted import HashEmbedding, MultiEmbedding

__all__ = [
    "BinaryCodeEmbedding",
    "BloomEmbedding",
    "DeepHashEmbedding",
    "DoubleHashingEmbedding",
    "HashEmbedding",
    "HashedEmbedding",
    "HashingEmbedding",
    "HotSketch",
    "HotSketchEmbedding",
    "MultiEmbedding",
    "QuotientRemainderEmbedding",
    "RobeEmbedding",
]
