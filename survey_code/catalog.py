"""Every method once: what it is, when it compresses, where its code lives.

Importing the catalogue imports no torch: a method's code is loaded when it is
first used.
"""

from __future__ import annotations

import functools
import hashlib
import importlib
import importlib.util
import os
import re
import sys
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import entry_points
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from survey_code.options import Options
from survey_code.spec import TableSpec

if TYPE_CHECKING:
    from torch import Tensor

    from survey_code.layouts import Layout

    # A table of numbers, in any form that holds one.
    Weights = npt.NDArray[np.floating] | Tensor | Sequence[Sequence[float]]
    Integers = npt.NDArray[np.integer] | Sequence[int]

# The survey's categories and families, in its order; hybrids belong to two.
TAXONOMY: dict[str, tuple[str, ...]] = {
    "baseline": ("baseline",),
    "low precision": ("binarisation", "quantisation"),
    "mixed dimension": ("rule-based", "architecture search", "pruning"),
    "weight sharing": ("hashing", "vector quantisation", "decomposition"),
    "hybrids": ("hash and prune",),
}

AFTER = "after training"
DURING = "during training"
SEARCH = "search, then retrain"


@dataclass(frozen=True)
class Method:
    """One way to compress a table.

    Parameters
    ----------
    key : str
        What users type.
    title : str
    category, family : str
        Its place in `TAXONOMY`.
    year : int
    citation : str
        Key in the bibliography.
    stages : tuple of str
        When it can compress: `AFTER`, `DURING`, `SEARCH`; the first is what
        `run` does.
    tasks : tuple of str
        ``"ctr"``, ``"top-n"`` or both.
    implementation : str or class
        ``"module:Class"`` below ``survey_code``; of a plug-in, the class itself.
    """

    key: str
    title: str
    category: str
    family: str
    year: int
    citation: str
    stages: tuple[str, ...]
    tasks: tuple[str, ...]
    implementation: Any

    @property
    def stage(self) -> str:
        """When the method compresses."""
        return self.stages[0]

    @property
    def chapter(self) -> str:
        """The module that holds its code, and the chapter of the same name."""
        if isinstance(self.implementation, type):
            return self.implementation.__module__
        return str(self.implementation).split(":")[0]

    def load(self) -> Any:
        """The class that implements the method."""
        if isinstance(self.implementation, type):
            return self.implementation
        module, name = self.implementation.split(":")
        return getattr(importlib.import_module(f"survey_code.{module}"), name)

    def ask(
        self, given: Options | Mapping[str, object], found: bool = False
    ) -> Options:
        """What a user asks for, with the defaults for all else; what only a plan or a
        search finds where a table is to be made of it.

        Raises
        ------
        ValueError
            If an option is unknown, or its value not allowed.
        """
        kind: type[Options] = self.load().options
        if not isinstance(given, Options):
            return kind.of(self.key, given, found)
        if not isinstance(given, kind):
            raise ValueError(f"{self.key} takes {kind.__name__}, got {given!r}")
        return given

    def plan(self, spec: TableSpec, ratio: float, **given: object) -> Options:
        """Options of the largest configuration inside the budget.

        Raises
        ------
        OutOfReach
            If the budget is out of reach (the message names the highest ratio
            in reach).
        ValueError
            If an option is unknown, or its value not allowed.
        """
        return self.fit_budget(spec, ratio, self.ask(given))

    def fit_budget(self, spec: TableSpec, ratio: float, asked: Options) -> Options:
        """What was asked, and what a plan chooses beside it."""
        try:
            return asked.replace(**self.load().plan(spec, ratio, asked))
        except ValueError as error:
            error.args = (f"{self.key}: {error}",)
            raise

    def build(
        self, spec: TableSpec, options: Options | Mapping[str, object], seed: int = 0
    ) -> Any:
        """A table ready to be trained, or retrained after a search."""
        self.require_stage(DURING, SEARCH)
        return self.load()(spec, self.ask(options, found=True).settled(), seed)

    def compress(
        self,
        weight: Weights,
        options: Options | Mapping[str, object],
        spec: TableSpec | None = None,
    ) -> Layout:
        """A layout made from trained weights (stage "after training")."""
        from survey_code.layouts.layout import as_finite_table

        self.require_stage(AFTER)
        rows = as_finite_table(weight)
        if spec is None:
            spec = TableSpec.of_shape(*rows.shape)
        check_spec(spec, rows.shape)
        asked = self.ask(options).settled()
        layout: Layout = self.load().compress(rows, spec, asked)
        return layout

    def require_stage(self, *stages: str) -> None:
        """Raise ValueError unless the method compresses in one of these stages."""
        if not set(stages) & set(self.stages):
            raise ValueError(
                f"{self.key} does not compress {stages[0]}, "
                f"only {' or '.join(self.stages)}"
            )


def check_spec(spec: TableSpec, shape: tuple[int, ...]) -> None:
    """Raise ValueError unless a spec is of a table of this shape."""
    if not isinstance(spec, TableSpec):
        raise ValueError(f"spec must be a TableSpec, got {spec!r:.80}")
    told = (spec.num_embeddings, spec.embedding_dim)
    if told != shape:
        raise ValueError(f"the spec is of a table of shape {told}, weight has {shape}")


CLICKS, RANKS = ("ctr",), ("top-n",)
BOTH = CLICKS + RANKS

# Key, title, year, citation, stages, tasks, class.
Line = tuple[str, str, int, str, str | tuple[str, ...], tuple[str, ...], str]


def list_family(
    category: str, family: str, module: str, lines: tuple[Line, ...]
) -> Iterator[Method]:
    """The methods of a family whose code lies in one module or folder."""
    for key, title, year, citation, given, tasks, name in lines:
        stages = (given,) if isinstance(given, str) else given
        place = f"{module}:{name}"
        yield Method(key, title, category, family, year, citation, stages, tasks, place)


CATALOG: tuple[Method, ...] = (
    *list_family("baseline", "baseline", "baselines", (
        ("full", "Full table", 2016, "cheng2016", (DURING, AFTER), BOTH,
         "FullEmbedding"),
        ("uniform", "Smaller dimension", 2016, "cheng2016", DURING, BOTH,
         "UniformEmbedding"),
        ("head_only", "Rows for the head only", 2016, "cheng2016", DURING, BOTH,
         "HeadOnly"),
        ("popular", "Most popular", 2010, "cremonesi2010", DURING, RANKS, "Popular"),
    )),
    *list_family("low precision", "binarisation", "low_precision.binarization", (
        ("bccf", "Median threshold", 2012, "zhou2012bccf", AFTER, BOTH, "BCCF"),
        ("dcf", "Discrete collaborative filtering", 2016, "zhang2016dcf", DURING,
         RANKS, "DCF"),
        ("cigar", "Annealed tanh", 2019, "kang2019cigar", DURING, RANKS, "CIGAR"),
        ("hashgnn", "Straight-through with guidance", 2020, "tan2020hashgnn", DURING,
         BOTH, "HashGNN"),
        ("bigear", "Layer-wise codes", 2022, "chen2022bigear", DURING, BOTH, "BiGeaR"),
    )),
    *list_family("low precision", "quantisation", "low_precision.quantization", (
        ("rowwise", "Row-wise quantisation", 2019, "guan2019", AFTER, BOTH,
         "RowwiseQuantization"),
        ("greedy", "Greedy range search", 2019, "guan2019", AFTER, BOTH,
         "GreedyQuantization"),
        ("rotated", "Turned rows, normal levels", 2025, "zandieh2025turboquant",
         AFTER, BOTH, "RotatedQuantization"),
        ("half", "Half precision", 2018, "zhang2018lowprecision", (DURING, AFTER),
         BOTH, "HalfPrecision"),
        ("lsq", "Learned step size", 2020, "esser2020lsq", DURING, BOTH, "LSQ"),
        ("lpt", "Low-precision training", 2021, "xu2021lpt", DURING, BOTH, "LPT"),
        ("alpt", "Adaptive low-precision training", 2023, "li2023alpt", DURING, BOTH,
         "ALPT"),
        ("mixed_precision_cache", "Mixed precision with a cache", 2020,
         "yang2020cache", DURING, BOTH, "MixedPrecisionCache"),
        ("mpe", "Mixed-precision embeddings", 2024, "li2024mpe", SEARCH, BOTH, "MPE"),
        ("shark", "SHARK", 2023, "zhang2023shark", DURING, BOTH, "SHARK"),
    )),
    *list_family("mixed dimension", "rule-based", "mixed_dimension.rule_based", (
        ("mde_field", "Mixed dimension by field", 2021, "ginart2021mde", DURING,
         BOTH, "MDEFields"),
        ("mde_popularity", "Mixed dimension by popularity", 2021, "ginart2021mde",
         DURING, BOTH, "MDEBlocks"),
        ("cprec", "Block-wise decomposition", 2020, "sun2020cprec", DURING, BOTH,
         "CpRec"),
        ("dimension_rules", "Rules of thumb", 2017, "wang2017dcn", DURING, BOTH,
         "RuleOfThumb"),
    )),
    *list_family("mixed dimension", "architecture search",
                 "mixed_dimension.architecture_search", (
        ("nis", "NIS", 2020, "joglekar2020nis", SEARCH, BOTH, "NIS"),
        ("esapn", "ESAPN", 2020, "liu2020esapn", DURING, CLICKS, "ESAPN"),
        ("autoemb", "AutoEmb", 2021, "zhao2021autoemb", SEARCH, BOTH, "AutoEmb"),
        ("autodim", "AutoDim", 2021, "zhao2021autodim", SEARCH, BOTH, "AutoDim"),
        ("autosrh", "AutoSrh", 2023, "kong2023autosrh", SEARCH, BOTH, "AutoSrh"),
        ("optembed", "OptEmbed", 2022, "lyu2022optembed", SEARCH, BOTH, "OptEmbed"),
        ("bet", "Budgeted sampling", 2024, "qu2024bet", SEARCH, BOTH, "BET"),
    )),
    *list_family("mixed dimension", "pruning", "mixed_dimension.pruning", (
        ("magnitude", "Magnitude pruning", 2015, "han2015", (SEARCH, AFTER), BOTH,
         "MagnitudePruning"),
        ("deeplight", "DeepLight", 2021, "deng2021deeplight", DURING, BOTH,
         "DeepLight"),
        ("pep", "PEP", 2021, "liu2021pep", SEARCH, BOTH, "PEP"),
        ("sseds", "SSEDS", 2022, "qu2022sseds", SEARCH, BOTH, "SSEDS"),
        ("amtl", "AMTL", 2021, "yan2021amtl", SEARCH, BOTH, "AMTL"),
        ("optfs", "OptFS", 2023, "lyu2023optfs", SEARCH, BOTH, "OptFS"),
        ("shaver", "SHAVER", 2025, "tran2025shaver", DURING, BOTH, "Shaver"),
    )),
    *list_family("weight sharing", "hashing", "weight_sharing.hashing", (
        ("hashing", "Hashing trick", 2009, "weinberger2009", DURING, BOTH,
         "HashingTrick"),
        ("double_hashing", "Double hashing", 2020, "zhang2020double", DURING, BOTH,
         "DoubleHashing"),
        ("bloom", "Bloom embeddings", 2017, "serra2017bloom", DURING, BOTH,
         "BloomEmbeddings"),
        ("hash_embeddings", "Hash embeddings", 2017, "svenstrup2017", DURING, BOTH,
         "HashEmbeddings"),
        ("quotient_remainder", "Quotient-remainder", 2020, "shi2020", DURING, BOTH,
         "QuotientRemainder"),
        ("memcom", "MEmCom", 2022, "pansare2022memcom", DURING, BOTH, "MEmCom"),
        ("binary_code_hash", "Binary code hash", 2021, "yan2021bch", DURING, BOTH,
         "BinaryCodeHash"),
        ("robe", "ROBE", 2022, "desai2022robe", DURING, BOTH, "ROBE"),
        ("dhe", "Deep hash embedding", 2021, "kang2021dhe", DURING, BOTH, "DHE"),
        ("cafe", "CAFE", 2024, "zhang2024cafe", DURING, BOTH, "CAFE"),
        ("unified", "Unified embedding", 2023, "coleman2023unified", DURING, BOTH,
         "UnifiedEmbedding"),
        ("semantic_ids", "Semantic ids", 2024, "singh2024semantic", DURING, BOTH,
         "SemanticIDs"),
        ("zero_collision", "Zero-collision hashing", 2026, "zhao2026mpzch", DURING,
         BOTH, "ZeroCollision"),
    )),
    *list_family("weight sharing", "vector quantisation",
                 "weight_sharing.vector_quantization", (
        ("clustering", "Clusters of rows", 2019, "wu2019saec", AFTER, BOTH, "SAEC"),
        ("pq", "Product quantisation", 2011, "jegou2011pq", AFTER, BOTH,
         "ProductQuantization"),
        ("dpq", "Differentiable product quantisation", 2020, "chen2020dpq", DURING,
         BOTH, "DPQ"),
        ("mgqe", "Multi-granular codes", 2020, "kang2020mgqe", DURING, BOTH, "MGQE"),
        ("lightrec", "LightRec", 2020, "lian2020lightrec", DURING, BOTH, "LightRec"),
        ("recjpq", "RecJPQ", 2024, "petrov2024recjpq", DURING, RANKS, "RecJPQ"),
        ("cce", "Clustered compositional embeddings", 2023, "tsang2023cce", DURING,
         BOTH, "CCE"),
        ("baco", "Balanced co-clusters", 2026, "jiang2026baco", DURING, RANKS, "BACO"),
    )),
    *list_family("weight sharing", "decomposition", "weight_sharing.decomposition", (
        ("low_rank", "Low rank", 2009, "koren2009", (DURING, AFTER), BOTH, "LowRank"),
        ("mlet", "Multi-layer embedding", 2020, "ghaemmaghami2020mlet", DURING, BOTH,
         "MLET"),
        ("tt_rec", "Tensor train", 2021, "yin2021ttrec", (DURING, AFTER), BOTH,
         "TTRec"),
        ("sttd", "Semi-tensor train", 2022, "xia2022sttd", DURING, BOTH, "STTD"),
        ("ant", "Anchor and transform", 2021, "liang2021ant", DURING, BOTH, "ANT"),
    )),
    *list_family("hybrids", "hash and prune", "hybrids", (
        ("cerp", "Pruned codebooks", 2023, "liang2023cerp", SEARCH, BOTH, "CERP"),
    )),
)  # fmt: skip

# Known by their key, but in no list: the cells of an experiment, no method of a paper.
UNLISTED: tuple[Method, ...] = (
    *list_family("hybrids", "hash and prune", "hybrids", (
        ("nested", "Narrow, pruned and shared rows", 2024, "li2024survey", SEARCH,
         CLICKS, "NestedFields"),
    )),
)  # fmt: skip

# Methods of plug-ins, by key, and the files that they came from.
_ADDED: dict[str, Method] = {}
_FILES: dict[str, bytes] = {}
# Where installed packages say that they hold methods.
GROUP = "survey_code.methods"


def add_method(method: Method) -> None:
    """Put a method of your own beside those of the catalogue, for this process.

    Raises
    ------
    ValueError
        If another method has its key, or its place in the taxonomy does not exist.
    """
    if not (isinstance(method.key, str) and re.fullmatch(r"[a-z]\w*", method.key)):
        raise ValueError(f"a key is a word of small letters, got {method.key!r}")
    stages = method.stages if isinstance(method.stages, tuple) else ()
    if not stages or not set(stages) <= {AFTER, DURING, SEARCH}:
        raise ValueError(
            f"{method.key}: stages are some of {(AFTER, DURING, SEARCH)}, got "
            f"{method.stages!r}"
        )
    if not issubclass(getattr(method.load(), "options", object), Options):
        raise ValueError(f"{method.key}: {method.implementation!r} has no options")
    known = (*CATALOG, *UNLISTED, *_ADDED.values())
    taken = {own.key: own for own in known}
    if taken.get(method.key, method) != method:
        raise ValueError(f"there is a method {method.key!r} already")
    families = TAXONOMY.get(method.category, ())
    if method.family not in families:
        raise ValueError(
            f"{method.key}: no family {method.family!r} in category "
            f"{method.category!r}; the taxonomy: {TAXONOMY}"
        )
    _ADDED[method.key] = method


def load_plugin(path: str | os.PathLike[str]) -> list[Method]:
    """Add the methods of a Python file: every `Method` that it defines.

    Raises
    ------
    ValueError
        If the file cannot be run, or defines no method.
    """
    place = Path(path).resolve()
    digest = hashlib.sha256(str(place).encode()).hexdigest()[:8]
    name = f"survey_code_plugin_{place.stem}_{digest}"
    known = _FILES.get(str(place))
    if known is None:
        run_file(name, place)
    elif known != place.read_bytes():
        raise ValueError(f"{path}: has changed since it was loaded; start anew")
    defined = defined_methods(sys.modules[name])
    if not defined:
        named = [own for own in vars(sys.modules[name]) if not own.startswith("_")]
        raise ValueError(
            f"{path}: defines no survey_code.Method, only "
            f"{', '.join(named) or 'nothing'}; a plug-in has a line such as "
            "METHOD = survey_code.Method(...)"
        )
    for method in defined:
        add_method(method)
    _FILES[str(place)] = place.read_bytes()
    return defined


def run_file(name: str, place: Path) -> None:
    """Import a file as a module of this name."""
    found = importlib.util.spec_from_file_location(name, place)
    if found is None or found.loader is None:
        raise ValueError(f"{place}: a plug-in is a Python file")
    sys.modules[name] = module = importlib.util.module_from_spec(found)
    try:
        found.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        raise ValueError(f"{place}: {type(error).__name__}: {error}") from error


def defined_methods(module: ModuleType) -> list[Method]:
    """The methods that a module names."""
    return [thing for thing in vars(module).values() if isinstance(thing, Method)]


def loaded_plugins() -> list[str]:
    """The plug-in files of this process, for others that are to know them too."""
    return list(_FILES)


@functools.cache
def find_installed() -> None:
    """Add the methods of installed packages, which name them as entry points.

    One that cannot be loaded is a warning, for the others' sake.
    """
    for entry in entry_points(group=GROUP):
        try:
            add_method(entry.load())
        except Exception as error:
            warnings.warn(f"plug-in {entry.value}: {error}", stacklevel=3)


def methods() -> list[Method]:
    """All methods: the catalogue's in the survey's order, then those of plug-ins."""
    find_installed()
    return [*CATALOG, *_ADDED.values()]


def get_method(key: str) -> Method:
    """The method of a key.

    Raises
    ------
    ValueError
        If there is none; the message lists the keys.
    """
    for method in (*methods(), *UNLISTED):
        if method.key == key:
            return method
    raise ValueError(
        f"unknown method {key!r}; methods: {', '.join(m.key for m in methods())}"
    )


def compress(
    weight: Weights,
    method: str,
    *,
    counts: Integers | None = None,
    field_starts: Integers | None = None,
    **options: object,
) -> Layout:
    """Compress an embedding table of your own, after training.

    Parameters
    ----------
    weight : array or tensor, shape (n, d)
        The trained table, e.g. ``model.emb.weight``.
    method : str
        Key of a method that works after training.
    counts : array of int, shape (n,), optional
        How often each id occurs, for methods that treat frequent ids better.
    field_starts : array of int, optional
        First id of each field, then n; for methods that work field by field.
    **options
        The method's own, e.g. ``bits=4``.

    Returns
    -------
    Layout

    Raises
    ------
    ValueError
        If the method does not exist or does not work after training, an option
        is unknown, or the weights are not a finite 2-D table.

    Examples
    --------
    >>> import numpy as np
    >>> table = np.linspace(-1, 1, 32, dtype=np.float32).reshape(4, 8)
    >>> compress(table, "rowwise", bits=4)
    RowwiseLayout(4 x 8, 32 bytes, 4.0x)
    """
    from survey_code.layouts.layout import as_finite_table

    table = as_finite_table(weight)
    rows, dim = table.shape
    spec = TableSpec.of_table(rows, dim, counts, field_starts)
    return get_method(method).compress(table, options, spec)
