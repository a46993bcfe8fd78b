"""What is known of ids, as tables read it: rounded to few bits, since it is stored."""

from __future__ import annotations

import numpy as np

from survey_code.layouts.rowwise import centre_of, code_bytes
from survey_code.spec import TableSpec

# Spreads of a column on either side of its mean; what lies beyond is cut.
SPREADS = 3.0
# Bytes of the one scale.
SCALE_BYTES = 4


def require_content(spec: TableSpec) -> np.ndarray:
    """The content of a spec, or one clear ValueError."""
    if spec.content is None:
        raise ValueError(
            "rows are made of what is known of each id: TableSpec(content=...), which "
            "a data set carries as `content`, needs a vector for each; this has none "
            "(the data set synthetic-content has them)"
        )
    return spec.content


def content_step(bits: int) -> np.float32:
    """The gap between two numbers that codes of content stand for."""
    return np.float32(2 * SPREADS / (2**bits - 1))


def content_bytes(spec: TableSpec, bits: int) -> int:
    """Bytes of all ids' content in so many bits an entry."""
    width = require_content(spec).shape[1]
    return spec.num_embeddings * code_bytes(width, bits) + SCALE_BYTES


def round_content(content: np.ndarray, bits: int) -> np.ndarray:
    """Codes of content, each column less its mean and over its spread.

    Mean and spread are of the ids that have content; all others stand at the mean, as
    near to it as codes come.  A code q stands for ``content_step(bits) * (q - c)``, c
    half the largest one: centred rows of `survey_code.layouts.rowwise`.

    Parameters
    ----------
    content : ndarray of float32, shape (ids, width)
        A row of zeros where nothing is known.
    bits : {8, 4, 3, 2, 1}

    Returns
    -------
    ndarray of uint8, shape (ids, width)

    Examples
    --------
    >>> round_content(np.array([[1], [3], [0]], np.float32), bits=2).ravel().tolist()
    [1, 2, 2]
    """
    known = content.any(axis=1)
    codes = np.full(content.shape, np.rint(centre_of(bits)), dtype=np.uint8)
    if known.any():
        rows = content[known].astype(np.float64)
        spread = rows.std(axis=0)
        standard = (rows - rows.mean(axis=0)) / np.where(spread > 0, spread, 1)
        near = np.rint(standard / content_step(bits) + centre_of(bits))
        codes[known] = near.clip(0, 2**bits - 1)
    return codes
