"""Rows for FBGEMM: byte by byte, and read by FBGEMM itself where it is installed."""

import numpy as np
import pytest
import torch
from layout_examples import EXAMPLES
from safetensors import safe_open

import survey_code
from survey_code import compress
from survey_code.cli import main
from survey_code.layouts import DenseLayout, RowwiseLayout
from survey_code.serving.fbgemm import export_fbgemm, name_fbgemm_type, pack_fbgemm

TABLE = np.random.default_rng(0).normal(size=(50, 16)).astype(np.float32)


def shared(bits, dim=16, centred=False, starts=(0, 7, 49)):
    rng = np.random.default_rng(bits)
    codes = rng.integers(2**bits, size=(50, dim)).astype(np.uint8)
    scale, bias = rng.normal(size=(2, len(starts))).astype(np.float32)
    starts = np.array(starts) if len(starts) > 1 else None
    bias = None if centred else bias
    return RowwiseLayout.from_groups(codes, scale, bias, bits, starts)


def centred(bits):
    codes = np.random.default_rng(1).integers(2**bits, size=(50, 16)).astype(np.uint8)
    scale = np.random.default_rng(2).normal(size=50).astype(np.float32)
    return RowwiseLayout.from_codes(codes, scale, None, bits)


TAKEN = {
    "8 bits": lambda: compress(TABLE, "rowwise", bits=8),
    "8 bits, 7 columns": lambda: compress(TABLE[:, :7], "rowwise", bits=8),
    "4 bits": lambda: compress(TABLE, "rowwise", bits=4),
    "4 bits, 6 columns": lambda: compress(TABLE[:, :6], "rowwise", bits=4),
    "2 bits": lambda: compress(TABLE, "rowwise", bits=2),
    "2 bits, 12 columns": lambda: compress(TABLE[:, :12], "rowwise", bits=2),
    "8 bits, per table": lambda: shared(8, starts=(0,)),
    "4 bits, per group": lambda: shared(4),
    "2 bits, centred, per group": lambda: shared(2, centred=True),
    "8 bits, centred": lambda: centred(8),
    "4 bits, centred": lambda: centred(4),
    "float32": lambda: DenseLayout(TABLE),
    "float32, 3 columns": lambda: DenseLayout(TABLE[:, :3]),
    "float16": lambda: compress(TABLE, "half"),
}
WIDTHS = {"fp32": 32, "fp16": 16, "int8": 8, "int4": 4, "int2": 2}


def unpack_plainly(packed, name, dim):
    """Rows as FBGEMM's own description has them, entry by entry."""
    if name == "fp32" or name == "fp16":
        kind = np.dtype(f"<f{WIDTHS[name] // 8}")
        return packed[:, : dim * kind.itemsize].copy().view(kind).astype(np.float32)
    bits = WIDTHS[name]
    scale, bias = packed[:, :4].copy().view("<f2").astype(np.float32).T
    rows = np.empty((len(packed), dim), dtype=np.float32)
    for column in range(dim):
        byte = packed[:, 4 + column * bits // 8]
        code = byte >> column * bits % 8 & 2**bits - 1
        rows[:, column] = code.astype(np.float32) * scale + bias
    return rows


@pytest.mark.parametrize("alignment", [16, 1])
@pytest.mark.parametrize("name", TAKEN)
def test_rows_have_scale_and_bias_in_front_and_are_filled_up(name, alignment):
    layout = TAKEN[name]()
    kind, dim = name_fbgemm_type(layout), layout.embedding_dim
    packed = pack_fbgemm(layout, alignment)
    used = dim * WIDTHS[kind] // 8 + 4 * kind.startswith("int")
    assert packed.dtype == np.uint8 and packed.flags.c_contiguous
    assert packed.shape == (50, -(-used // alignment) * alignment)
    assert not packed[:, used:].any()
    found, wanted = unpack_plainly(packed, kind, dim), layout.lookup(np.arange(50))
    rounded = kind == "int8" or "per" in name or "centred" in name
    if not rounded:
        np.testing.assert_array_equal(found, wanted)
    else:  # scale and bias, each by one part in 2,048
        largest = 2 * np.abs(wanted).max(axis=1, keepdims=True)
        assert (np.abs(found - wanted) <= 2**-11 * 2 * largest).all()
        assert (found != wanted).any()


def test_a_row_by_hand():
    """Codes 1, 2, 3, 0 of two bits; 0.5 is 0x3800 and -1 is 0xBC00 in float16."""
    layout = RowwiseLayout.from_codes(
        np.array([[1, 2, 3, 0]], np.uint8), np.array([0.5]), np.array([-1.0]), 2
    )
    wanted = [0x00, 0x38, 0x00, 0xBC, 0b00111001]
    assert pack_fbgemm(layout, row_alignment=1).tolist() == [wanted]
    assert pack_fbgemm(layout).tolist() == [wanted + 11 * [0]]


# -- FBGEMM itself --------------------------------------------------------------------


@pytest.mark.parametrize("alignment", [16, 1])
@pytest.mark.parametrize("name", TAKEN)
def test_fbgemm_reads_and_pools_the_same(name, alignment):
    pytest.importorskip("fbgemm_gpu")
    from fbgemm_gpu.split_embedding_configs import SparseType
    from fbgemm_gpu.split_table_batched_embeddings_ops_common import EmbeddingLocation
    from fbgemm_gpu.split_table_batched_embeddings_ops_inference import (
        IntNBitTableBatchedEmbeddingBagsCodegen,
    )

    layout = TAKEN[name]()
    rows, dim = layout.num_embeddings, layout.embedding_dim
    kind = name_fbgemm_type(layout)
    table = IntNBitTableBatchedEmbeddingBagsCodegen(
        [("", rows, dim, SparseType(kind), EmbeddingLocation.HOST)],
        device="cpu",
        output_dtype=SparseType.FP32,
        row_alignment=alignment,
    )
    table.initialize_weights()
    packed = pack_fbgemm(layout, alignment)
    ((held, _),) = table.split_embedding_weights(split_scale_shifts=False)
    held.copy_(torch.from_numpy(packed))
    ids = np.random.default_rng(3).integers(rows, size=64)
    offsets = np.array([0, 3, 3, 20, 64])
    found = table(torch.from_numpy(ids).int(), torch.from_numpy(offsets).int())
    # What FBGEMM's rows stand for, read without it; and the layout's own rows.
    plain = unpack_plainly(packed, kind, dim)
    for source, share in ((plain[ids], 1e-6), (layout.lookup(ids), 2**-9)):
        wanted = DenseLayout(source).bag(np.arange(64), offsets[:-1])
        most = DenseLayout(np.abs(source)).bag(np.arange(64), offsets[:-1]).max()
        np.testing.assert_allclose(found.numpy(), wanted, rtol=0, atol=share * most)


def test_fbgemm_refuses_the_same_widths():
    pytest.importorskip("fbgemm_gpu")
    from fbgemm_gpu.split_embedding_configs import SparseType
    from fbgemm_gpu.split_table_batched_embeddings_ops_common import EmbeddingLocation
    from fbgemm_gpu.split_table_batched_embeddings_ops_inference import (
        IntNBitTableBatchedEmbeddingBagsCodegen,
    )

    for bits in (8, 4, 2):
        for dim in range(1, 10):
            specs = ("", 50, dim, SparseType(f"int{bits}"), EmbeddingLocation.HOST)
            layout = compress(TABLE[:, :dim], "rowwise", bits=bits)
            try:
                IntNBitTableBatchedEmbeddingBagsCodegen([specs], device="cpu")
            except AssertionError:
                with pytest.raises(ValueError, match="a multiple of"):
                    pack_fbgemm(layout)
            else:
                pack_fbgemm(layout)


# -- what is refused ------------------------------------------------------------------


@pytest.mark.parametrize(("bits", "dim", "each"), [(4, 7, 2), (2, 6, 4), (2, 5, 4)])
def test_codes_that_do_not_fill_their_last_byte_are_refused(bits, dim, each):
    layout = compress(TABLE[:, :dim], "rowwise", bits=bits)
    wrong = f"rows of int{bits} have a multiple of {each} columns, got {dim}"
    with pytest.raises(ValueError, match=wrong):
        pack_fbgemm(layout)


@pytest.mark.parametrize("name", ["bfloat16", "codes", "three precisions", "binary"])
def test_layouts_that_fbgemm_has_not_are_refused_by_name(name):
    layout = EXAMPLES[name]()
    with pytest.raises(ValueError, match=f"not a {layout.name}.* layout"):
        pack_fbgemm(layout)


def test_rows_too_long_for_a_gpu_are_refused_for_one():
    layout = DenseLayout(np.ones((2, 2049), np.float32))
    with pytest.raises(ValueError, match="up to 8,192 bytes on a GPU, got 8,208"):
        pack_fbgemm(layout)
    assert pack_fbgemm(layout, row_alignment=1).shape == (2, 4 * 2049)


@pytest.mark.parametrize(
    ("scale", "bias", "wrong"),
    [
        (1e5, 0.0, "the scale 100000 of row 1"),
        (1.0, -7e4, "the bias -70000 of row 1"),
        (1e-9, 0.5, "the scale 1e-09 of row 1"),
    ],
)
def test_what_does_not_fit_float16_is_refused(scale, bias, wrong):
    codes = np.zeros((2, 4), np.uint8)
    parameters = np.array([1, scale]), np.array([0, bias])
    layout = RowwiseLayout.from_codes(codes, *parameters, bits=8)
    with pytest.raises(ValueError, match=wrong):
        pack_fbgemm(layout)


@pytest.mark.parametrize("alignment", [0, 8, True, "16"])
def test_other_alignments_are_refused(alignment):
    with pytest.raises(ValueError, match=r"row_alignment must be one of \(16, 1\)"):
        pack_fbgemm(DenseLayout(TABLE), alignment)


# -- files ----------------------------------------------------------------------------


@pytest.mark.parametrize("words", [[], ["--row-alignment", "1"]])
def test_the_command_writes_rows_and_says_what_they_are(words, tmp_path, capsys):
    source, out = tmp_path / "emb.safetensors", tmp_path / "rows.safetensors"
    layout = compress(TABLE, "rowwise", bits=4)
    layout.save(source)
    command = ["export", str(source), "--to", "fbgemm", "--out", str(out), *words]
    assert main(command) == 0
    size = out.stat().st_size
    assert capsys.readouterr().out == f"{out}: fbgemm, 50 x 16, {size:,} bytes\n"
    alignment = 1 if words else 16
    with safe_open(out, "numpy") as file:
        assert list(file.keys()) == ["weights"]
        found, said = file.get_tensor("weights"), file.metadata()
    np.testing.assert_array_equal(found, pack_fbgemm(layout, alignment))
    assert said == {
        "format": "fbgemm",
        "weights_ty": "int4",
        "num_embeddings": "50",
        "embedding_dim": "16",
        "row_alignment": str(alignment),
    }
    again = tmp_path / "again.safetensors"
    assert survey_code.export_fbgemm(layout, again, alignment) == size
    with safe_open(again, "numpy") as file:
        np.testing.assert_array_equal(file.get_tensor("weights"), found)


def test_a_refused_export_leaves_no_file(tmp_path):
    with pytest.raises(ValueError, match="not a codebook layout"):
        export_fbgemm(EXAMPLES["codes"](), tmp_path / "rows.safetensors")
    assert not list(tmp_path.iterdir())
