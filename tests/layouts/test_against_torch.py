"""Look-ups and bags of every layout beside torch's, of the decoded rows in float64.

Whatever `torch.nn.functional.embedding_bag` takes gives the same rows here: ids of any
shape and integer type, offsets, weights, modes, padding, the last offset.
"""

import warnings

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st
from torch.nn.functional import embedding, embedding_bag

from survey_code.embedding import decode_layout
from survey_code.layouts import DenseLayout

ID_TYPES = st.sampled_from(["i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8"])
WEIGHT_TYPES = st.sampled_from(["f2", "f4", "f8", "i4", "bfloat16"])
MODES = st.sampled_from(["sum", "mean", "max"])


@pytest.fixture(scope="module")
def decoded(examples):
    """Every example with its rows, and what adding them up in float32 may lose."""
    return [
        (layout, decode_layout(layout)) for layout in (m() for m in examples.values())
    ]


@st.composite
def calls(draw):
    """Arguments of a bag: ids as shares of the table, and all else."""
    asked = {"mode": draw(MODES), "flat": draw(st.booleans())}
    if asked["flat"]:
        lengths = draw(st.lists(st.integers(0, 6), max_size=8))
        asked["last"] = draw(st.booleans())
    else:
        lengths = draw(st.integers(1, 5)) * [draw(st.integers(1, 5))]
        asked["last"] = False
    asked["lengths"] = lengths
    asked["kind"] = draw(ID_TYPES)
    asked["offsets"] = draw(ID_TYPES)
    asked["padding"] = draw(st.sampled_from([None, 0, 3, -1, 10, -11]))
    asked["weights"] = draw(WEIGHT_TYPES) if draw(st.booleans()) else None
    asked["tensors"] = draw(st.booleans())
    return asked


def as_weights(numbers, kind, tensors):
    """Weights of a type, and the same in float64; NumPy has no bfloat16."""
    if kind == "bfloat16":
        made = torch.from_numpy(numbers).to(torch.bfloat16)
        return made, made.double()
    made = (numbers * 4).astype(kind) if kind == "i4" else numbers.astype(kind)
    given = torch.from_numpy(made) if tensors else made
    return given, torch.from_numpy(made.astype(np.float32).astype(np.float64))


@settings(max_examples=500)  # 10,000 by `make fuzz`
@given(asked=calls(), seed=st.integers(0, 2**32 - 1))
def test_any_bag_is_torchs(decoded, asked, seed):
    rng = np.random.default_rng(seed)
    layout, table = decoded[seed % len(decoded)]
    lengths, mode = asked["lengths"], asked["mode"]
    ids = rng.integers(len(table), size=sum(lengths))
    if asked["padding"] is not None:  # often what is left out
        ids[rng.random(len(ids)) < 0.4] = asked["padding"] % len(table)
    starts = np.cumsum([0, *lengths])[: len(lengths) + asked["last"]]
    if asked["last"] and not len(lengths):
        starts = np.zeros(1, np.int64)
    numbers = rng.normal(size=len(ids))
    if not asked["flat"]:
        ids, numbers, starts = (
            ids.reshape(len(lengths), -1),
            numbers.reshape(len(lengths), -1),
            None,
        )
    weights = wide = None
    if asked["weights"] and mode == "sum":
        weights, wide = as_weights(numbers, asked["weights"], asked["tensors"])
    given = ids.astype(asked["kind"])
    offsets = None if starts is None else starts.astype(asked["offsets"])
    if asked["tensors"]:
        given = torch.from_numpy(given)
    found = layout.bag(given, offsets, weights, mode, asked["padding"], asked["last"])
    assert isinstance(found, torch.Tensor if asked["tensors"] else np.ndarray)
    found = np.asarray(found)
    assert found.dtype == np.float32
    assert found.shape == (len(lengths), layout.embedding_dim)
    if not len(lengths) or not ids.size:  # where torch fails, or a process with it
        assert not found.any()
        return
    wanted = embedding_bag(
        torch.from_numpy(ids), torch.from_numpy(table).double(),
        None if starts is None else torch.from_numpy(starts), mode=mode,
        per_sample_weights=wide, padding_idx=asked["padding"],
        include_last_offset=asked["last"],
    ).numpy()  # fmt: skip
    # What is added up may be larger than what it comes to.
    largest = np.abs(table).max() * (
        1 if wide is None else max(1, float(wide.abs().max()))
    )
    np.testing.assert_allclose(
        found, wanted, rtol=1e-5, atol=1e-5 * max(largest, 1e-30)
    )


@settings(max_examples=300)
@given(
    shape=st.lists(st.integers(0, 4), max_size=3),
    kind=ID_TYPES,
    tensors=st.booleans(),
    seed=st.integers(0, 2**32 - 1),
)
def test_any_look_up_is_torchs(decoded, shape, kind, tensors, seed):
    layout, table = decoded[seed % len(decoded)]
    ids = np.random.default_rng(seed).integers(len(table), size=shape)
    given = np.asarray(ids).astype(kind)
    found = layout.lookup(torch.from_numpy(given) if tensors else given)
    assert isinstance(found, torch.Tensor if tensors else np.ndarray)
    wanted = embedding(torch.from_numpy(np.asarray(ids)), torch.from_numpy(table))
    largest = np.abs(table).max()
    np.testing.assert_allclose(
        np.asarray(found), wanted.numpy(), rtol=1e-5, atol=1e-6 * max(largest, 1e-30)
    )


# -- what torch refuses, or forgets to -------------------------------------------------

TABLE = DenseLayout(np.arange(12, dtype=np.float32).reshape(6, 2))
MASKED = np.ma.masked_array([1, 2, 3], [False, True, False])
# Ids, other arguments, and what the error says.
REFUSED = {
    "masked ids": (MASKED, {"offsets": [0]}, "ids must not be a masked array"),
    "masked offsets": ([1, 2, 3], {"offsets": MASKED}, "offsets must not be a masked"),
    "masked weights": (
        [1, 2, 3], {"offsets": [0], "per_sample_weights": MASKED * 1.0},
        "per_sample_weights must not be a masked",
    ),
    "truth values": (np.array([True]), {"offsets": [0]}, "ids must be integers"),
    "a tensor of truth values": (
        torch.tensor([True]), {"offsets": [0]}, "ids must be integers"
    ),
    "padding beyond": ([1], {"offsets": [0], "padding_idx": 6}, "padding_idx must be"),
    "padding before": ([1], {"offsets": [0], "padding_idx": -7}, "padding_idx must be"),
    "padding of truth": ([1], {"offsets": [0], "padding_idx": True}, "an integer"),
    "padding of a fraction": ([1], {"offsets": [0], "padding_idx": 1.0}, "an integer"),
    "padding of text": ([1], {"offsets": [0], "padding_idx": "1"}, "an integer"),
    "last offset of a word": (
        [1], {"offsets": [0, 1], "include_last_offset": "no"}, "True or False"
    ),
    "last offset of no offsets": (
        [[1, 2], [3, 4]], {"include_last_offset": True}, "needs offsets"
    ),
    "last offset of none": (
        [], {"offsets": [], "include_last_offset": True}, "one offset or more"
    ),
    "last offset too large": (
        [1, 2], {"offsets": [0, 3], "include_last_offset": True}, "not exceed"
    ),
    "last offset of 64 bits": (
        [1, 2], {"offsets": np.array([0, 2**64 - 1], np.uint64),
                 "include_last_offset": True}, "never fall",
    ),
    "first offset not 0": (
        [1, 2], {"offsets": [1, 2], "include_last_offset": True}, "start at 0"
    ),
}  # fmt: skip


@pytest.mark.parametrize("call", REFUSED.values(), ids=REFUSED)
def test_what_cannot_be_a_bag_is_a_value_error(call):
    ids, arguments, words = call
    with pytest.raises(ValueError, match=words):
        TABLE.bag(ids, **arguments)


def test_bad_offsets_are_found_where_padding_hides_them():
    with pytest.raises(ValueError, match="never fall"):
        TABLE.bag([1, 1, 1], [0, 2, 1], padding_idx=1)
    with pytest.raises(IndexError, match="out of range"):
        TABLE.bag([1, 9, 1], [0, 2], padding_idx=1)


@pytest.mark.parametrize("mode", ["sum", "mean", "max"])
def test_ids_behind_the_last_offset_are_an_error(mode):
    """torch's sums leave them out; its means and maxima count some of them."""
    last = {"mode": mode, "include_last_offset": True}
    with pytest.raises(ValueError, match=r"must be the number of ids \(5\), got 4"):
        TABLE.bag([1, 2, 3, 4, 5], [0, 2, 4], **last)
    found = TABLE.bag([1, 2, 3, 4], [0, 2, 4], **last)
    np.testing.assert_array_equal(found, TABLE.bag([1, 2, 3, 4], [0, 2], mode=mode))


def test_a_mean_counts_no_padding_and_a_bag_of_padding_is_zeros():
    found = TABLE.bag([[1, 3, 3], [3, 3, 3]], mode="mean", padding_idx=3)
    assert found.tolist() == [[2, 3], [0, 0]]
    found = TABLE.bag([3, 1, 5, 3], [0, 1, 3], mode="max", padding_idx=-3)
    assert found.tolist() == [[0, 0], [10, 11], [0, 0]]


def test_weights_beyond_float32_are_infinite_without_a_warning():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        pooled = TABLE.bag([[1]], per_sample_weights=np.array([[1e300]]))
    assert np.isinf(pooled).all()
