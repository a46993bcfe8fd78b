"""What the chapter *Traps* calls right: one test for each of its groups."""

import hashlib

import numpy as np
import pytest
import torch

from survey_code import FrozenEmbedding, FrozenEmbeddingBag, TableSpec, compress
from survey_code.hashes import mix_ids
from survey_code.layouts import DenseLayout, HashedLayout, load_layout
from survey_code.layouts.hashed import plain_index, take_digits
from survey_code.layouts.probed import FREE, ProbedLayout
from survey_code.layouts.tensor_train import take_mixed_digits
from survey_code.low_precision.quantization.greedy import round_between
from survey_code.low_precision.quantization.half import round_to_format
from survey_code.weight_sharing.hashing import QuotientRemainder
from survey_code.weight_sharing.vector_quantization import cluster_rows

ROWS = np.array([[1, 1], [5, 5], [9, 9]], dtype=np.float32)
TABLE = DenseLayout.from_weight(ROWS)
MODES = ("sum", "mean", "max")


# -- numbers too small for the ids -------------------------------------------------

LARGE = [2**24 + 1, 2**25 + 3, 2**26, 2**31, 2**32 - 1]


@pytest.mark.parametrize("large", LARGE)
def test_a_large_id_reads_its_own_row(large):
    numbers = np.tile(np.arange(2**16, dtype=np.float32), 2)[:, None]
    index = plain_index([(1, 2**16), (2**16, 2**16)])
    spelled = HashedLayout(numbers, index, 2**32, 2, combine="concat")
    for ids in (np.array([large]), torch.tensor([large])):
        low, high = (int(x) for x in spelled.lookup(ids)[0])
        assert low + 2**16 * high == large
    for kind in (np.array, torch.tensor):
        third = take_digits(kind([large]), plain_index([(3, 2**40)]))
        assert third[0].tolist() == [large // 3]
        found = take_mixed_digits(kind([large]), (2**10, 2**25))
        assert [x.tolist() for x in found] == [[large // 2**25], [large % 2**25]]
    with pytest.raises(ValueError, match="must be integers"):
        spelled.lookup(np.array([large], dtype=np.float32))
    with pytest.raises(IndexError, match=str(2**32 + large)):
        spelled.lookup([2**32 + large])


# -- ids out of range --------------------------------------------------------------


@pytest.mark.parametrize("absent", [-(2**63), -4, -1, 3, 2**31, 2**32, 2**63 - 1])
@pytest.mark.parametrize("key", ["full", "rowwise", "pq"])
def test_an_absent_id_is_an_error_or_the_row_that_was_named(key, absent):
    layout = compress(ROWS, key)
    for ids in (np.array([0, absent]), torch.tensor([0, absent])):
        with pytest.raises(IndexError, match=str(absent)):
            layout.lookup(ids)
        with pytest.raises(IndexError, match=str(absent)):
            layout.bag(ids, [0])
    rows = FrozenEmbedding(layout, default_id=1)(torch.tensor([0, absent]))
    assert np.array_equal(rows, layout.lookup([0, 1]))


# -- bags --------------------------------------------------------------------------


@pytest.mark.parametrize(("mode", "right"), zip(MODES, (6, 3, 5)))
@pytest.mark.parametrize("key", ["full", "rowwise"])
def test_a_bag_has_one_meaning_or_none(key, mode, right):
    layout = compress(ROWS, key)
    last = FrozenEmbeddingBag(layout, mode, include_last_offset=True)
    plain = FrozenEmbeddingBag(layout, mode)
    ids = torch.tensor([0, 1, 2])
    assert last(ids[:2], torch.tensor([0, 2]))[0].tolist() == [right, right]
    assert plain(ids[:2], torch.tensor([0]))[0].tolist() == [right, right]
    assert plain(ids[None, :2])[0].tolist() == [right, right]
    for offsets in ([0, 2], [0, 2, 0], [0, 2, 4], [1, 3], [0], []):
        with pytest.raises(ValueError, match="offset"):
            last(ids, torch.tensor(offsets, dtype=torch.int64))
    for offsets in ([0, 2, 1], [0, 4], [1, 2], [-1, 2]):
        with pytest.raises(ValueError, match="offset"):
            plain(ids, torch.tensor(offsets))
    with pytest.raises(ValueError, match="needs offsets"):
        last(ids[None])


def test_a_bag_of_composed_rows_adds_up_the_composed_rows():
    values = np.array([[3], [5], [1], [2]], dtype=np.float32)
    product = HashedLayout(values, plain_index([(1, 2), (2, 2)]), 4, 1, "product")
    assert product.bag([0, 3], [0]).tolist() == [[1 * 3 + 2 * 5]]


# -- rounding ----------------------------------------------------------------------

REFUSED = {
    "a scale beyond float16": ([0, 1e6, 2e6, 3e6], 4),
    "a range beyond float32": ([-3e38, 0, 0, 3e38], 8),
    "NaN": ([0, np.nan, 1, 2], 8),
    "infinity": ([0, np.inf, 1, 2], 4),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_no_code_stands_for_is_refused(case):
    row, bits = REFUSED[case]
    for key in ("rowwise", "greedy"):
        with pytest.raises(ValueError, match=r"float16|float32|finite"):
            compress(np.array([row], dtype=np.float32), key, bits=bits)


def test_rows_are_read_as_they_were_written():
    one = np.array([[0, 51, 102, 255]], dtype=np.float32)
    assert np.array_equal(compress(one, "rowwise", bits=8).lookup([0]), one)
    narrow = (1 + np.array([[0, 8, 0, 8]]) * 2.0**-23).astype(np.float32)
    assert np.array_equal(compress(narrow, "greedy", bits=4).lookup([0]), narrow)
    outside = np.array([[-1, 0, 255, 300]], dtype=np.float32)
    ends = np.zeros(1, np.float32), np.full(1, 255, np.float32)
    assert round_between(outside, *ends, bits=8)[0].tolist() == [[0, 0, 255, 255]]


@pytest.mark.parametrize("seed", [0, 1])
def test_the_coin_is_tossed_over_what_was_not_rounded(seed):
    rng = np.random.default_rng(seed)
    held = torch.ones(4096, dtype=torch.float16)
    for _ in range(200):
        held = round_to_format(held.float() + 2.0**-13, "float16", "stochastic", rng)
    # Each weight moves by 200/8 steps on average, with a deviation of 4.7.
    assert abs(held.float().mean().item() - 1 - 200 / 2**13) < 5 * 4.7 / 64 / 2**10
    assert len(held.unique()) > 10


# -- codes and codebooks -----------------------------------------------------------


@pytest.mark.parametrize("bits", [6, 8])
def test_few_rows_have_few_codewords(bits):
    rows = np.random.default_rng(0).normal(size=(50, 8)).astype(np.float32)
    layout = compress(rows, "pq", books=2, bits=bits)
    assert len(layout.codewords) == 2 * 50
    assert np.allclose(layout.lookup(np.arange(50)), rows, atol=1e-6)
    twins = np.repeat([[0.0], [5.0]], 3, axis=0)
    found = cluster_rows(twins, 3, np.random.default_rng(0))
    assert np.unique(found.centroids).tolist() == [0.0, 5.0]


@pytest.mark.parametrize("bits", [8, 4, 2])
def test_bytes_follow_the_bits_and_packed_rows_are_no_table(bits):
    rows = np.random.default_rng(0).normal(size=(100, 64)).astype(np.float32)
    layout = compress(rows, "rowwise", bits=bits)
    assert layout.nbytes == 100 * (64 * bits // 8 + (8 if bits == 8 else 4))
    for taken in (layout, layout.rows):
        with pytest.raises(ValueError, match=r"compressed already|packed codes"):
            compress(taken, "rowwise")


# -- files and modules -------------------------------------------------------------


def test_a_state_holds_the_table_and_a_trace_is_refused():
    frozen = FrozenEmbedding(compress(ROWS, "rowwise", bits=8))
    assert len(frozen.state_dict()) == 2
    with pytest.raises(RuntimeError, match="Missing key"):
        frozen.load_state_dict({})
    with pytest.raises(RuntimeError, match="cannot be traced"):
        torch.jit.trace(frozen, torch.tensor([1]))


@pytest.mark.parametrize("word", ["false", "off", "0", "", 1, 0, None])
def test_a_switch_is_true_or_false(word):
    with pytest.raises(ValueError, match="must be True or False"):
        compress(ROWS, "rowwise", bits=8, symmetric=word)


@pytest.mark.parametrize("harm", ["append", "cut", "flip", "reshape"])
def test_no_byte_of_a_file_is_unaccounted_for(tmp_path, harm):
    path = tmp_path / "table.safetensors"
    TABLE.save(path)
    whole = path.read_bytes()
    changed = {
        "append": whole + b"more bytes",
        "cut": whole[:-1],
        "flip": whole[:-3] + bytes([whole[-3] ^ 1]) + whole[-2:],
        "reshape": whole.replace(b"[3,2]", b"[2,3]"),
    }[harm]
    assert hashlib.sha256(changed).digest() != hashlib.sha256(whole).digest()
    path.write_bytes(changed)
    with pytest.raises(ValueError, match=r"table\.safetensors"):
        load_layout(path)


# -- hashing and remaps ------------------------------------------------------------


@pytest.mark.parametrize("kind", [np.array, torch.tensor])
def test_hashes_are_never_negative(kind):
    ids = kind([0, 1, 2**31, 2**62, 2**63 - 1])
    for numbers in ((1, 1, 0), (-(2**62) + 1, 2**61 + 3, 5), (-1, -1, -1)):
        assert int(mix_ids(ids, *numbers).min()) >= 0


def test_a_composed_row_begins_as_a_plain_one():
    table = QuotientRemainder.make(TableSpec.of_shape(1000, 16), modulus=32)
    rows = table.freeze().lookup(np.arange(1000))
    assert abs(rows.mean()) < 0.002
    # As a plain row of deviation 0.01: 0.04 long.
    assert 0.5 < np.linalg.norm(rows, axis=1).mean() / 0.04 < 2


NUMBERS = np.array([1, 1, 0])


def snapshot(ids, values):
    """Rows of some ids of a table; the last value is every stranger's."""
    rows = np.array(values, dtype=np.float32)[:, None]
    return ProbedLayout(np.array(ids, np.int32), rows, NUMBERS, 100, window=len(ids))


def test_a_stranger_between_known_ids_reads_the_strangers_row():
    remap = snapshot([10, 20, 30], [1, 2, 3, 0])
    asked = [10, 15, 20, 35, 0, 99]
    assert remap.lookup(asked)[:, 0].tolist() == [1, 0, 2, 0, 0, 0]


# -- serving -----------------------------------------------------------------------


def test_an_evicted_id_is_forgotten():
    served = FrozenEmbedding(snapshot([1, 2], [5, 7, 0]))
    served.load_state_dict(FrozenEmbedding(snapshot([1, FREE], [6, 0, 0])).state_dict())
    assert served(torch.tensor([1, 2]))[:, 0].tolist() == [6, 0]
