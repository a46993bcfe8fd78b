"""Compiled look-ups and bags: what NumPy reads, whoever else is at work."""

import copy
import os
import pickle
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st
from layout_examples import EXAMPLES

from survey_code import compress, load_layout
from survey_code.kernels.cpu import compile as compiling, reader
from survey_code.kernels.cpu.compile import find_compiler
from survey_code.layouts import DenseLayout, Layout
from survey_code.layouts.layout import LARGE_CALL

needs_compiler = pytest.mark.skipif(find_compiler() is None, reason="no compiler")
RNG = np.random.default_rng(0)
WEIGHT = RNG.standard_normal((500, 24), dtype=np.float32)
# What a matrix product, a network or a train computes has no order of its own.
PRODUCTS = ("grouped", "groups", "train", "path", "turned", "nesting")
# What no compiled code reads: NumPy multiplies their matrices.
BY_NUMPY = ("turned", "generator")


def by_numpy(layout: Layout, monkeypatch) -> Layout:
    """A copy that NumPy reads."""
    monkeypatch.setenv("SURVEY_CODE_KERNELS", "numpy")
    twin = copy.copy(layout)
    assert not twin.prepare()
    monkeypatch.delenv("SURVEY_CODE_KERNELS")
    return twin


def draw_bags(rows):
    """Ids, offsets of empty and longer bags, and a weight for each id."""
    ids = RNG.integers(0, rows, 700)
    ids[:9] = rows - 1
    offsets = np.sort(RNG.integers(0, 650, 90))
    offsets[0], offsets[5:9] = 0, offsets[5]
    return ids, offsets, RNG.standard_normal(700).astype(np.float32)


@needs_compiler
@pytest.mark.parametrize("name", EXAMPLES)
def test_every_layout_reads_as_numpy_does(name, monkeypatch):
    layout = EXAMPLES[name]()
    plain = by_numpy(layout, monkeypatch)
    if not layout.prepare():
        assert any(word in name for word in (*BY_NUMPY, "nesting"))
        return
    ids, offsets, weights = draw_bags(layout.num_embeddings)
    borders, last = np.append(offsets, len(ids)), {"include_last_offset": True}
    calls = [
        lambda one: one.lookup(ids),
        lambda one: one.lookup(ids.reshape(7, 100).astype(np.int32)),
        lambda one: one.bag(ids[:600].reshape(60, 10), mode="mean"),
        lambda one: one.bag(ids, offsets, weights),
        lambda one: one.bag(ids, offsets, mode="mean", padding_idx=int(ids[3])),
        lambda one: one.bag(ids, borders, mode="max", padding_idx=-1, **last),
        lambda one: one.bag(ids, borders, **last),
    ]
    for call in calls:
        found, wanted = call(layout), call(plain)
        if any(word in name for word in PRODUCTS):
            scale = np.abs(wanted).max(initial=1e-30)
            np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-5 * scale)
        else:
            np.testing.assert_array_equal(found, wanted)


@pytest.fixture(scope="module")
def layouts():
    """Some that gather, as they are and as NumPy reads them."""
    made = {
        "dense": DenseLayout.from_weight(WEIGHT),
        "4 bits": compress(WEIGHT, "rowwise", bits=4),
        "codes": compress(WEIGHT, "pq", books=3, bits=4),
        "sparse": compress(WEIGHT * (RNG.random((500, 24)) < 0.3), "magnitude"),
        "shared": compress(WEIGHT, "clustering", counts=np.arange(500), clusters=30),
    }
    with pytest.MonkeyPatch.context() as patch:
        return {name: (one, by_numpy(one, patch), one.prepare())
                for name, one in made.items()}  # fmt: skip


@st.composite
def calls(draw):
    """Arguments of a bag, some of them bad."""
    count = draw(st.integers(0, 40))
    ids = draw(st.lists(st.integers(-1, 505 if draw(st.booleans()) else 499),
                        min_size=count, max_size=count))  # fmt: skip
    if draw(st.booleans()):
        ids = [abs(number) for number in ids]
    offsets = sorted(draw(st.lists(st.integers(0, count + 1), max_size=8)))
    if draw(st.integers(0, 9)):
        offsets = [0, *(min(place, count) for place in offsets)]
        if draw(st.booleans()):
            offsets.append(count)
    mode = draw(st.sampled_from(["sum", "mean", "max"]))
    return np.array(ids, dtype=draw(st.sampled_from([np.int32, np.int64]))), {
        "offsets": np.array(offsets, dtype=np.int64),
        "mode": mode,
        "padding_idx": draw(st.sampled_from([None, 0, 3, -1])),
        "include_last_offset": draw(st.booleans()),
        "per_sample_weights": np.linspace(-1, 2, count, dtype=np.float32)
        if mode == "sum" and draw(st.booleans())
        else None,
    }


def outcome(call, *arguments, **options):
    """What a call gives: an array, or the error's type and text."""
    try:
        return call(*arguments, **options)
    except (IndexError, ValueError) as error:
        return type(error), str(error)


@needs_compiler
@given(calls())
def test_bags_and_errors_are_those_of_numpy(layouts, asked):
    ids, options = asked
    for layout, plain, compiled in layouts.values():
        assert compiled
        found = outcome(layout.bag, ids, **options)
        wanted = outcome(plain.bag, ids, **options)
        if isinstance(wanted, tuple):
            assert found == wanted
        else:
            np.testing.assert_array_equal(found, wanted)
        found, wanted = outcome(layout.lookup, ids), outcome(plain.lookup, ids)
        if isinstance(wanted, tuple):
            assert found == wanted
        else:
            np.testing.assert_array_equal(found, wanted)


@needs_compiler
@pytest.mark.parametrize("dim", [*range(1, 41), 63, 64, 65, 96, 127, 128, 200, 257])
@pytest.mark.parametrize("bits", [8, 4, 2])
def test_codes_are_decoded_at_every_width(dim, bits, monkeypatch):
    """A row may be cut in the middle of a byte, and ends at the table's end."""
    weight = RNG.standard_normal((9, dim), dtype=np.float32)
    rounded = [
        compress(weight, "rowwise", bits=bits, per=per) for per in ("row", "table")
    ]
    for layout in rounded if dim < 42 else rounded[:1]:
        plain = by_numpy(layout, monkeypatch)
        assert layout.prepare()
        ids = np.arange(9)
        np.testing.assert_array_equal(layout.lookup(ids), plain.lookup(ids))
        np.testing.assert_array_equal(layout.bag(ids, [0, 4]), plain.bag(ids, [0, 4]))


@needs_compiler
def test_any_number_of_threads_gives_the_same(layouts):
    ids, offsets, weights = draw_bags(500)
    many = np.tile(ids, 40)
    borders = np.concatenate([offsets + 700 * k for k in range(40)])
    wanted, threads = {}, torch.get_num_threads()
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            for name, (layout, _, _) in layouts.items():
                assert len(reader.split(len(borders), many.size * 24)) == min(count, 2)
                found = (layout.bag(many, borders, np.tile(weights, 40)),
                         layout.lookup(many))  # fmt: skip
                for own, first in zip(found, wanted.setdefault(name, found)):
                    np.testing.assert_array_equal(own, first)
                bad = many.copy()
                bad[-1] = 500
                with pytest.raises(IndexError, match="id 500"):
                    layout.bag(bad, borders)
    finally:
        torch.set_num_threads(threads)


@needs_compiler
def test_several_callers_at_once_do_not_disturb_each_other(layouts):
    layout, plain, _ = layouts["codes"]
    sets = [RNG.integers(0, 500, 300) for _ in range(40)]
    with ThreadPoolExecutor(8) as pool:
        for ids, rows in zip(sets, pool.map(layout.lookup, sets)):
            np.testing.assert_array_equal(rows, plain.lookup(ids))


@needs_compiler
def test_code_is_compiled_for_a_large_call_and_then_serves_small_ones():
    layout = DenseLayout.from_weight(WEIGHT)
    layout.lookup([1, 2])
    assert layout.reader is None
    layout.lookup(np.zeros(LARGE_CALL // 24 + 1, dtype=int))
    assert layout.reader.reader is not None
    assert layout.lookup([3]).tolist() == WEIGHT[[3]].tolist()


@needs_compiler
def test_copies_find_their_own_arrays(tmp_path):
    layout = compress(WEIGHT, "rowwise", bits=8)
    assert layout.prepare()
    before = layout.lookup([7]).copy()
    layout.save(tmp_path / "t.safetensors")
    twins = [copy.deepcopy(layout), pickle.loads(pickle.dumps(layout)),
             load_layout(tmp_path / "t.safetensors")]  # fmt: skip
    for twin in twins:
        assert twin.reader is None and twin.prepare()
    layout.rows[:] = 0
    assert not layout.lookup([7]).any()
    for twin in twins:
        np.testing.assert_array_equal(twin.lookup([7]), before)


@needs_compiler
def test_an_array_that_is_replaced_is_read_from_then_on():
    nested = EXAMPLES["tiered"]()
    ids, part = np.arange(nested.num_embeddings), nested.parts[0]
    assert nested.prepare() and isinstance(part, DenseLayout)
    before = nested.lookup(ids)
    part.values = part.values * 2
    doubled = nested.lookup(ids)
    assert (doubled != before).any()
    again = pickle.loads(pickle.dumps(nested))
    np.testing.assert_array_equal(doubled, again.lookup(ids))
    dense = DenseLayout.from_weight(WEIGHT)
    assert dense.prepare()
    dense.values = WEIGHT[::-1]  # and its rows lie the other way round
    np.testing.assert_array_equal(dense.lookup([0]), WEIGHT[[-1]])


@needs_compiler
def test_a_mapped_file_and_arrays_with_gaps_are_read():
    wide = np.zeros((500, 48), dtype=np.float32)
    wide[:, ::2] = WEIGHT
    gaps = DenseLayout(wide[:, ::2])
    fixed = WEIGHT.copy()
    fixed.flags.writeable = False
    for layout in (gaps, DenseLayout(fixed)):
        assert layout.prepare()
        np.testing.assert_array_equal(layout.lookup([5, 499]), WEIGHT[[5, 499]])


def test_without_a_compiler_numpy_reads(monkeypatch, layouts):
    monkeypatch.setattr(compiling, "find_compiler", lambda: None)
    compiling.load_library.cache_clear()
    layout = DenseLayout.from_weight(WEIGHT)
    try:
        assert not layout.prepare()
        np.testing.assert_array_equal(layout.lookup([5]), WEIGHT[[5]])
        many = np.zeros(LARGE_CALL, dtype=int)
        assert (layout.lookup(many) == WEIGHT[0]).all()
    finally:
        compiling.load_library.cache_clear()


def test_a_compiler_that_fails_is_warned_of_and_numpy_reads(monkeypatch, tmp_path):
    broken = tmp_path / "c++"
    broken.write_text("#!/bin/sh\necho no such machine >&2\nexit 1\n")
    broken.chmod(0o755)
    monkeypatch.setattr(compiling, "find_compiler", lambda: (str(broken),))
    monkeypatch.setenv("SURVEY_CODE_CACHE", str(tmp_path / "cache"))
    compiling.load_library.cache_clear()
    layout = DenseLayout.from_weight(WEIGHT)
    try:
        with pytest.warns(UserWarning, match="no such machine"):
            assert not layout.prepare()
        assert not layout.prepare()  # said once
        np.testing.assert_array_equal(layout.lookup([5]), WEIGHT[[5]])
        assert not list((tmp_path / "cache").rglob("*.so"))
    finally:
        compiling.load_library.cache_clear()


def test_threads_that_compile_at_once_each_move_a_whole_file(monkeypatch, tmp_path):
    """They write at the same time, and only then does the first of them move."""
    together, place = threading.Barrier(4), tmp_path / "kernels" / "one.so"

    def compile_slowly(command, **_):
        Path(command[-1]).write_text("whole")
        together.wait(timeout=60)

    monkeypatch.setattr(compiling.subprocess, "run", compile_slowly)
    with ThreadPoolExecutor(4) as pool:
        calls = [pool.submit(compiling.make_once, place, "", ("c++",)) for _ in "1234"]
    assert [call.result() for call in calls] == [place] * 4
    assert place.read_text() == "whole"
    assert list(place.parent.iterdir()) == [place]


@needs_compiler
def test_what_was_compiled_is_kept_and_a_broken_file_is_made_anew(tmp_path):
    script = (
        "import numpy as np, survey_code\n"
        "from survey_code.layouts import DenseLayout\n"
        "one = DenseLayout.from_weight(np.ones((3, 5), dtype=np.float32))\n"
        "assert one.prepare() and (one.lookup([2]) == 1).all()\n"
    )
    there = {
        **os.environ,
        "SURVEY_CODE_CACHE": str(tmp_path),
        "PYTHONPATH": os.getcwd(),
    }

    def start():
        subprocess.run([sys.executable, "-c", script], env=there, check=True)
        return list((tmp_path / "kernels").iterdir())

    (kept,) = start()
    written = kept.stat().st_mtime_ns
    assert start() == [kept] and kept.stat().st_mtime_ns == written
    kept.write_bytes(kept.read_bytes()[:100])
    assert start() == [kept] and kept.stat().st_size > 1000


def test_the_switch_has_two_values(monkeypatch):
    monkeypatch.setenv("SURVEY_CODE_KERNELS", "fast")
    with pytest.raises(ValueError, match="'compiled' or 'numpy', got 'fast'"):
        DenseLayout.from_weight(WEIGHT).prepare()


@needs_compiler
@settings(max_examples=20)
@given(st.integers(1, 6), st.integers(0, 2000), st.integers(1, 50))
def test_stretches_cover_everything_once(threads, count, size):
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        stretches = reader.split(count, count * size * 1000)
    finally:
        torch.set_num_threads(before)
    places = [place for first, last in stretches for place in range(first, last)]
    assert places == list(range(count)) and 1 <= len(stretches) <= threads
