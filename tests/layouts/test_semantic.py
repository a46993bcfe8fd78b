"""The semantic layout: which stretches of codes name which rows, written out."""

import numpy as np
import pytest

from survey_code.hashes import mix_ids
from survey_code.layouts import DenseLayout, PackedLayout, SemanticLayout
from survey_code.layouts.hashed import mixed_index
from survey_code.layouts.semantic import join_codes, semantic_bytes, take_gram

ROWS, LEVELS, BITS = 40, 3, 3
CODES = np.random.default_rng(0).integers(2**BITS, size=(ROWS, LEVELS))
PACKED = PackedLayout.from_integers(CODES, BITS)
PREFIXES = np.array([[0, 1], [0, 2], [0, 3]], np.uint8)
STARTS = np.array([0, 15, 33])


def draw_values(rows, width):
    return np.random.default_rng(1).normal(size=(rows, width)).astype(np.float32)


def make(grams=PREFIXES, sizes=(11, 13, 17), dim=6, **options):
    shared, concat = options.get("shared"), options.get("combine") == "concat"
    rows, width = (
        max(sizes) if shared else sum(sizes),
        dim // (len(sizes) * concat or 1),
    )
    values, index = draw_values(rows, width), mixed_index(2, list(sizes))
    return SemanticLayout(PACKED, values, index, grams, dim, **options)


def read_one(layout, i):
    """A row as the module's first lines say, digit by digit."""
    rows, start = [], 0
    for (first, last), (*numbers, _, size) in zip(
        layout.grams.tolist(), layout.index.tolist()
    ):
        key = 0
        for place, code in enumerate(CODES[i, first:last]):
            key += int(code) * 2 ** (BITS * place)
        if layout.starts is not None:
            field = int((layout.starts <= i).sum()) - 1
            key += field * 2 ** (BITS * (last - first))
        row = mix_ids(np.array([key]), *numbers)[0] % size
        rows.append(layout.values[row + start])
        start += 0 if layout.shared else size
    return np.concatenate(rows) if layout.combine == "concat" else sum(rows)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"starts": STARTS},
        {"shared": True, "sizes": (19, 19, 19)},
        {"combine": "concat", "starts": STARTS},
        {"grams": np.array([[1, 2], [1, 3]], np.uint8), "sizes": (5, 7)},
    ],
    ids=str,
)
def test_rows_are_those_of_the_stretches(options):
    layout = make(**options)
    wanted = np.stack([read_one(layout, i) for i in range(ROWS)])
    np.testing.assert_allclose(layout.lookup(np.arange(ROWS)), wanted, rtol=1e-6)


def test_by_hand():
    codes = np.array([[1, 2, 3]])
    joined = join_codes(codes, 4)
    assert joined.tolist() == [0x321]
    field = np.array([5])
    assert take_gram(joined, None, 0, 2, 4).tolist() == [0x21]
    assert take_gram(joined, None, 1, 3, 4).tolist() == [0x32]
    assert take_gram(joined, field, 0, 3, 4).tolist() == [0x5321]
    assert take_gram(joined, field, 2, 3, 4).tolist() == [0x53]


def test_bytes_are_said_before_there_is_a_layout():
    for options, fields in (({}, 1), ({"starts": STARTS}, 3)):
        layout = make(**options)
        fixed = semantic_bytes(ROWS, LEVELS, BITS, 3, fields)
        assert layout.nbytes == fixed + layout.values.nbytes


def test_rows_may_stand_in_another_layout():
    flat = make()
    nested = SemanticLayout(
        PACKED, DenseLayout.from_weight(flat.values, "float16"), flat.index, PREFIXES, 6
    )
    ids = np.arange(ROWS)
    np.testing.assert_allclose(nested.lookup(ids), flat.lookup(ids), atol=5e-3)


LONG = PackedLayout.from_integers(np.zeros((ROWS, 5), int), 10)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"codes": DenseLayout(draw_values(ROWS, 3))}, "packed integers"),
        ({"codes": PackedLayout.from_integers(CODES[:9], 3)}, "codes must be of 40"),
        ({"codes": LONG}, "may have 48 bits, got 5 of 10"),
        ({"grams": PREFIXES[:2]}, r"grams must be uint8 of shape \(3, 2\)"),
        ({"grams": PREFIXES.astype(np.int64)}, "grams must be uint8"),
        ({"grams": PREFIXES[:, ::-1].copy()}, "stretches of 3 codes"),
        ({"grams": PREFIXES + np.uint8(1)}, "stretches of 3 codes"),
        ({"values": draw_values(40, 6)}, r"values must .* \(41, 6\)"),
        ({"shared": 1}, r"values must .* \(17, 6\)"),
        ({"shared": 2}, "shared must be"),
        ({"combine_code": 2}, "combine_code must be"),
        ({"combine_code": 1, "embedding_dim": 7}, "3 rows cannot be put together to 7"),
        ({"starts": np.array([0])}, "2 fields or more"),
        ({"starts": np.array([1, 5])}, "rise from 0"),
        ({"starts": np.array([0, 5, 5])}, "rise from 0"),
        ({"starts": np.array([0, 40])}, "rise from 0"),
        ({"starts": np.array([0, 5], np.int32)}, "int64 ids"),
        ({"index": np.zeros((3, 5), np.int64)}, "moduli from 1 up"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_contradicts_itself_is_a_value_error(changes, said):
    layout = make()
    for name, value in changes.items():
        setattr(layout, name, value)
    with pytest.raises(ValueError, match=said):
        layout.validate()
