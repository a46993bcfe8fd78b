"""The embedding tables of a model, compressed within one budget and put back.

Any table may stay as it is.  It has to, and the report says why, where another module
needs the whole matrix (an output layer tied to it), or where its own module does more
than read rows: a class with a forward of its own, `max_norm`, hooks, a parametrization.
It counts against the budget all the same.

Modules that share a table share its layout; they become one module where they are
called alike.  Code that reads ``module.weight`` of a replaced module fails, and an
optimiser holds the old parameters until it is made anew.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from survey_code.baselines import DenseTable
from survey_code.checks import check_range
from survey_code.layouts import Layout
from survey_code.serving.many_tables import (
    MEASURED_ROWS,
    USUAL_FORMS,
    BudgetReport,
    Counts,
    HeldTable,
    Named,
    compress_tables,
)
from survey_code.serving.modules import FrozenEmbedding, FrozenEmbeddingBag

# What holds a table as its `weight`; DenseTable stands for FullEmbedding.
TableModule: TypeAlias = nn.Embedding | nn.EmbeddingBag | DenseTable
TABLE_KINDS = (nn.Embedding, nn.EmbeddingBag, DenseTable)


def compress_model(
    model: nn.Module,
    budget_bytes: float | None = None,
    methods: Sequence[Named] = USUAL_FORMS,
    *,
    ratio: float | None = None,
    counts: Counts | None = None,
    least_rows: int = 1,
    sample: int = MEASURED_ROWS,
    progress: bool = False,
    task: str = "ctr",
) -> BudgetReport:
    """Compress all embedding tables of a model within one budget, and put them back.

    Parameters
    ----------
    model : nn.Module
        Its nn.Embedding, nn.EmbeddingBag and FullEmbedding modules are replaced by
        frozen ones with the same call, all of them or, on an error, none.
    budget_bytes, ratio : float, optional
        One of them: bytes of all tables together, without the headers of files, or
        bytes of the tables now over bytes afterwards.
    methods : sequence of str or of (str, dict)
        Keys, or pairs of a key and options: what each table is tried in.  ``"auto"``:
        what `survey_code.advise` takes for the largest table, 2 to 32 times smaller.
    counts : dict of int arrays, shape (rows,), optional
        By the names of modules: how often each row is read.
    least_rows, sample : int
        Tables with fewer rows stay as they are; of others so many are measured.
    progress : bool, default False
    task : str, default "ctr"
        ``"ctr"`` or ``"top-n"``: by whose records ``methods="auto"`` goes.

    Returns
    -------
    BudgetReport
        Table by table what was chosen, bytes and error; print it.

    Raises
    ------
    ValueError
        If an argument is not as above, there is no table, one is not finite, or a
        method fits none; `OutOfReach` if the smallest forms exceed the budget.
    """
    check_model(model)
    tables = find_tables(model, check_range("least_rows", least_rows, 1))
    asked = (budget_bytes, ratio, methods, counts, sample, progress, task)
    report = compress_tables([table.held for table in tables], *asked)
    put_back(model, tables, report)
    return report


def check_model(model: nn.Module) -> None:
    """Raise ValueError unless tables can be replaced within a model."""
    if not isinstance(model, nn.Module):
        raise ValueError(f"model must be a torch module, got {type(model).__name__}")
    if isinstance(model, TABLE_KINDS):
        raise ValueError(
            "the model is a table itself, which cannot be replaced within it: use "
            "survey_code.compress(model.weight, ...)"
        )


def put_back(model: nn.Module, tables: list[ModelTable], report: BudgetReport) -> None:
    """Replace the modules of the tables that have a layout now: all, or none.

    Parameters
    ----------
    model : nn.Module
    tables : list of ModelTable
    report : BudgetReport
        A line for each.
    """
    frozen: dict[str, nn.Module] = {}
    for table, line in zip(tables, report.lines):
        if line.layout is not None:
            frozen |= table.freeze(line.layout)
    for name, module in frozen.items():
        model.set_submodule(name, module)


@dataclass(eq=False)
class ModelTable:
    """A table in a model, and the modules that read it.

    Parameters
    ----------
    held : HeldTable
    modules : dict of Module
        By name; several where it is tied.
    """

    held: HeldTable
    modules: dict[str, nn.Module]

    def freeze(self, layout: Layout) -> dict[str, nn.Module]:
        """What stands in the place of each module; one for all that do the same."""
        made: dict[Hashable, nn.Module] = {}
        found = {}
        for name, module in self.modules.items():
            how = name_call(module)
            if how not in made:
                frozen = freeze_module(layout, module).train(module.training)
                weight = self.held.weight
                made[how] = frozen.to(device=weight.device, dtype=weight.dtype)
            found[name] = made[how]
        return found


def find_tables(model: nn.Module, least_rows: int) -> list[ModelTable]:
    """The embedding tables of a model; tied modules are one table.

    Parameters
    ----------
    model : nn.Module
    least_rows : int
        Tables with fewer rows stay as they are.

    Raises
    ------
    ValueError
        If there is none.
    """
    tables: dict[Hashable, ModelTable] = {}
    # With duplicates: a module that stands at two places is replaced at both.
    for name, module in model.named_modules(remove_duplicate=False):
        if not isinstance(module, TABLE_KINDS) or not module.weight.numel():
            continue
        own = "weight" in module._parameters
        key = locate(module.weight) if own else id(module)
        held = HeldTable([], module.weight)
        table = tables.setdefault(key, ModelTable(held, {}))
        table.held.names.append(name)
        table.modules[name] = module
        why = refuse_module(name, module, least_rows)
        table.held.reason = table.held.reason or why
    for name, module, attribute, weight in list_parameters(model):
        tied = tables.get(locate(weight))
        # A tied weight that the module holds by another name, or that no table holds.
        if tied and (attribute != "weight" or not isinstance(module, TABLE_KINDS)):
            tied.held.reason = tied.held.reason or (
                f"tied to {attribute} of {name or 'the model'} "
                f"({type(module).__name__}), which needs the whole matrix"
            )
    if not tables:
        raise ValueError(f"{type(model).__name__} has no embedding table")
    return list(tables.values())


def list_parameters(
    model: nn.Module,
) -> Iterator[tuple[str, nn.Module, str, nn.Parameter]]:
    """All parameters, each as often as it is held: module's name, module, name."""
    for name, module in model.named_modules():
        for attribute, weight in module._parameters.items():
            if weight is not None and not is_lazy(weight):
                yield name, module, attribute, weight


def locate(weight: Tensor) -> Hashable:
    """Where numbers lie: the same for two parameters over the same ones."""
    if weight.is_meta:
        return id(weight)
    return weight.data_ptr(), str(weight.device), tuple(weight.shape), weight.dtype


def refuse_module(name: str, module: TableModule, least_rows: int) -> str | None:
    """Why a module cannot be replaced by rows that are read, or None."""
    kind, weight = type(module), module.weight
    base = next(one for one in TABLE_KINDS if isinstance(module, one))
    # A module that is parametrized is of a class made for it alone.
    if "weight" not in module._parameters:
        return f"the weight of {name} is computed"
    own = kind.forward is not base.forward or "forward" in vars(module)
    if isinstance(module, DenseTable):
        own = own or type(module).embed is not DenseTable.embed
    if own:
        return f"{name} is a {kind.__name__}, which does more than read rows"
    if getattr(module, "max_norm", None) is not None:
        return f"{name} has max_norm, which changes rows as they are read"
    if module._forward_hooks or module._forward_pre_hooks:
        return f"{name} has hooks, which would be lost"
    if weight.device.type not in ("cpu", "cuda"):
        return f"its numbers are on {weight.device}, not on a processor or a GPU"
    if not weight.is_floating_point():
        return f"it holds {weight.dtype}, not floating-point numbers"
    if len(weight) < least_rows:
        return f"it has fewer than {least_rows} rows"
    return None


def name_call(module: nn.Module) -> Hashable:
    """What two modules of one table must have in common to be one."""
    if isinstance(module, nn.EmbeddingBag):
        return module.mode, module.padding_idx, module.include_last_offset
    return "rows"


def freeze_module(layout: Layout, module: nn.Module) -> nn.Module:
    """A module that reads a layout, and is called as another one is."""
    if not isinstance(module, nn.EmbeddingBag):
        return FrozenEmbedding(layout, getattr(module, "padding_idx", None))
    how = (module.mode, module.include_last_offset, module.padding_idx)
    return FrozenEmbeddingBag(layout, *how)
