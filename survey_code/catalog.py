"""Every method once: what it is, when it compresses, where its code lives.

Importing the catalogue imports no torch: a method's code is loaded when it is
first used.
"""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from survey_code.spec import TableSpec

# The survey's categories and families, in its order.
TAXONOMY: dict[str, tuple[str, ...]] = {
    "baseline": ("baseline",),
    "low precision": ("binarisation", "quantisation"),
    "mixed dimension": ("rule-based", "architecture search", "pruning"),
    "weight sharing": ("hashing", "vector quantisation", "decomposition"),
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
    implementation : str
        ``"module:Class"`` below ``survey_code``.
    """

    key: str
    title: str
    category: str
    family: str
    year: int
    citation: str
    stages: tuple[str, ...]
    tasks: tuple[str, ...]
    implementation: str

    @property
    def stage(self) -> str:
        """When the method compresses."""
        return self.stages[0]

    @property
    def chapter(self) -> str:
        """The module that holds its code, and the chapter of the same name."""
        return self.implementation.split(":")[0]

    def load(self) -> Any:
        """The class that implements the method."""
        module, name = self.implementation.split(":")
        return getattr(importlib.import_module(f"survey_code.{module}"), name)

    def plan(self, spec: TableSpec, ratio: float, **options: Any) -> dict[str, Any]:
        """Options of the largest configuration inside the budget.

        Raises
        ------
        ValueError
            If the budget is out of reach (the message names the highest ratio
            in reach) or an option is unknown.
        """
        plan = self.load().plan
        check_options(self.key, plan, options)
        try:
            planned: dict[str, Any] = plan(spec, ratio, **options)
        except ValueError as error:
            raise ValueError(f"{self.key}: {error}") from error
        return planned

    def build(self, spec: TableSpec, options: dict[str, Any], seed: int = 0) -> Any:
        """A table ready to be trained, or retrained after a search."""
        self._require(DURING, SEARCH)
        check_options(self.key, self.load(), options)
        return self.load()(spec, seed=seed, **options)

    def compress(
        self, weight: Any, options: dict[str, Any], spec: TableSpec | None = None
    ) -> Any:
        """A layout made from trained weights (stage "after training")."""
        self._require(AFTER)
        compress = self.load().compress
        check_options(self.key, compress, options)
        return compress(weight, spec=spec, **options)

    def search(
        self, task: Any, spec: TableSpec, options: dict[str, Any], seed: int = 0
    ) -> dict[str, Any]:
        """Options to retrain with (stage "search, then retrain").

        A class whose search trains a table of its own also has a class method
        ``searching(spec, options, seed)`` that makes this table, fresh, so that
        the memory of the search can be measured.
        """
        self._require(SEARCH)
        found: dict[str, Any] = self.load().search(task, spec, options, seed)
        return found

    def _require(self, *stages: str) -> None:
        if not set(stages) & set(self.stages):
            raise ValueError(
                f"{self.key} does not compress {stages[0]}, "
                f"only {' or '.join(self.stages)}"
            )


def check_options(
    key: str, function: Callable[..., Any], options: dict[str, Any]
) -> None:
    """Raise ValueError if `function` does not take these keyword options."""
    parameters = inspect.signature(function).parameters.values()
    known = {p.name for p in parameters if p.kind is p.KEYWORD_ONLY} - {"spec", "seed"}
    unknown = sorted(set(options) - known)
    if unknown:
        allowed = ", ".join(sorted(known)) or "none"
        raise ValueError(f"{key} has no option {unknown[0]!r}; its options: {allowed}")


BOTH_TASKS = ("ctr", "top-n")

CATALOG: tuple[Method, ...] = (
    Method("full", "Full table", "baseline", "baseline", 2016, "cheng2016",
           (DURING, AFTER), BOTH_TASKS, "embedding:FullEmbedding"),
    Method("uniform", "Smaller dimension", "baseline", "baseline", 2016,
           "cheng2016", (DURING,), BOTH_TASKS, "embedding:UniformEmbedding"),
    Method("bccf", "Median threshold", "low precision", "binarisation", 2012,
           "zhou2012bccf", (AFTER,), BOTH_TASKS,
           "low_precision.binarization:BCCF"),
    Method("dcf", "Discrete collaborative filtering", "low precision",
           "binarisation", 2016, "zhang2016dcf", (DURING,), ("top-n",),
           "low_precision.binarization:DCF"),
    Method("cigar", "Annealed tanh", "low precision", "binarisation", 2019,
           "kang2019cigar", (DURING,), ("top-n",),
           "low_precision.binarization:CIGAR"),
    Method("hashgnn", "Straight-through with guidance", "low precision",
           "binarisation", 2020, "tan2020hashgnn", (DURING,), BOTH_TASKS,
           "low_precision.binarization:HashGNN"),
    Method("bigear", "Layer-wise codes", "low precision", "binarisation", 2022,
           "chen2022bigear", (DURING,), BOTH_TASKS,
           "low_precision.binarization:BiGeaR"),
    Method("rowwise", "Row-wise quantisation", "low precision", "quantisation",
           2019, "guan2019", (AFTER,), BOTH_TASKS,
           "low_precision.quantization:RowwiseQuantization"),
    Method("greedy", "Greedy range search", "low precision", "quantisation", 2019,
           "guan2019", (AFTER,), BOTH_TASKS,
           "low_precision.quantization:GreedyQuantization"),
    Method("half", "Half precision", "low precision", "quantisation", 2018,
           "zhang2018lowprecision", (DURING, AFTER), BOTH_TASKS,
           "low_precision.quantization:HalfPrecision"),
    Method("lsq", "Learned step size", "low precision", "quantisation", 2020,
           "esser2020lsq", (DURING,), BOTH_TASKS,
           "low_precision.quantization:LSQ"),
    Method("lpt", "Low-precision training", "low precision", "quantisation", 2021,
           "xu2021lpt", (DURING,), BOTH_TASKS,
           "low_precision.quantization:LPT"),
    Method("alpt", "Adaptive low-precision training", "low precision",
           "quantisation", 2023, "li2023alpt", (DURING,), BOTH_TASKS,
           "low_precision.quantization:ALPT"),
    Method("mixed_precision_cache", "Mixed precision with a cache", "low precision",
           "quantisation", 2020, "yang2020cache", (DURING,), BOTH_TASKS,
           "low_precision.quantization:MixedPrecisionCache"),
    Method("mde_field", "Mixed dimension by field", "mixed dimension", "rule-based",
           2021, "ginart2021mde", (DURING,), BOTH_TASKS,
           "mixed_dimension.rule_based:MDEFields"),
    Method("mde_popularity", "Mixed dimension by popularity", "mixed dimension",
           "rule-based", 2021, "ginart2021mde", (DURING,), BOTH_TASKS,
           "mixed_dimension.rule_based:MDEBlocks"),
    Method("cprec", "Block-wise decomposition", "mixed dimension", "rule-based",
           2020, "sun2020cprec", (DURING,), BOTH_TASKS,
           "mixed_dimension.rule_based:CpRec"),
    Method("dimension_rules", "Rules of thumb", "mixed dimension", "rule-based",
           2017, "wang2017dcn", (DURING,), BOTH_TASKS,
           "mixed_dimension.rule_based:RuleOfThumb"),
    Method("nis", "NIS", "mixed dimension", "architecture search", 2020,
           "joglekar2020nis", (SEARCH,), BOTH_TASKS,
           "mixed_dimension.architecture_search:NIS"),
    Method("esapn", "ESAPN", "mixed dimension", "architecture search", 2020,
           "liu2020esapn", (DURING,), ("ctr",),
           "mixed_dimension.architecture_search:ESAPN"),
    Method("autoemb", "AutoEmb", "mixed dimension", "architecture search", 2021,
           "zhao2021autoemb", (SEARCH,), BOTH_TASKS,
           "mixed_dimension.architecture_search:AutoEmb"),
    Method("autodim", "AutoDim", "mixed dimension", "architecture search", 2021,
           "zhao2021autodim", (SEARCH,), BOTH_TASKS,
           "mixed_dimension.architecture_search:AutoDim"),
    Method("autosrh", "AutoSrh", "mixed dimension", "architecture search", 2023,
           "kong2023autosrh", (SEARCH,), BOTH_TASKS,
           "mixed_dimension.architecture_search:AutoSrh"),
    Method("optembed", "OptEmbed", "mixed dimension", "architecture search", 2022,
           "lyu2022optembed", (SEARCH,), BOTH_TASKS,
           "mixed_dimension.architecture_search:OptEmbed"),
    Method("bet", "Budgeted sampling", "mixed dimension", "architecture search",
           2024, "qu2024bet", (SEARCH,), BOTH_TASKS,
           "mixed_dimension.architecture_search:BET"),
    Method("magnitude", "Magnitude pruning", "mixed dimension", "pruning", 2015,
           "han2015", (AFTER,), BOTH_TASKS,
           "mixed_dimension.pruning:MagnitudePruning"),
    Method("deeplight", "DeepLight", "mixed dimension", "pruning", 2021,
           "deng2021deeplight", (DURING,), BOTH_TASKS,
           "mixed_dimension.pruning:DeepLight"),
    Method("pep", "PEP", "mixed dimension", "pruning", 2021, "liu2021pep",
           (SEARCH,), BOTH_TASKS, "mixed_dimension.pruning:PEP"),
    Method("sseds", "SSEDS", "mixed dimension", "pruning", 2022, "qu2022sseds",
           (SEARCH,), BOTH_TASKS, "mixed_dimension.pruning:SSEDS"),
    Method("amtl", "AMTL", "mixed dimension", "pruning", 2021, "yan2021amtl",
           (SEARCH,), BOTH_TASKS, "mixed_dimension.pruning:AMTL"),
    Method("optfs", "OptFS", "mixed dimension", "pruning", 2023, "lyu2023optfs",
           (SEARCH,), BOTH_TASKS, "mixed_dimension.pruning:OptFS"),
    Method("hashing", "Hashing trick", "weight sharing", "hashing", 2009,
           "weinberger2009", (DURING,), BOTH_TASKS,
           "weight_sharing.hashing:HashingTrick"),
    Method("double_hashing", "Double hashing", "weight sharing", "hashing", 2020,
           "zhang2020double", (DURING,), BOTH_TASKS,
           "weight_sharing.hashing:DoubleHashing"),
    Method("bloom", "Bloom embeddings", "weight sharing", "hashing", 2017,
           "serra2017bloom", (DURING,), BOTH_TASKS,
           "weight_sharing.hashing:BloomEmbeddings"),
    Method("hash_embeddings", "Hash embeddings", "weight sharing", "hashing", 2017,
           "svenstrup2017", (DURING,), BOTH_TASKS,
           "weight_sharing.hashing:HashEmbeddings"),
    Method("quotient_remainder", "Quotient-remainder", "weight sharing", "hashing",
           2020, "shi2020", (DURING,), BOTH_TASKS,
           "weight_sharing.hashing:QuotientRemainder"),
    Method("memcom", "MEmCom", "weight sharing", "hashing", 2022,
           "pansare2022memcom", (DURING,), BOTH_TASKS,
           "weight_sharing.hashing:MEmCom"),
    Method("binary_code_hash", "Binary code hash", "weight sharing", "hashing", 2021,
           "yan2021bch", (DURING,), BOTH_TASKS,
           "weight_sharing.hashing:BinaryCodeHash"),
    Method("robe", "ROBE", "weight sharing", "hashing", 2022,
           "desai2022robe", (DURING,), BOTH_TASKS,
           "weight_sharing.hashing:ROBE"),
    Method("dhe", "Deep hash embedding", "weight sharing", "hashing", 2021,
           "kang2021dhe", (DURING,), BOTH_TASKS,
           "weight_sharing.hashing:DHE"),
    Method("cafe", "CAFE", "weight sharing", "hashing", 2024,
           "zhang2024cafe", (DURING,), BOTH_TASKS,
           "weight_sharing.hashing:CAFE"),
    Method("clustering", "Clusters of rows", "weight sharing",
           "vector quantisation", 2019, "wu2019saec", (AFTER,), BOTH_TASKS,
           "weight_sharing.vector_quantization:SAEC"),
    Method("pq", "Product quantisation", "weight sharing", "vector quantisation",
           2011, "jegou2011pq", (AFTER,), BOTH_TASKS,
           "weight_sharing.vector_quantization:ProductQuantization"),
    Method("dpq", "Differentiable product quantisation", "weight sharing",
           "vector quantisation", 2020, "chen2020dpq", (DURING,), BOTH_TASKS,
           "weight_sharing.vector_quantization:DPQ"),
    Method("mgqe", "Multi-granular codes", "weight sharing", "vector quantisation",
           2020, "kang2020mgqe", (DURING,), BOTH_TASKS,
           "weight_sharing.vector_quantization:MGQE"),
    Method("lightrec", "LightRec", "weight sharing", "vector quantisation", 2020,
           "lian2020lightrec", (DURING,), BOTH_TASKS,
           "weight_sharing.vector_quantization:LightRec"),
    Method("recjpq", "RecJPQ", "weight sharing", "vector quantisation", 2024,
           "petrov2024recjpq", (DURING,), ("top-n",),
           "weight_sharing.vector_quantization:RecJPQ"),
    Method("cce", "Clustered compositional embeddings", "weight sharing",
           "vector quantisation", 2023, "tsang2023cce", (DURING,), BOTH_TASKS,
           "weight_sharing.vector_quantization:CCE"),
    Method("low_rank", "Low rank", "weight sharing", "decomposition", 2009,
           "koren2009", (DURING, AFTER), BOTH_TASKS,
           "weight_sharing.decomposition:LowRank"),
    Method("mlet", "Multi-layer embedding", "weight sharing", "decomposition", 2020,
           "ghaemmaghami2020mlet", (DURING,), BOTH_TASKS,
           "weight_sharing.decomposition:MLET"),
    Method("tt_rec", "Tensor train", "weight sharing", "decomposition", 2021,
           "yin2021ttrec", (DURING, AFTER), BOTH_TASKS,
           "weight_sharing.decomposition:TTRec"),
    Method("sttd", "Semi-tensor train", "weight sharing", "decomposition", 2022,
           "xia2022sttd", (DURING,), BOTH_TASKS,
           "weight_sharing.decomposition:STTD"),
    Method("ant", "Anchor and transform", "weight sharing", "decomposition", 2021,
           "liang2021ant", (DURING,), BOTH_TASKS,
           "weight_sharing.decomposition:ANT"),
)  # fmt: skip


def methods() -> list[Method]:
    """All methods, in the survey's order."""
    return list(CATALOG)


def get_method(key: str) -> Method:
    """The method of a key.

    Raises
    ------
    ValueError
        If there is none; the message lists the keys.
    """
    for method in CATALOG:
        if method.key == key:
            return method
    raise ValueError(
        f"unknown method {key!r}; methods: {', '.join(m.key for m in CATALOG)}"
    )


def compress(
    weight: Any,
    method: str,
    *,
    counts: Any = None,
    field_starts: Any = None,
    **options: Any,
) -> Any:
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
    import numpy as np

    from survey_code.layouts.layout import as_finite_table

    table = as_finite_table(weight)
    rows, dim = table.shape
    spec = TableSpec(
        rows,
        dim,
        np.array([0, rows]) if field_starts is None else field_starts,
        np.zeros(rows, dtype=np.int64) if counts is None else counts,
    )
    return get_method(method).compress(table, options, spec)
