"""Files of 0.1.0: written here as that wrote them, read as NumPy reads their arrays."""

import hashlib
import json

import numpy as np
import pytest
from safetensors.numpy import save_file

from survey_code import load_layout
from survey_code.hashes import as_signs, mix_ids, mix_many
from survey_code.layouts import DenseLayout
from survey_code.layouts.files import DEEPEST
from survey_code.layouts.first_format import (
    HASHES,
    REBUILT,
    convert_file,
    rebuild_first,
)
from survey_code.layouts.generator import BUCKETS

ROWS = 70  # marks of two words
IDS = np.arange(ROWS)


def write_first(path, layout, shape, arrays, version=1, **other):
    """A file of the first format."""
    described = [
        [name, arrays[name].dtype.str, list(arrays[name].shape)]
        for name in sorted(arrays)
    ]
    head = json.dumps([layout, version, shape, described], sort_keys=True)
    digest = hashlib.sha256(head.encode())
    for name in sorted(arrays):
        digest.update(arrays[name].tobytes())
    contents = {"layout": layout, "version": version, "shape": shape}
    contents |= {"sha256": digest.hexdigest(), **other}
    save_file(arrays, path, {"survey_code": json.dumps(contents, sort_keys=True)})


def table(rows, dim, seed=0):
    rng = np.random.default_rng([rows, dim, seed])
    return rng.normal(size=(rows, dim)).astype(np.float32)


def integers(high, *shape):
    return np.random.default_rng([high, *shape]).integers(high, size=shape)


def stream(codes, bits):
    """Codes one behind the other in one long integer, cut into words of 32 bits."""
    long = sum(int(code) << i * bits for i, code in enumerate(codes.ravel()))
    words = -(-codes.size * bits // 32) + 1
    return np.frombuffer(long.to_bytes(4 * words, "little"), "<u4").copy()


def marks_of(ids, rows=ROWS):
    """A bit for each id, and how many are below each word."""
    long = sum(1 << int(i) for i in ids)
    words = np.frombuffer(long.to_bytes(-(-rows // 64) * 8, "little"), "<u8").copy()
    ranks = [sum(i < 64 * w for i in ids) for w in range(len(words))]
    return {"marks": words, "ranks": np.array(ranks, np.uint32)}


def digits(index):
    """What an index table says of all ids: the digits, from 0."""
    found = []
    for first, second, divisor, modulus in index.tolist():
        mixed = mix_ids(IDS, first, second, 0) if first else IDS
        found.append(mixed // divisor % modulus)
    return found


def without(ids):
    return np.setdiff1d(IDS, ids)


def size(dim, **more):
    return {"num_embeddings": ROWS, "embedding_dim": dim, **more}


# -- each gives the name, the integers, the arrays, and the rows ---------------------


def dense(kind):
    values = table(ROWS, 5).astype(kind)
    return "dense", size(5), {"values": values}, values.astype(np.float32)


def bfloat16():
    bits = (table(ROWS, 3).view(np.uint32) >> 16).astype(np.uint16)
    rows = (bits.astype(np.uint32) << 16).view(np.float32)
    return "dense", size(3), {"values": bits}, rows


def byte_rows(ids, dim):
    """Rows of 8 bits, as PyTorch packs them, and what they stand for."""
    codes = integers(256, len(ids), dim).astype(np.uint8)
    tail = table(len(ids), 2)
    rows = codes.astype(np.float32) * tail[:, :1] + tail[:, 1:]
    return np.concatenate([codes, tail.view(np.uint8)], axis=1), rows


def nibble_rows(ids, dim):
    """The same of 4 bits; `dim` is odd."""
    codes = integers(16, len(ids), dim).astype(np.uint8)
    tail = table(len(ids), 2).astype(np.float16)
    rows = codes.astype(np.float32) * tail[:, :1] + tail[:, 1:]
    packed = codes[:, ::2].copy()
    packed[:, :-1] |= codes[:, 1::2] << 4
    return np.concatenate([packed, tail.view(np.uint8)], axis=1), rows


def rowwise():
    packed, rows = nibble_rows(IDS, 5)
    return "rowwise", size(5, bits=4), {"rows": packed}, rows


def rowwise_groups():
    codes, parameters = integers(256, ROWS, 3).astype(np.uint8), table(2, 2)
    scale, bias = parameters[(IDS >= 9).astype(int)].T
    arrays = {"rows": codes, "parameters": parameters, "starts": np.array([0, 9])}
    rows = codes.astype(np.float32) * scale[:, None] + bias[:, None]
    return "rowwise", size(3, bits=8), arrays, rows


def tiers(often, keys=True):
    """Numbers for a few ids, 8 bits for some, 4 for the others."""
    some = without(often)[::3]
    rest = np.setdiff1d(without(often), some)
    rows = np.empty((ROWS, 5), np.float32)
    rows[often] = values = table(len(often), 5)
    rows8, rows[some] = byte_rows(some, 5)
    rows4, rows[rest] = nibble_rows(rest, 5)
    keys = np.concatenate([often, some]).astype(np.int32)
    arrays = {"values": values, "rows8": rows8, "rows4": rows4, "keys": keys}
    return "tiered", size(5), arrays, rows


def one_tier():
    packed, rows = byte_rows(IDS, 5)
    return "tiered", size(5), {"rows8": packed}, rows


def binary():
    bits, scales = integers(2, ROWS, 2, 5).astype(np.uint8), table(ROWS, 2)
    packed = np.packbits(bits, axis=2, bitorder="little")
    rows = (2 * bits.astype(np.float32) - 1) * scales[:, :, None]
    arrays = {"packed": packed, "scales": scales}
    return "binary", size(10), arrays, rows.reshape(ROWS, 10)


def ragged():
    rows, lengths = table(ROWS, 4), IDS % 5
    rows[np.arange(4) >= lengths[:, None]] = 0
    starts = [lengths[:block].sum() for block in range(0, ROWS, 32)]
    values = np.concatenate([row[:n] for row, n in zip(rows, lengths)])
    arrays = {"values": values, "lengths": lengths.astype(np.uint8)}
    return "ragged", size(4), arrays | {"starts": np.array(starts, np.uint32)}, rows


def sparse():
    rows = table(ROWS, 6) * (integers(3, ROWS, 6) == 0)
    owner, columns = np.nonzero(rows)
    ends = np.searchsorted(owner, np.arange(ROWS + 1))
    arrays = {"values": rows[owner, columns], "columns": columns.astype(np.uint8)}
    arrays["offsets"] = ends.astype(np.uint32)
    return "sparse", size(6, block_rows=1), arrays, rows


def anchors():
    mixture = table(ROWS, 4) * (integers(2, ROWS, 4) == 0)
    owner, columns = np.nonzero(mixture)
    ends = np.searchsorted(owner, np.arange(ROWS + 1))
    arrays = {"anchors": table(4, 5), "weights": mixture[owner, columns]}
    arrays |= {"columns": columns.astype(np.uint8), "offsets": ends.astype(np.uint32)}
    return "anchors", size(5), arrays, mixture @ arrays["anchors"]


def flat():
    values, pair, signs = table(1, 40)[0], np.array([37, 55]), np.array([21, 9])
    rows = np.empty((ROWS, 7), np.float32)
    drawn = zip(
        mix_many(IDS, np.array([37, 55, 0]), 3), mix_many(IDS, np.array([21, 9, 0]), 3)
    )
    for block, (mixed, other) in enumerate(drawn):
        for at in range(3 * block, min(3 * block + 3, 7)):
            entry = values[mixed % (40 - 3 + 1) + at - 3 * block]
            rows[:, at] = entry * as_signs(other)
    arrays = {"values": values, "multipliers": pair, "signs": signs}
    return "flat", size(7, block_len=3, open_ids=1), arrays, rows


def generator():
    first, bias, second, shift = table(4, 6), table(6, 1), table(6, 3), table(3, 1)
    pair = np.array([37, 55])
    codes = np.stack(
        [mixed % BUCKETS for mixed in mix_many(IDS, np.array([37, 55, 0]), 4)], axis=1
    )
    signals = (codes * (2 / (BUCKETS - 1)) - 1).astype(np.float32)
    rows = np.maximum(signals @ first + bias[:, 0], 0) @ second + shift[:, 0]
    parts = [first, bias, second, shift]
    values = np.concatenate([part.ravel() for part in parts])
    shape = size(3, codes=4, width=6, layers=1, distribution_code=0,
                 activation_code=0, open_ids=0)  # fmt: skip
    return "generator", shape, {"values": values, "multipliers": pair}, rows


def grouped(groups, counts, how):
    """Groups of widths 4, 2, 3 (and 1): full, short, none, in this order."""
    widths, dim = [4, 2, 0, 3][: len(counts)], 4
    rows, arrays = np.zeros((ROWS, dim), np.float32), {}
    tables = [table(n, w, g) for g, (n, w) in enumerate(zip(counts, widths))]
    matrices = [table(w, dim, 9) for w in widths]
    columns = [np.arange(w)[::-1] for w in widths]
    for g, (own, width) in enumerate(zip(tables, widths)):
        if width == dim:
            rows[groups == g] = own
        elif how == "columns":
            rows[np.ix_(groups == g, columns[g])] = own
        else:
            rows[groups == g] = own @ matrices[g]
    short = [m.ravel() for m, w in zip(matrices, widths) if 0 < w < dim]
    if how == "columns":
        arrays["columns"] = np.concatenate(columns).astype(np.uint16)
    else:
        arrays["projections"] = np.concatenate(short)
    arrays["values"] = np.concatenate([own.ravel() for own in tables])
    arrays["groups"] = np.array(list(zip(counts, widths)), np.int32)
    return "grouped", size(dim), arrays, rows


def fields(counts, how="projections"):
    return grouped(np.repeat(np.arange(len(counts)), counts), counts, how)


def remapped(groups, how="projections"):
    counts = np.bincount(groups, minlength=4).tolist()
    name, shape, arrays, rows = grouped(groups, counts, how)
    planes = [marks_of(np.flatnonzero(groups >> p & 1), 512)["marks"] for p in (0, 1)]
    arrays["planes"] = np.array([planes])
    arrays["before"] = np.zeros((1, 4), np.uint32)
    return name, shape, arrays, rows


def hashed(combine, index, dim=4, **options):
    """Rows that digits name, with own rows for the ids in `keys`."""
    index = np.array(index)
    keys, signs = options.get("keys"), options.get("signs")
    pieces = len(index) if combine == 2 else 1
    parts, tables = [], []
    for j, digit in enumerate(digits(index)):
        tables.append(table(int(index[j, 3]), dim // pieces, j))
        parts.append(tables[-1][digit])
    rows = [sum, np.prod, np.concatenate][combine](
        *((parts,) if combine == 0 else (parts, 0) if combine == 1 else (parts, 1))
    )
    arrays = {"values": np.concatenate(tables), "index": index}
    if signs is not None:
        arrays["signs"] = np.array(signs)
        rows = rows * as_signs(mix_ids(IDS, *signs, 0))[:, None].astype(np.float32)
    if keys is not None:
        own = table(len(keys), dim, 8)
        rows[keys] = own
        own = own.reshape(-1, dim // pieces)
        arrays["values"] = np.concatenate([arrays["values"], own])
        arrays["keys"] = np.array(keys, np.int32)
    shape = size(dim, combine_code=combine, open_ids=options.get("open_ids", 0))
    return "hashed", shape | {"shared": 0}, arrays, rows


def weighted():
    """Two rows of one table, times weights, plus a bias; keys besides."""
    index, weights = np.array([[37, 55, 1, 9], [3, 5, 1, 9]]), table(ROWS, 3)
    values, keys = table(9 + 2, 4), np.array([8, 64], np.int32)
    one, two = digits(index)
    rows = values[one] * weights[:, :1] + values[two] * weights[:, 1:2]
    rows += weights[:, 2:]
    rows[keys] = values[9:]
    arrays = {"values": values, "index": index, "weights": weights, "keys": keys}
    return "hashed", size(4, combine_code=0, open_ids=0, shared=1), arrays, rows


def path():
    """A row of one table through the network that another digit names."""
    index, values = np.array([[0, 0, 1, 9], [0, 0, 9, 8]]), table(9 + 1, 2)
    paths, keys = table(8, 2 * 3 + 3 + 3 * 2 + 2), np.array([5], np.int32)
    rows = np.empty((ROWS, 2), np.float32)
    for i in range(ROWS):
        first, bias, second, shift = np.split(paths[i // 9], [6, 9, 15])
        hidden = np.maximum(values[i % 9] @ first.reshape(2, 3) + bias, 0)
        rows[i] = hidden @ second.reshape(3, 2) + shift
    rows[5] = values[9]
    arrays = {"values": values, "index": index, "paths": paths, "keys": keys}
    return "hashed", size(2, combine_code=3, open_ids=0, shared=0), arrays, rows


def codebook(combine=0, starts=(0,), heads=(), own=None, half=False, **extra):
    """Two books of eight codewords; `own` says what the heads have."""
    heads, dim, groups = np.array(heads, int), 4, len(starts)
    words = table(16 * groups, 4 if combine else 2)
    words = words.astype(np.float16) if half else words
    codes, firsts = integers(8, ROWS, 2), np.arange(2 * groups).reshape(-1, 2) * 8
    codes[heads] %= 4
    group = np.searchsorted(starts, IDS, side="right") - 1
    parts = words[codes + firsts[group]].astype(np.float32)  # (rows, books, width)
    arrays = {"codewords": words, "firsts": firsts.astype(np.int32)}
    if "index" in extra:
        arrays["index"] = np.array(extra["index"])
        ends = arrays["index"][:, 3].cumsum()
        arrays["hashed"] = table(ends[-1], 2, 5)
        for j, digit in enumerate(digits(arrays["index"])):
            parts[:, j] += arrays["hashed"][digit + (ends[0] if j else 0)]
    rows = parts[:, 0] + parts[:, 1] if combine else parts.reshape(ROWS, dim)
    if "rotation" in extra:
        arrays["rotation"] = extra["rotation"]
        rows = np.einsum("mi,ij->mj", rows, arrays["rotation"])
    arrays["codes"] = stream(np.delete(codes, heads, axis=0), 3)
    if groups > 1:
        arrays["starts"] = np.array(starts)
    if own == "codes":
        arrays["head_codes"] = stream(codes[heads], 2)
    elif own == "rows":
        values = table(len(heads), dim, 3)
        arrays["head_values"] = values.astype(np.float16) if half else values
        rows[heads] = arrays["head_values"]
    if own:
        arrays |= marks_of(heads)
    head_bits = 2 if own == "codes" else 0
    shape = size(dim, bits=3, head_bits=head_bits, combine_code=combine)
    return "codebook", shape, arrays, rows


def train(cached=(), kind=np.int32):
    """Three cores, 4 x 5 x 4 rows of 2 x 3 x 1 entries, ranks 2 and 3."""
    shapes = np.array([[4, 2, 1, 2, 1], [5, 3, 2, 3, 1], [4, 1, 3, 1, 1]])
    cores = [table(4, 4).reshape(4, 1, 2, 2), table(5, 18).reshape(5, 2, 3, 3),
             table(4, 3).reshape(4, 3, 1, 1)]  # fmt: skip
    rows = np.empty((ROWS, 6), np.float32)
    for i in range(ROWS):
        product = np.einsum(
            "aib,bjc,ckd->aijkd", cores[0][i // 20], cores[1][i // 4 % 5],
            cores[2][i % 4],
        )  # fmt: skip
        rows[i] = product.ravel()
    arrays = {"values": np.concatenate([core.ravel() for core in cores])}
    arrays["shapes"] = shapes
    if len(cached):
        arrays["cached_ids"] = np.array(cached, kind)
        rows[cached] = arrays["cached_rows"] = table(len(cached), 6)
    return "tensor_train", size(6), arrays, rows


PLAIN, MIXED = [[0, 0, 1, 9], [0, 0, 9, 8]], [[37, 55, 1, 9], [3, 5, 1, 7]]
MANY = np.flatnonzero(IDS % 5)  # so many that marks are smaller than a list

EXAMPLES = {
    "dense": lambda: dense(np.float32),
    "dense in half": lambda: dense(np.float16),
    "dense in bfloat16": bfloat16,
    "rows of codes": rowwise,
    "groups of codes": rowwise_groups,
    "tiers": lambda: tiers(np.array([3, 64])),
    "tiers, marked": lambda: tiers(MANY),
    "a tier": one_tier,
    "binary": binary,
    "ragged": ragged,
    "sparse": sparse,
    "anchors": anchors,
    "flat": flat,
    "generator": generator,
    "fields": lambda: fields([20, 30, 12, 8]),
    "fields, spread": lambda: fields([20, 30, 12, 8], "columns"),
    "fields, one empty": lambda: fields([20, 0, 12, 38]),
    "fields, no short one left": lambda: fields([20, 0, 50]),
    "fields, spread, one empty": lambda: fields([20, 0, 12, 38], "columns"),
    "groups": lambda: remapped(IDS % 4),
    "groups, one empty": lambda: remapped(IDS % 2 * 3),
    "groups, ranges once one is gone": lambda: remapped(np.where(IDS < 9, 0, 3)),
    "groups, spread, one empty": lambda: remapped(
        np.array([0, 1, 3])[IDS % 3], "columns"
    ),
    "hashed sum": lambda: hashed(0, MIXED, signs=[21, 9]),
    "hashed product": lambda: hashed(1, PLAIN),
    "hashed concat": lambda: hashed(2, PLAIN, open_ids=1),
    "keys": lambda: hashed(0, MIXED, keys=[0, 13, 69], open_ids=1),
    "keys, signed": lambda: hashed(0, MIXED, signs=[21, 9], keys=[0, 13, 69]),
    "keys, concat": lambda: hashed(2, PLAIN, keys=[7]),
    "keys, marked": lambda: hashed(1, PLAIN, keys=MANY),
    "all ids are keys": lambda: hashed(0, MIXED, keys=IDS),
    "keys, weighted": weighted,
    "keys, paths": path,
    "codebook": codebook,
    "codebook sum": lambda: codebook(1, half=True),
    "codebook turned": lambda: codebook(rotation=table(4, 4)),
    "codebook groups": lambda: codebook(starts=(0, 10, 66)),
    "helpers": lambda: codebook(index=MIXED),
    "helpers turned": lambda: codebook(index=PLAIN, rotation=table(4, 4), half=True),
    "heads with codes": lambda: codebook(heads=[0, 9, 65], own="codes"),
    "heads with codes, marked": lambda: codebook(1, heads=MANY, own="codes"),
    "all heads with codes": lambda: codebook(heads=IDS, own="codes"),
    "no heads with codes": lambda: codebook(heads=[], own="codes"),
    "heads with codes, all else": lambda: codebook(
        starts=(0, 10), heads=[0, 9, 65], own="codes", index=MIXED,
        rotation=table(4, 4),
    ),
    "heads with rows": lambda: codebook(heads=[0, 9, 65], own="rows"),
    "heads with rows, marked": lambda: codebook(1, heads=MANY, own="rows", half=True),
    "all heads with rows": lambda: codebook(heads=IDS, own="rows"),
    "no heads with rows": lambda: codebook(heads=[], own="rows"),
    "heads with rows, turned": lambda: codebook(
        heads=[0, 9, 65], own="rows", rotation=table(4, 4)
    ),
    "heads with rows, groups": lambda: codebook(
        1, starts=(0, 10, 66), heads=[0, 9, 10, 65], own="rows"
    ),
    "heads with rows, groups of heads alone": lambda: codebook(
        starts=(0, 2, 5, 7, 68), heads=[0, 1, 5, 6, 68, 69], own="rows"
    ),
    "heads with rows, one group left": lambda: codebook(
        starts=(0, 2, 5), heads=[0, 1, *range(5, 70)], own="rows"
    ),
    "heads with rows, helpers": lambda: codebook(
        starts=(0, 10), heads=[0, 9, 65], own="rows", index=MIXED
    ),
    "train": train,
    "train, cached": lambda: train(cached=[0, 3, 69]),
    "train, cached by longer ids": lambda: train(cached=[5], kind=np.int64),
    "train, cached, marked": lambda: train(cached=MANY),
}  # fmt: skip

# Sums and products of matrices, whose order of adding is another one here.
SUMMED = ("anchors", "generator", "fields", "groups", "paths", "train")
# A few bytes more: helpers ask heads by number, so that these have codes too.
LARGER = ("heads with rows, helpers",)


@pytest.fixture(params=EXAMPLES)
def example(request):
    return request.param


# -- rows --------------------------------------------------------------------------


def test_rows_are_what_they_were(example, tmp_path):
    name, shape, arrays, rows = EXAMPLES[example]()
    write_first(tmp_path / "old", name, shape, arrays)
    layout = convert_file(tmp_path / "old", tmp_path / "new")
    loaded = load_layout(tmp_path / "new")
    ids = np.random.default_rng(0).permutation(ROWS)
    for found in (layout, loaded):
        assert (found.num_embeddings, found.embedding_dim) == rows.shape
        got = found.lookup(ids)
        if any(word in example for word in SUMMED):
            np.testing.assert_allclose(got, rows[ids], rtol=1e-5, atol=1e-6)
        else:
            np.testing.assert_array_equal(got, rows[ids])
    # Each hash had two numbers, where it has three now.
    hashes = sum(
        len(array) if "index" in key else 1
        for key, array in arrays.items()
        if key in HASHES and array.dtype == np.int64
    )
    bytes_before = sum(array.nbytes for array in arrays.values()) + 8 * hashes
    assert (layout.nbytes > bytes_before) == (example in LARGER)
    assert layout.open_ids == shape.get("open_ids", 0)


def nesting(blueprint):
    """A blueprint in words: each layout, and the parts that are layouts."""
    parts = [nesting(part) for part in blueprint["parts"].values()]
    return blueprint["layout"] + (f"({', '.join(parts)})" if parts else "")


@pytest.mark.parametrize(
    ("example", "wanted"),
    {
        "tiers": "routed(dense, rowwise, rowwise)",
        "a tier": "rowwise",
        "keys": "routed(dense, hashed)",
        "helpers turned": "turned(added(codebook(packed), hashed))",
        "heads with codes": "codebook(routed(packed, packed))",
        "all heads with codes": "codebook(packed)",
        "no heads with codes": "codebook(packed)",
        "all heads with rows": "dense",
        "no heads with rows": "codebook(packed)",
        "heads with rows, turned": "routed(dense, turned(codebook(packed)))",
        "train, cached": "routed(dense, tensor_train)",
        "groups, one empty": "grouped",
    }.items(),
)
def test_what_stood_apart_is_a_part(example, wanted):
    assert nesting(rebuild_first(*EXAMPLES[example]()[:3]).blueprint()) == wanted


def test_ids_that_were_never_seen_are_read_as_before(tmp_path):
    name, shape, arrays, _ = EXAMPLES["keys"]()
    layout = rebuild_first(name, shape, arrays)
    ids = np.array([ROWS, 2**31 + 13, 2**32, 2**62])
    first, second = (
        mix_ids(ids, *pair, 0) % modulus
        for *pair, _, modulus in arrays["index"].tolist()
    )
    wanted = arrays["values"][first] + arrays["values"][9 + second]
    np.testing.assert_array_equal(layout.lookup(ids), wanted)


def test_every_layout_of_the_first_format_has_an_example():
    names = {make()[0] for make in EXAMPLES.values()}
    assert len(names) == 13 and names >= set(REBUILT)
    for name, (_, arrays, _) in REBUILT.items():
        made = [make() for make in EXAMPLES.values()]
        seen = {key for own, _, held, _ in made if own == name for key in held}
        assert set(arrays) - seen <= {"rows2", "weight_index"}


# -- files -------------------------------------------------------------------------


@pytest.fixture
def old(tmp_path):
    """A file of the first format, in a folder of its own."""
    path = tmp_path / "table"
    write_first(path, *EXAMPLES["heads with codes"]()[:3])
    return path


def test_loading_the_first_format_names_the_command(old):
    with pytest.raises(ValueError, match=r"table: .*first format.*survey-code convert"):
        load_layout(old)


def test_a_file_may_be_converted_in_its_place(old, tmp_path):
    convert_file(old, tmp_path / "new")
    convert_file(old, old)
    assert old.read_bytes() == (tmp_path / "new").read_bytes()
    assert len(list(tmp_path.iterdir())) == 2


def refused(old, words):
    """Converting is one error with the path, and writes nothing."""
    new = old.with_name("new")
    before = old.read_bytes()
    with pytest.raises(ValueError, match=f"table: .*{words}"):
        convert_file(old, new)
    assert not new.exists() and old.read_bytes() == before


def test_the_second_format_is_refused(tmp_path):
    DenseLayout(np.ones((3, 2), np.float32)).save(tmp_path / "table")
    refused(tmp_path / "table", "nothing to convert")


def test_any_flipped_bit_is_refused(old):
    whole = old.read_bytes()
    for place in range(0, len(whole), 7):
        broken = bytearray(whole)
        broken[place] ^= 1 << place % 8
        old.write_bytes(broken)
        refused(old, "")


def test_a_file_cut_short_is_refused(old):
    whole = old.read_bytes()
    for length in range(0, len(whole), 41):
        old.write_bytes(whole[:length])
        refused(old, "")


def test_files_of_others_are_refused(tmp_path):
    (tmp_path / "table").write_text("id,vector\n")
    refused(tmp_path / "table", "not a readable safetensors file")
    save_file({"weight": np.ones((3, 2))}, tmp_path / "table")
    refused(tmp_path / "table", "not a layout of this package")


VALUES = {"values": np.ones((ROWS, 2), np.float32)}


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (("crystal", size(2), VALUES), "no layout 'crystal'"),
        (("routed", size(2), VALUES), "no layout 'routed'"),
        (("dense", size(2), VALUES, 2), "not of the first format, but of version 2"),
        (("dense", size(2), VALUES, "1"), "description is damaged"),
        (("dense", size(2), VALUES, True), "description is damaged"),
        ((["dense"], size(2), VALUES), "description is damaged"),
        (("dense", [70, 2], VALUES), "description is damaged"),
        (("dense", size("2"), VALUES), "description is damaged"),
        (("dense", size(3), VALUES), "values must be"),
        (("tiered", {"num_embeddings": ROWS}, VALUES), "lacks"),
        (("tiered", size(2), {**VALUES, "more": VALUES["values"]}), "does not know"),
        (("tiered", size(2), {}), "there must be a tier"),
        (("tiered", size(3), VALUES), "not .70, 3."),
    ],
)
def test_well_hashed_nonsense_is_refused(content, words, tmp_path):
    write_first(tmp_path / "table", *content)
    refused(tmp_path / "table", words)


def test_parts_are_of_the_second_format(tmp_path):
    write_first(tmp_path / "table", "dense", size(2), VALUES, parts={})
    refused(tmp_path / "table", "nothing to convert")
    with pytest.raises(ValueError, match="table: damaged"):
        load_layout(tmp_path / "table")


def test_a_missing_file_is_not_found(tmp_path):
    with pytest.raises(FileNotFoundError):
        convert_file(tmp_path / "table", tmp_path / "new")


def bend_arrays(arrays):
    """Arrays with one of them gone, of another type, shape or content."""
    for name, array in arrays.items():
        yield {key: held for key, held in arrays.items() if key != name}
        kinds = (np.float64, np.int32, np.int64, np.uint16, np.uint64, np.float32)
        bent = [array.astype(kind) for kind in kinds if array.dtype != kind]
        bent += [array[:-1], array[:0], array[:1], array[None], array.sum()]
        bent += [np.concatenate([array, array]), array[::-1], array[..., None]]
        if array.dtype.kind in "iu":
            top = np.iinfo(array.dtype)
            bent += [np.full_like(array, number) for number in (0, 1, top.min, top.max)]
        for other in bent:
            yield {**arrays, name: np.asarray(other)}


def bend_integers(shape):
    for name, number in shape.items():
        yield {key: held for key, held in shape.items() if key != name}
        for other in (number - 1, number + 1, 0, -1, 3, 2**31, 2**62):
            yield {**shape, name: other}


def test_contents_that_contradict_each_other_are_value_errors(example):
    name, shape, arrays, _ = EXAMPLES[example]()
    contents = [(shape, bent) for bent in bend_arrays(arrays)]
    contents += [(bent, arrays) for bent in bend_integers(shape)]
    refusals = 0
    for integers_, held in contents:
        try:
            layout = rebuild_first(name, integers_, held)
        except ValueError:
            refusals += 1
            continue
        if layout.embedding_dim < 100:  # arrays do not bound it everywhere
            rows = layout.lookup(np.arange(min(layout.num_embeddings, ROWS)))
            assert rows.shape[1] == integers_["embedding_dim"]
    assert refusals > len(contents) // 2


BEYOND = np.array([1, 1 << (ROWS - 64)], np.uint64)  # the first id, and id ROWS


@pytest.mark.parametrize(
    ("example", "other", "words"),
    [
        ("heads with rows", {"marks": BEYOND}, "beyond the last id"),
        ("no heads with rows", {"head_values": table(3, 4)}, "have the length 0"),
        ("helpers", {"index": np.array(MIXED[:1])}, "index must have the length 2"),
        ("heads with rows", {"head_codes": np.zeros(3, np.uint32)}, "codes or values"),
        ("codebook", {"ranks": np.zeros(2, np.uint32)}, "heads need marks"),
        ("helpers", {"combine_code": 1, "codewords": table(16, 4)}, "combine 'concat'"),
        ("groups, one empty", {"before": np.ones((1, 4), np.uint32)}, "do not fit"),
        ("a tier", {"keys": np.array([1], np.int32)}, "keys for two of them"),
        ("train", {"cached_rows": table(3, 6)}, "cached_ids must be"),
    ],
)
def test_what_is_wrong_is_said(example, other, words):
    name, shape, arrays, _ = EXAMPLES[example]()
    shape = {key: other.get(key, number) for key, number in shape.items()}
    more = {key: it for key, it in other.items() if key not in shape}
    with pytest.raises(ValueError, match=words):
        rebuild_first(name, shape, {**arrays, **more})


def test_the_deepest_of_them_is_a_file(tmp_path):
    """Heads, helpers, a rotation and codes within each other are not too deep."""
    layout = rebuild_first(*EXAMPLES["heads with codes, all else"]()[:3])

    def depth(blueprint):
        return 1 + max(map(depth, blueprint["parts"].values()), default=0)

    assert 4 <= depth(layout.blueprint()) <= DEEPEST
