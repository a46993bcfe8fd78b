"""Files that say something else, with a right hash: refused, or safe to be read.

A file of each layout is changed in one to three places and hashed anew.  Loading it is
a ValueError, or gives a layout whose look-ups are finite, quick and small: they are
counted in bytes and in calls, not in seconds.
"""

import copy
import json
import random
import sys
import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st
from safetensors.numpy import save_file

from survey_code import load_layout
from survey_code.layouts import LAYOUTS, files
from survey_code.layouts.nearest import VectorSearch

# What reading five rows may allocate at once, and how many calls it may make.
MOST_BYTES, MOST_CALLS = 2**25, 20_000
ROWS_READ = 5

INTEGERS = [
    *range(-2, 41), 63, 64, 65, 255, 256, 65_535, 65_536, 65_537, 10**6, 2**31 - 1,
    2**31, 2**32, 2**40, 2**53, 2**62, 2**63 - 1, -(2**63),
]  # fmt: skip
WORDS = [True, False, None, "2", 2.0, [], [2], {}, {"a": 1}, 2**63, 10**30, np.nan]
NUMBERS = [
    np.nan, np.inf, -np.inf, 3.4e38, -3.4e38, 3e38, 1e20, -1e30, 1e-45, 0.0, -0.0, 6e4,
]  # fmt: skip
TYPES = ["f2", "f4", "f8", "u1", "i1", "u2", "i2", "u4", "i4", "u8", "i8", "?"]
VALUES = np.ones((2, 2), np.float32)


@pytest.fixture(scope="module")
def contents(examples):
    """Blueprint and arrays of every example, by name."""
    made = {name: make() for name, make in examples.items()}
    return Contents((n, (it.blueprint(), it.arrays())) for n, it in made.items())


class Contents(dict):
    """A dictionary that is printed in short, where a test fails."""

    def __repr__(self):
        return f"<{len(self)} files>"


def list_nodes(blueprint, prefix=""):
    """A file's blueprint and those below it, each with its arrays' prefix."""
    found = [(prefix, blueprint)]
    for name, part in blueprint["parts"].items():
        found += list_nodes(part, f"{prefix}{name}/")
    return found


class Mutation:
    """One file, changed as a seed says."""

    def __init__(self, seed, contents):
        self.random, self.contents = random.Random(seed), contents
        blueprint, arrays = contents[self.choose(sorted(contents))]
        self.blueprint = copy.deepcopy(blueprint)
        self.arrays = dict(arrays)

    def choose(self, choices):
        return self.random.choice(list(choices))

    def perhaps(self):
        return self.random.random() < 0.5

    def change(self):
        kinds = [
            self.integer, self.integer, self.number, self.number, self.number,
            self.integers, self.shape, self.kind, self.name, self.word, self.part,
            self.missing, self.wrap, self.swap,
        ]  # fmt: skip
        self.choose(kinds)()

    def is_whole(self):
        """Whether the blueprint is one whose parts can be listed."""
        left = [self.blueprint]
        for node in left:
            for key in ("shape", "parts"):
                if type(node) is not dict or type(node.get(key)) is not dict:
                    return False
            left += node["parts"].values()
        return True

    def node(self):
        return self.choose(list_nodes(self.blueprint))

    def array(self, kinds="fiu"):
        """Name of an array, of floats or of integers, or None."""
        names = [n for n, a in self.arrays.items() if a.dtype.kind in kinds and a.size]
        return self.choose(sorted(names)) if names else None

    # -- what is changed -----------------------------------------------------

    def integer(self):
        """A size in a blueprint."""
        _, node = self.node()
        if node["shape"]:
            node["shape"][self.choose(sorted(node["shape"]))] = self.choose(INTEGERS)

    def word(self):
        """A value of a blueprint, of another type."""
        _, node = self.node()
        place = self.choose(["version", "layout", "shape", "parts", "embedding_dim"])
        word = copy.deepcopy(self.choose(WORDS))
        (node["shape"] if place == "embedding_dim" else node)[place] = word

    def name(self):
        """A layout's or an array's name."""
        _, node = self.node()
        if self.perhaps() or not self.arrays:
            node["layout"] = self.choose(LAYOUTS)
            return
        names = ["values", "0", "1", "0/values", "index", "weights", "x", "", "/", "0/"]
        self.arrays[self.choose(names)] = self.arrays.pop(self.array() or "", VALUES)

    def number(self):
        """Floats, one or all."""
        name = self.array("f")
        if name is not None:
            with np.errstate(over="ignore"):
                self.put(name, self.choose(NUMBERS))

    def integers(self):
        """Integers, one or all; among them the bits of scales and of bfloat16."""
        name = self.array("iu")
        if name is not None:
            least, most = np.iinfo(self.arrays[name].dtype).min, 2**63 - 1
            most = min(int(np.iinfo(self.arrays[name].dtype).max), most)
            value = self.choose(INTEGERS) if self.perhaps() else most
            self.put(name, min(max(value, int(least)), most))

    def put(self, name, value):
        array = self.arrays[name].copy()
        if self.perhaps():
            array[...] = value
        else:
            array.reshape(-1)[self.random.randint(0, array.size - 1)] = value
        self.arrays[name] = array

    def shape(self):
        """An array's axes, or their lengths."""
        name = self.array()
        if name is None:
            return
        array = self.arrays[name]
        how = self.choose(["flat", "axis", "none", "less", "more", "turned", "empty"])
        if how == "flat":
            array = array.reshape(-1)
        elif how == "axis":
            array = array[None]
        elif how == "none":
            array = array.reshape(-1)[:1].reshape(())
        elif how == "less":
            array = array[: self.random.randint(0, len(array))] if array.ndim else array
        elif how == "more":
            array = np.concatenate([array, array]) if array.ndim else array
        elif how == "turned":
            array = array.T
        else:
            array = np.zeros((self.choose([0, 2, 2**40]), 0), array.dtype)
        self.arrays[name] = np.ascontiguousarray(array).reshape(array.shape)

    def kind(self):
        """An array's type: converted, or the same bytes."""
        name = self.array()
        if name is None:
            return
        array, kind = self.arrays[name], np.dtype(self.choose(TYPES))
        with np.errstate(all="ignore"):
            if self.perhaps() or array.nbytes % kind.itemsize:
                self.arrays[name] = array.astype(kind)
            else:
                self.arrays[name] = array.reshape(-1).view(kind)

    def missing(self):
        """An array or a part."""
        _, node = self.node()
        if node["parts"] and self.perhaps():
            node["parts"].pop(self.choose(sorted(node["parts"])))
        else:
            self.arrays.pop(self.array() or "", None)

    def part(self):
        """Another file's contents for a part, or for an array of rows."""
        prefix, node = self.node()
        other, arrays = self.contents[self.choose(sorted(self.contents))]
        names = [*node["parts"], "values", "codewords", "codes", "weights", "0", "1"]
        name = self.choose(names)
        below = f"{prefix}{name}"
        kept = {
            key: array
            for key, array in self.arrays.items()
            if key != below and not key.startswith(f"{below}/")
        }
        self.arrays = kept | {f"{below}/{key}": it for key, it in arrays.items()}
        node["parts"][name] = copy.deepcopy(other)

    def wrap(self):
        """The whole within turned or added layouts, many times."""
        for _ in range(self.choose([1, 2, 7, 8, 40])):
            size = self.blueprint["shape"].get("embedding_dim", 1)
            size = size if type(size) is int and 0 < size < 500 else 1
            shape = dict(self.blueprint["shape"])
            self.arrays = {f"part/{key}": it for key, it in self.arrays.items()}
            self.arrays["matrix"] = np.eye(size, dtype=np.float32)
            self.blueprint = {
                "layout": "turned",
                "version": 2,
                "shape": {name: shape.get(name, 1) for name in files.TABLE_SIZES},
                "parts": {"part": self.blueprint},
            }

    def swap(self):
        """Two arrays."""
        one, two = self.array(), self.array()
        if one is not None and two is not None:
            both = self.arrays[two], self.arrays[one]
            self.arrays[one], self.arrays[two] = both

    # -- what is written -----------------------------------------------------

    def write(self, path):
        try:
            blueprint = files.check_blueprint(self.blueprint)
        except (ValueError, KeyError, TypeError, AttributeError):
            blueprint = self.blueprint
        arrays = {name: np.ascontiguousarray(a).reshape(a.shape)
                  for name, a in self.arrays.items()}  # fmt: skip
        sha256 = files.hash_contents(blueprint, arrays)
        text = json.dumps({**self.blueprint, "sha256": sha256}, sort_keys=True)
        save_file(arrays, path, {files.METADATA_KEY: text})


class Counter:
    """Bytes allocated and calls made inside a `with`."""

    def __enter__(self):
        self.calls = 0
        tracemalloc.start()
        sys.setprofile(self.count)
        return self

    def count(self, frame, event, argument):
        self.calls += event in ("call", "c_call")

    def __exit__(self, *error):
        sys.setprofile(None)
        self.peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()


def read_some(layout):
    """Rows of a few ids; pooled rows and the best row as well."""
    rows = layout.num_embeddings
    # Python's integers: so many rows are no number of float64.
    some = {(rows - 1) * step // (ROWS_READ - 1) for step in range(ROWS_READ)}
    ids = np.array(sorted(some), dtype=np.int64)
    with np.errstate(over="raise", invalid="raise"):
        found = layout.lookup(ids)
    assert found.shape == (len(ids), layout.embedding_dim)
    assert np.isfinite(found).all()
    assert np.abs(found).max() <= layout.largest
    with np.errstate(over="ignore", invalid="ignore"):  # sums of bags may be too large
        for mode in ("sum", "mean", "max"):
            pooled = layout.bag(ids, [0, 1], mode=mode)
            assert pooled.shape == (2, layout.embedding_dim)
        if isinstance(layout, VectorSearch):
            query = np.ones((1, layout.embedding_dim), np.float32)
            try:
                best = layout.topk(query, 1, candidates=(0, min(rows, ROWS_READ)))
            except ValueError as error:
                assert "too large" in str(error)
            else:
                assert best.shape == (1, 1)


@settings(max_examples=500)  # 10,000 by `make fuzz`
@given(changes=st.integers(1, 3), seed=st.integers(0, 2**64 - 1))
def test_a_mutated_file_is_refused_or_safe(contents, tmp_path_factory, changes, seed):
    mutation = Mutation(seed, contents)
    for _ in range(changes):
        if mutation.is_whole():
            mutation.change()
    path = tmp_path_factory.getbasetemp() / "mutated"
    mutation.write(path)
    with Counter() as counted:
        try:
            layout = load_layout(path)
        except ValueError as error:
            assert str(error).startswith(f"{path}: ")
        else:
            read_some(layout)
    assert counted.peak <= MOST_BYTES and counted.calls <= MOST_CALLS
