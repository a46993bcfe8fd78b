"""Types for users: a file under ``mypy --strict``, without an error and without Any."""

import re
from pathlib import Path

import pytest
from mypy import api

ROOT = Path(__file__).parents[1]

GOOD = """
import numpy as np
import torch
from torch import Tensor, nn

import survey_code
from survey_code import (
    CompressedEmbedding, FrozenEmbedding, Layout, Options, TableSpec, Trained,
)
from survey_code.layouts import DenseLayout
from survey_code.method import Found
from survey_code.options import option, planned


class Doubled(CompressedEmbedding):
    def __init__(self, rows: int, dim: int) -> None:
        super().__init__(rows, dim)
        self.weight = nn.Parameter(torch.zeros(rows, dim))

    def embed(self, ids: Tensor) -> Tensor:
        return 2 * self.weight[ids]

    def freeze(self) -> Layout:
        return DenseLayout.from_weight(2 * self.weight)


class MineOptions(Options):
    columns: int = planned("columns", low=1)
    gain: float = option(1.0, "gain", above=0)


class Mine(Trained[MineOptions]):
    def __init__(self, spec: TableSpec, options: MineOptions, seed: int = 0) -> None:
        super().__init__(spec.num_embeddings, options.columns)
        self.gain = options.gain

    @classmethod
    def plan(cls, spec: TableSpec, ratio: float, options: MineOptions) -> Found:
        return {"columns": max(1, int(spec.embedding_dim / ratio))}


table = np.zeros((10, 4), np.float32)
layout = survey_code.compress(table, "rowwise", bits=4)
layout.save("table.safetensors")
spec = TableSpec.of_shape(10, 4)
options = MineOptions(columns=3, gain=2.0)
mine = Mine(spec, options, seed=1)
result = survey_code.run("hashing", "synthetic", ratio=4, signed=True)
method = survey_code.methods()[0]
reveal_type(layout)  # Layout
reveal_type(layout.nbytes)  # int
reveal_type(layout.lookup([1, 2]))  # ndarray
reveal_type(layout.lookup(np.array([1])))  # ndarray
reveal_type(layout.bag(np.array([1, 2]), np.array([0, 1]), mode="mean"))  # ndarray
reveal_type(survey_code.load_layout("table.safetensors"))  # Layout
reveal_type(FrozenEmbedding(layout)(torch.tensor([1])))  # Tensor
reveal_type(Doubled(3, 4)(torch.tensor([1])))  # Tensor
reveal_type(survey_code.compress_model(mine, ratio=4))  # BudgetReport
reveal_type(survey_code.FullEmbedding(spec).freeze())  # Layout
reveal_type(result)  # Result
reveal_type(result.test["auc"])  # float
reveal_type(result.bytes["inference"])  # int
reveal_type(method.key)  # str
reveal_type(method.plan(spec, 2.0))  # Options
reveal_type(method.compress(table, {}))  # Layout
reveal_type(options.columns)  # int
reveal_type(mine.embedding_dim)  # int
"""

# Each line is an error of its own.
BAD = """
import survey_code
from survey_code import FullEmbedding, Options, TableSpec, Trained
from survey_code.options import option

class MineOptions(Options):
    gain: float = option(1.0, "gain", above=0)

layout = survey_code.load_layout("table.safetensors")
survey_code.compress("table", "rowwise")  # wrong
survey_code.compress([[1.0]], 3)  # wrong
survey_code.run("hashing", 4)  # wrong
survey_code.compress_model("model", ratio=4)  # wrong
survey_code.run("hashing", "synthetic", "4")  # wrong
survey_code.load_layout(3)  # wrong
survey_code.magic  # wrong
survey_code.methods().nothing  # wrong
TableSpec.of_shape("10", 4)  # wrong
FullEmbedding(3)  # wrong
layout.lookup("ids")  # wrong
layout.bag([1], mode=3)  # wrong
layout.save(3)  # wrong
MineOptions(gain="much")  # wrong
MineOptions(grain=1.0)  # wrong
MineOptions().gain = 2.0  # wrong
"""


@pytest.fixture(scope="module")
def said(tmp_path_factory):
    """What mypy says of two files, by file: (line, kind, message) each."""
    folder = tmp_path_factory.mktemp("user")
    paths = {"good": folder / "good.py", "bad": folder / "bad.py"}
    paths["good"].write_text(GOOD)
    paths["bad"].write_text(BAD)
    cache = ROOT / ".mypy_cache" / "user"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MYPYPATH", str(ROOT))
        found, errors, _ = api.run(
            ["--strict", "--follow-imports=silent", f"--cache-dir={cache}",
             "--config-file=", *map(str, paths.values())]
        )  # fmt: skip
    assert not errors
    return {
        name: [
            (int(line), kind, message)
            for line, kind, message in re.findall(
                rf"^[^\n]*{name}\.py:(\d+): (\w+): (.*)$", found, re.M
            )
        ]
        for name in paths
    }


def test_a_strict_file_has_no_error_and_no_any(said):
    assert [entry for entry in said["good"] if entry[1] == "error"] == []
    revealed = {line: message for line, _, message in said["good"]}
    for line, text in enumerate(GOOD.splitlines(), 1):
        if text.startswith("reveal_type"):
            wanted = text.rpartition("# ")[2]
            shown = re.search(r'"(.*)"', revealed[line])[1]
            assert re.search(rf"\b{wanted}\b", shown), f"{text}: {shown}"
            assert shown != "Any"


def test_every_wrong_argument_is_an_error(said):
    lines = enumerate(BAD.splitlines(), 1)
    wrong = {line for line, text in lines if "# wrong" in text}
    assert {line for line, kind, _ in said["bad"] if kind == "error"} == wrong
