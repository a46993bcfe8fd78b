"""What a row costs in arithmetic, by its layout: methods at equal work."""

from __future__ import annotations

from functools import singledispatch

from survey_code.layouts import (
    AddedLayout,
    DenseLayout,
    FlatLayout,
    GeneratorLayout,
    GroupedLayout,
    HashedLayout,
    Layout,
    PackedLayout,
    ProbedLayout,
    RoutedLayout,
    RowwiseLayout,
    SemanticLayout,
    TurnedLayout,
)
from survey_code.layouts.generator import layer_sizes
from survey_code.layouts.hashed import count_hidden
from survey_code.layouts.parts import Rows, rows_shape


@singledispatch
def count_multiply_adds(layout: Layout) -> int:
    """Multiply-adds that one row costs: products, sums, or both at once.

    Hashes and what is only read are not counted, nor are activations: `row_work` of a
    layout has about all of it.  Of parts that serve different ids the dearest counts.

    Parameters
    ----------
    layout : Layout

    Returns
    -------
    int

    Raises
    ------
    ValueError
        If it is a layout whose arithmetic nobody has written down here.

    Examples
    --------
    >>> import numpy as np
    >>> count_multiply_adds(DenseLayout(np.ones((3, 2), np.float32)))
    0
    """
    raise ValueError(
        f"the multiply-adds of a {layout.name} layout are not counted; row_work, "
        f"{layout.row_work}, is about what a row takes"
    )


def count_part(part: Rows | None) -> int:
    """Of one row of an array, of a layout, or of nothing."""
    return count_multiply_adds(part) if isinstance(part, Layout) else 0


@count_multiply_adds.register
def _of_dense(layout: DenseLayout | PackedLayout) -> int:
    return 0


@count_multiply_adds.register
def _of_rowwise(layout: RowwiseLayout) -> int:
    return layout.embedding_dim


@count_multiply_adds.register
def _of_generator(layout: GeneratorLayout) -> int:
    shape = (layout.codes, layout.width, layout.layers, layout.embedding_dim)
    sizes = layer_sizes(*shape, layout.told)
    return count_part(layout.content) + sum(a * b for a, b in sizes)


@count_multiply_adds.register
def _of_hashed(layout: HashedLayout) -> int:
    tables, dim = len(layout.index), layout.embedding_dim
    work = dim if layout.signs is not None else 0
    if layout.paths is not None:
        hidden = count_hidden(rows_shape(layout.paths)[1], dim)
        own = count_part(layout.values) + count_part(layout.paths)
        return work + own + 2 * dim * hidden
    work += tables * count_part(layout.values)
    if layout.weights is not None:
        return work + count_part(layout.weights) + tables * dim
    return work + (0 if layout.combine == "concat" else (tables - 1) * dim)


@count_multiply_adds.register
def _of_flat(layout: FlatLayout) -> int:
    return 0 if layout.signs is None else layout.embedding_dim


@count_multiply_adds.register
def _of_semantic(layout: SemanticLayout) -> int:
    grams = len(layout.index)
    own = grams * count_part(layout.values)
    return own + (layout.combine == "sum") * (grams - 1) * layout.embedding_dim


@count_multiply_adds.register
def _of_probed(layout: ProbedLayout) -> int:
    return count_part(layout.values)


@count_multiply_adds.register
def _of_routed(layout: RoutedLayout) -> int:
    return max(count_part(part) for part in layout.parts)


@count_multiply_adds.register
def _of_added(layout: AddedLayout) -> int:
    sums = (len(layout.parts) - 1) * layout.embedding_dim
    return sums + sum(count_part(part) for part in layout.parts)


@count_multiply_adds.register
def _of_grouped(layout: GroupedLayout) -> int:
    return max(
        count_part(table) + (0 if matrix is None else matrix.size)
        for table, matrix in zip(layout.tables, layout.matrices())
    )


@count_multiply_adds.register
def _of_turned(layout: TurnedLayout) -> int:
    return count_part(layout.part) + layout.full_matrix().size
