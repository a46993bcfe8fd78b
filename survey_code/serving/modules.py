"""Layouts as modules of torch, called as `nn.Embedding` and `nn.EmbeddingBag` are."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor, nn

from survey_code.checks import check_switch
from survey_code.embedding import CompressedEmbedding
from survey_code.kernels.bags import refuse_check
from survey_code.kernels.cuda import MODES, Check
from survey_code.kernels.cuda.launch import INTEGERS_OF_TORCH
from survey_code.layouts import Layout, rebuild
from survey_code.layouts.files import Blueprint, check_blueprint
from survey_code.layouts.layout import as_torch_type, find_limit, find_padding
from survey_code.serving import operators


class HeldLayout(nn.Module):
    """A layout in a module: moved, copied, kept and loaded as torch's own are.

    Its arrays are buffers that share the layout's memory, ``array0`` and so on in the
    order of their names: what a compiler or an exported program takes along.  A
    `state_dict` names them as a file does, with dots for slashes.
    """

    num_embeddings: int
    embedding_dim: int
    description: str

    @property
    def layout(self) -> Layout:
        """What is read.

        Raises
        ------
        RuntimeError
            If the module is still empty.
        """
        if self._layout is None:
            raise RuntimeError(
                f"this {type(self).__name__} is empty: load a state into it first"
            )
        return self._layout

    @layout.setter
    def layout(self, layout: Layout) -> None:
        self._adopt(layout)

    def _begin(
        self,
        layout: Layout | None,
        default_id: int | None,
        check: Check,
        out_dtype: torch.dtype,
    ) -> None:
        """What every constructor does, after that of `nn.Module`."""
        refuse_check(check)
        self.kind = as_torch_type(out_dtype)  # of the vectors that are returned
        self.check: Check = check
        self.default_id = default_id
        self._layout: Layout | None = None
        self.num_embeddings = self.embedding_dim = self.count = 0
        if layout is not None:
            self.layout = layout

    def _adopt(self, layout: Layout) -> None:
        """Hold a layout, its arrays as buffers."""
        if not isinstance(layout, Layout):
            raise ValueError(f"layout must be a Layout, got {type(layout).__name__}")
        self._fit(layout)
        if not layout.on_gpu:
            layout.compiles = True
        self._layout = layout
        self.num_embeddings = layout.num_embeddings
        self.embedding_dim = layout.embedding_dim
        self._drop_buffers()
        self.description = operators.describe_tensors(layout)
        tensors = operators.as_tensors(layout)
        self.count = len(tensors)
        for number, tensor in enumerate(tensors):
            self.register_buffer(f"array{number}", tensor, persistent=False)

    def _fit(self, layout: Layout) -> None:
        """Raise ValueError unless the module's options fit a layout."""
        if self.default_id is not None:
            check_default(self.default_id, layout)

    def _drop_buffers(self) -> None:
        for number in range(self.count):
            delattr(self, f"array{number}")
        self.count = 0

    def _tensors(self) -> list[Tensor]:
        """The layout's arrays, for an operator."""
        return [getattr(self, f"array{number}") for number in range(self.count)]

    def _replace_unknown(self, ids: Tensor, default_id: int) -> Tensor:
        """The ids, those that the table does not know replaced by the default."""
        if ids.dtype not in INTEGERS_OF_TORCH:
            return ids  # which the look-up refuses
        # Torch would compare, and replace, in the ids' own type, however narrow.
        ids = ids.long()
        known = ids >= 0
        if not self.layout.open_ids:
            known &= ids < self.num_embeddings
        return torch.where(known, ids, default_id)

    def _wanted_kind(self, ids: Tensor) -> torch.dtype:
        """The type of the vectors that is asked for, by the module or by autocast."""
        if self.kind is torch.float32:
            place = "cuda" if ids.is_cuda else "cpu"
            if torch.is_autocast_enabled(place):
                return torch.get_autocast_dtype(place)
        return self.kind

    def raise_late(self) -> None:
        """Wait for the GPU, and raise what earlier calls were given.

        Raises
        ------
        IndexError, ValueError
            As from `survey_code.layouts.Layout.raise_late`.
        """
        self.layout.raise_late()
        # Calls of compiled code are those of another layout over the same memory.
        operators.raise_late(self._tensors(), self.description)

    def freeze(self) -> Layout:
        """The layout itself."""
        return self.layout

    def extra_repr(self) -> str:
        """What the printed module shows."""
        return "empty" if self._layout is None else repr(self._layout)

    # -- torch's ways to move, change and keep a module -----------------------

    def __getstate__(self) -> dict[str, Any]:
        held = self._layout
        own = {**self.__dict__, "_buffers": {}, "_non_persistent_buffers_set": set()}
        own |= {"count": 0, "on_gpu": held is not None and held.on_gpu}
        return {**own, "_layout": held.to_cpu() if held is not None else None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        own = dict(state)
        on_gpu = own.pop("on_gpu") and torch.cuda.is_available()
        super().__setstate__(own)
        if self._layout is not None:
            self._adopt(self._layout.to_gpu() if on_gpu else self._layout)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """What ``.to``, ``.half`` and their kin do to each tensor, done to all."""
        held = self._layout
        place = "cuda" if held is not None and held.on_gpu else "cpu"
        probe = fn(torch.zeros(1, dtype=self.kind, device=place))
        if not probe.is_floating_point() or probe.device.type not in ("cpu", "cuda"):
            raise ValueError(
                f"a {type(self).__name__} returns floating-point numbers on a "
                f"processor or a GPU, and cannot become {probe.dtype} on {probe.device}"
            )
        kind = as_torch_type(probe.dtype)
        # Stored numbers keep their types.
        self._drop_buffers()
        super()._apply(fn, recurse)
        if held is not None and probe.is_cuda:
            with torch.cuda.device(probe.device):
                held = held.to_gpu()
        elif held is not None:
            held = held.to_cpu()
        self.kind = kind
        if held is not None:
            self._adopt(held)
        return self

    def _save_to_state_dict(
        self, destination: dict[str, Any], prefix: str, keep_vars: bool
    ) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        held = self.layout.to_cpu()
        for name, array in held.arrays().items():
            destination[prefix + name.replace("/", ".")] = as_tensor(array)
        words = json.dumps(held.blueprint(), sort_keys=True).encode()
        destination[prefix + DESCRIPTION] = as_tensor(np.frombuffer(words, np.uint8))

    def _load_from_state_dict(
        self,
        state_dict: Mapping[str, Any],
        prefix: str,
        local_metadata: Mapping[str, Any],
        strict: bool,
        missing_keys: list[str],
        unexpected_keys: list[str],
        error_msgs: list[str],
    ) -> None:
        own = {
            name.removeprefix(prefix): part
            for name, part in state_dict.items()
            if name.startswith(prefix)
        }
        if not own:
            missing_keys.append(prefix + DESCRIPTION)
            return
        held = self._layout
        try:
            layout = read_state(own, held)
            self._adopt(layout.to_gpu() if held is not None and held.on_gpu else layout)
        except ValueError as error:
            error_msgs.append(f"{prefix or 'state'}: {error}")


class FrozenEmbedding(HeldLayout, CompressedEmbedding):
    """A layout behind the call of `nn.Embedding`: a table that is read, not trained.

    Its `state_dict` holds the layout's arrays, by their names in a file with dots for
    slashes, and its description; all are tensors on the CPU.  A state is loaded into
    a module whose layout is of the same kind and size, whatever its rows, or into one
    that is empty: all of it, checked as a file is, or not at all.

    ``.to(device)`` moves the layout.  ``.half()``, ``.to(dtype)`` and autocast change
    the type of the vectors that are returned, never the stored numbers.
    ``torch.compile``, ``torch.export`` and ``torch.func.vmap`` over ids take it as one
    operator; ``torch.jit.trace`` is an error, since it would keep the example's rows.

    Parameters
    ----------
    layout : Layout
        A layout on the CPU takes CPU ids; after ``to_gpu()`` it takes CUDA ids.
    padding_idx : int, optional
        As in `nn.Embedding`, where it only keeps a row from learning: checked, and of
        no effect.
    default_id : int, optional
        Whose row is returned for ids that the table does not have; by default they are
        an IndexError.
    check : {"late", True, False}
        On a GPU: whether a bad id is raised by one of the next calls, for which nothing
        waits, by the call itself, or not at all; its row is 0.
        What a compiler or an exported program calls is always late.
    out_dtype : torch.dtype, default float32
        Or float16, bfloat16 or float64: type of the vectors.

    Raises
    ------
    ValueError
        If it is given anything else.

    Examples
    --------
    >>> from survey_code.layouts import DenseLayout
    >>> table = FrozenEmbedding(DenseLayout.from_weight(np.eye(3)), default_id=0)
    >>> list(table.state_dict())
    ['values', 'layout_description']
    >>> table.half()(torch.tensor([2, 7]))
    tensor([[0., 0., 1.],
            [1., 0., 0.]], dtype=torch.float16)
    """

    def __init__(
        self,
        layout: Layout,
        padding_idx: int | None = None,
        default_id: int | None = None,
        check: Check = "late",
        out_dtype: torch.dtype = torch.float32,
    ) -> None:
        if not isinstance(layout, Layout):
            raise ValueError(f"layout must be a Layout, got {type(layout).__name__}")
        CompressedEmbedding.__init__(self, layout.num_embeddings, layout.embedding_dim)
        self.padding_idx = find_padding(padding_idx, layout)
        self._begin(layout, default_id, check, out_dtype)

    @classmethod
    def empty(
        cls,
        default_id: int | None = None,
        check: Check = "late",
        out_dtype: torch.dtype = torch.float32,
    ) -> Self:
        """A module without a table, into which a state is to be loaded."""
        module = cls.__new__(cls)
        CompressedEmbedding.__init__(module, 0, 0)
        module.padding_idx = None
        module._begin(None, default_id, check, out_dtype)
        return module

    def forward(self, ids: Tensor) -> Tensor:
        """Vectors read from the layout, without gradients; ids as for any table.

        Raises
        ------
        IndexError
            If an id is out of range, and there is no default.
        RuntimeError
            Under ``torch.jit.trace``, or if the module is empty.
        """
        return self.embed(ids if isinstance(ids, Tensor) else torch.as_tensor(ids))

    def embed(self, ids: Tensor) -> Tensor:
        """The layout's look-up, which checks the ids."""
        if self.default_id is not None:
            ids = self._replace_unknown(ids, self.default_id)
        kind = self._wanted_kind(ids)
        if not is_followed(self, ids):
            layout = self.layout
            if layout.device is not None:  # as `Layout.lookup` does, in less time
                rows: Tensor = layout.device.read(ids, self.check, kind)
                return rows
            return layout.lookup(ids, self.check, kind)
        return operators.lookup(ids, self._tensors(), self.description).to(kind)


class FrozenEmbeddingBag(HeldLayout):
    """A layout behind the call of `nn.EmbeddingBag`: rows pooled bag by bag.

    Otherwise as `FrozenEmbedding`.  Where torch documents an answer it is the same, to
    the rounding of sums; what torch leaves undefined is an error: ids out of range,
    offsets that fall, that exceed the ids or that end elsewhere.

    Parameters
    ----------
    layout : Layout
    mode : {"sum", "mean", "max"}, default "sum"
        That of `nn.EmbeddingBag` is the mean.
    include_last_offset : bool, default False
        One more offset says where the last bag ends.
    padding_idx : int, optional
        An id that no bag reads; a negative one counts from the table's end.
    default_id : int, optional
        Whose row stands for ids that the table does not have; by default they are an
        IndexError.
    check : {"late", True, False}
        On a GPU, as for `FrozenEmbedding`; bad ids add nothing.
    out_dtype : torch.dtype, default float32
        Or float16, bfloat16 or float64: type of the sums, made in float32.

    Raises
    ------
    ValueError
        If it is given anything else.

    Examples
    --------
    >>> from survey_code.layouts import DenseLayout
    >>> bag = FrozenEmbeddingBag(DenseLayout.from_weight(np.eye(3)), mode="sum")
    >>> bag(torch.tensor([0, 2, 2, 1]), torch.tensor([0, 3]))
    tensor([[1., 0., 2.],
            [0., 1., 0.]])
    """

    def __init__(
        self,
        layout: Layout,
        mode: str = "sum",
        include_last_offset: bool = False,
        padding_idx: int | None = None,
        default_id: int | None = None,
        check: Check = "late",
        out_dtype: torch.dtype = torch.float32,
    ) -> None:
        super().__init__()
        if not isinstance(layout, Layout):
            raise ValueError(f"layout must be a Layout, got {type(layout).__name__}")
        find_padding(padding_idx, layout)
        self._set_up(mode, include_last_offset, padding_idx)
        self._begin(layout, default_id, check, out_dtype)

    @classmethod
    def empty(
        cls,
        mode: str = "sum",
        include_last_offset: bool = False,
        padding_idx: int | None = None,
        default_id: int | None = None,
        check: Check = "late",
        out_dtype: torch.dtype = torch.float32,
    ) -> Self:
        """A module without a table, into which a state is to be loaded."""
        module = cls.__new__(cls)
        nn.Module.__init__(module)
        module._set_up(mode, include_last_offset, padding_idx)
        module._begin(None, default_id, check, out_dtype)
        return module

    @property
    def padding_idx(self) -> int | None:
        """The id that no bag reads, as it was given."""
        return self._padding_idx

    @padding_idx.setter
    def padding_idx(self, padding_idx: int | None) -> None:
        if self._layout is not None:
            self.padding = find_padding(padding_idx, self._layout)
        self._padding_idx = padding_idx

    def _fit(self, layout: Layout) -> None:
        super()._fit(layout)
        # The id itself, which a state of another size may change.
        self.padding = find_padding(self.padding_idx, layout)

    def _set_up(self, mode: str, last: bool, padding_idx: int | None) -> None:
        if mode not in MODES:
            raise ValueError(f"mode must be one of {MODES}, got {mode!r}")
        self.mode, self._padding_idx = mode, padding_idx
        self.include_last_offset = check_switch("include_last_offset", last)

    def forward(
        self,
        input: Tensor,
        offsets: Tensor | None = None,
        per_sample_weights: Tensor | None = None,
    ) -> Tensor:
        """Pooled rows, shape (bags, embedding_dim), without gradients.

        Parameters
        ----------
        input : Tensor of int32 or int64, shape (m,), or (bags, length)
            Ids; torch's name for them.
        offsets : Tensor of integers, shape (bags,) or (bags + 1,)
            With ids along one axis: where each bag starts, and where the last ends.
        per_sample_weights : Tensor, same shape as the ids, optional
            With ``mode="sum"`` only.

        Raises
        ------
        IndexError, ValueError
            As `survey_code.layouts.Layout.bag`.
        RuntimeError
            If the weights want a gradient; also as `FrozenEmbedding`.
        """
        weights = per_sample_weights
        if weights is not None and weights.requires_grad and torch.is_grad_enabled():
            raise RuntimeError("per_sample_weights of frozen rows get no gradient")
        ids = input if isinstance(input, Tensor) else torch.as_tensor(input)
        if self.default_id is not None:
            ids = self._replace_unknown(ids, self.default_id)
        mode, last, kind = self.mode, self.include_last_offset, self._wanted_kind(ids)
        options = (mode, self.padding_idx, last)
        if not is_followed(self, ids):
            layout = self.layout
            if layout.device is not None:  # as `Layout.bag` does, in less time
                how = (mode, self.check, self.padding, last, kind)
                sums: Tensor = layout.device.pool(ids, offsets, weights, *how)
                return sums
            return layout.bag(ids, offsets, weights, *options, self.check, kind)
        held = (self._tensors(), self.description)
        return operators.bag(ids, offsets, weights, *held, *options).to(kind)


def is_followed(module: nn.Module, ids: Tensor) -> bool:
    """Whether a compiler follows the call, or a transform, and not a user waits.

    Raises
    ------
    RuntimeError
        Under ``torch.jit.trace``.
    """
    if torch.compiler.is_compiling():
        return True
    if torch.jit.is_tracing():
        raise RuntimeError(
            f"a {type(module).__name__} cannot be traced: the trace would return the "
            "rows of the example's ids whatever it is asked for; torch.export keeps it"
        )
    return torch._C._functorch.is_functorch_wrapped_tensor(ids)


def check_default(default_id: int, layout: Layout) -> None:
    """Raise ValueError for an id that the layout does not have."""
    limit = find_limit(layout)
    whole = isinstance(default_id, int) and not isinstance(default_id, bool)
    if not whole or not 0 <= default_id < limit:
        raise ValueError(
            f"default_id must be an integer from 0 to {limit - 1}, got {default_id!r}"
        )


# In a state, the key of the layout's description.
DESCRIPTION = "layout_description"


def as_tensor(array: np.ndarray) -> Tensor:
    """A tensor over an array, or over a copy where the array cannot be written to."""
    writable = array.flags.writeable and array.flags.c_contiguous
    return torch.from_numpy(array if writable else array.copy())


def read_state(state: Mapping[str, Any], like: Layout | None = None) -> Layout:
    """The layout of a module's state, of the same kind and size as another.

    Raises
    ------
    ValueError
        If something is missing, too many, damaged, or of another kind or size.
    """
    if DESCRIPTION not in state:
        raise ValueError(f"{DESCRIPTION} is missing, which says what the arrays are")
    # Copies: the state may be changed afterwards.
    arrays = {}
    for name, part in state.items():
        if not isinstance(part, Tensor):
            raise ValueError(f"{name} is no tensor, but {type(part).__name__}")
        arrays[name] = part.detach().cpu().contiguous().numpy().copy()
    words = arrays.pop(DESCRIPTION)
    if words.dtype != np.uint8 or words.ndim != 1:
        raise ValueError(f"{DESCRIPTION} must hold bytes, got {words.dtype}")
    try:
        blueprint = check_blueprint(json.loads(words.tobytes()))
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(f"{DESCRIPTION} is damaged ({error})") from error
    named = {name.replace(".", "/"): array for name, array in arrays.items()}
    if like is not None:
        wrong = compare_blueprints(blueprint, like.blueprint())
        if wrong := wrong or compare_arrays(named, like.to_cpu().arrays()):
            raise ValueError(f"the state does not fit: {wrong}")
    return rebuild(blueprint, named)


def compare_arrays(
    given: Mapping[str, np.ndarray], own: Mapping[str, np.ndarray]
) -> str | None:
    """In what the arrays of a state differ from a layout's, in words.

    One that is missing may be one that a layout can do without: its rows are others.
    """
    if given.keys() != own.keys():
        return f"arrays {sorted(given)}, expected {sorted(own)}"
    for name, array in own.items():
        found = given[name]
        if (found.shape, found.dtype) != (array.shape, array.dtype):
            return (
                f"{name} of shape {found.shape} and {found.dtype}, expected "
                f"{array.shape} and {array.dtype}"
            )
    return None


def compare_blueprints(given: Blueprint, own: Blueprint) -> str | None:
    """In what the description of one layout differs from another's, in words."""
    for what in ("layout", "version"):
        if given[what] != own[what]:
            return f"{what} {given[what]!r}, expected {own[what]!r}"
    if given["shape"] != own["shape"]:
        return f"{given['layout']} of {given['shape']}, expected {own['shape']}"
    if given["parts"].keys() != own["parts"].keys():
        return f"parts {sorted(given['parts'])}, expected {sorted(own['parts'])}"
    found = (
        compare_blueprints(part, own["parts"][name])
        for name, part in given["parts"].items()
    )
    return next((wrong for wrong in found if wrong), None)
