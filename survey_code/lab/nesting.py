"""Trained once, tested in many forms: what a layout is rounded to, or shares.

A form is a few words, in the order of what is done: ``"8 bits"`` rounds, ``"pq"`` has
rows share codewords, and ``"pq, 8 bits"`` rounds the codewords then.  In ``"8 bits, pq,
8 bits"`` the rows are rounded first: it takes the same bytes in the other order.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import pandas as pd

from survey_code.curves import Difference, Point
from survey_code.hybrids.nested import round_layout, share_layout
from survey_code.lab.comparison import main_metric
from survey_code.lab.experiment import Experiment
from survey_code.lab.results import Result, group_seeds
from survey_code.lab.task import ClickTask, DataTask, Learnt
from survey_code.layouts import Layout
from survey_code.metrics import measure_clicks
from survey_code.objectives import predict_clicks

# Numbers of a codeword; its codes have 8 bits.
CODEWORD = 2
# Stretches of test rows whose losses are noted one by one.
LOSS_BLOCKS = 32

FORM_STEPS = re.compile(r"(?:([842]) bits, )?pq(?:, ([842]) bits)?|([842]) bits")


def change_layout(
    layout: Layout, form: str, counts: np.ndarray | None = None
) -> Layout:
    """A layout in a form.

    Parameters
    ----------
    layout : Layout
    form : str
    counts : ndarray of int64, shape (num_embeddings,), optional
        How often each id is read, for codewords.

    Raises
    ------
    ValueError
        If the form has other words, or nothing in the layout is smaller for it.

    Examples
    --------
    >>> from survey_code.layouts import DenseLayout
    >>> rows = np.random.default_rng(0).normal(size=(4096, 16)).astype(np.float32)
    >>> change_layout(DenseLayout(rows), "pq, 4 bits").nbytes
    35876
    """
    found = FORM_STEPS.fullmatch(form)
    if found is None:
        raise ValueError(
            "a form is 'pq', '8 bits', '4 bits', '2 bits', or pq with bits before or "
            f"behind it, as in 'pq, 8 bits', got {form!r}"
        )
    before, behind, alone = (int(bits) if bits else None for bits in found.groups())
    if alone is not None:
        return round_layout(layout, alone)
    layout = share_layout(layout, CODEWORD, counts=counts, rounded=before)
    return layout if behind is None else round_layout(layout, behind)


@dataclass(frozen=True)
class FormExperiment(Experiment):
    """An experiment whose trained layout is tested in further forms, too.

    Its result has the metrics of a form behind its name, as in ``"auc@pq, 8 bits"``,
    and its bytes likewise, ``"inference@pq, 8 bits"``.  Of clicks there are also the
    losses of `LOSS_BLOCKS` stretches of test rows, ``"log_loss#0"`` and so on, or
    ``"log_loss@pq#0"``: two forms differ by less than each varies from row to row, and
    the stretches tell by how much.  Forms in which nothing would be smaller are left
    out.

    Parameters
    ----------
    forms : tuple of str
    """

    forms: tuple[str, ...] = ()

    @property
    def asked(self) -> dict[str, object]:
        """The method's options, and the forms."""
        return {**self.options.asked(), "forms": list(self.forms)}

    @property
    def defaults(self) -> dict[str, object]:
        """What `asked` is where nothing is asked for."""
        return {**super().defaults, "forms": []}

    def _look_at_test(
        self, final: DataTask, learnt: Learnt
    ) -> tuple[dict[str, float], dict[str, int]]:
        """As any experiment looks, and in each form; the bytes of the forms."""
        tested, sizes = look_closely(final, learnt, learnt.layout), {}
        for form in self.forms:
            try:
                layout = change_layout(learnt.layout, form, self.counts)
            except ValueError:
                continue
            tested |= name_metrics(look_closely(final, learnt, layout), form)
            sizes[f"inference@{form}"] = layout.nbytes + self.task.spec.outside_bytes
        return tested, sizes

    @property
    def counts(self) -> np.ndarray:
        """How often training reads each id."""
        return self.task.spec.train_counts


def look_closely(task: DataTask, learnt: Learnt, layout: Layout) -> dict[str, float]:
    """Test metrics with vectors of a layout; of clicks also the losses of stretches of
    the rows, by their numbers behind a hash.
    """
    if not isinstance(task, ClickTask):
        return task.test(learnt.fitted.network, layout)
    twin, rows = task.read_through(learnt.fitted.network, layout), task.data.test
    logits = predict_clicks(twin, rows, task.device).astype(np.float64)
    losses = np.logaddexp(0.0, logits) - rows.labels * logits
    parts = np.array_split(losses, LOSS_BLOCKS)
    means = [float(part.mean()) for part in parts if len(part)]
    blocks = {f"log_loss#{k}": float(f"{mean:.9g}") for k, mean in enumerate(means)}
    return measure_clicks(rows.labels, logits) | blocks


def name_metrics(metrics: dict[str, float], form: str) -> dict[str, float]:
    """Metrics by the names that they have in the result of a form.

    Examples
    --------
    >>> name_metrics({"auc": 0.8, "log_loss#3": 0.4}, "pq")
    {'auc@pq': 0.8, 'log_loss@pq#3': 0.4}
    """
    named = {}
    for name, value in metrics.items():
        metric, mark, block = name.partition("#")
        named[f"{metric}@{form}{mark}{block}"] = value
    return named


def read_blocks(result: Result, form: str = "") -> list[float]:
    """Losses of the stretches of test rows, in a form or as trained.

    Raises
    ------
    ValueError
        If the result has none.
    """
    start = f"log_loss@{form}#" if form else "log_loss#"
    count = sum(name.startswith(start) for name in result.test)
    if not count:
        shown = f"in the form {form!r}" if form else "as trained"
        raise ValueError(f"a result of {result.key} has no losses {shown}")
    return [result.test[f"{start}{k}"] for k in range(count)]


def reached_in(result: Result, form: str = "") -> float:
    """The ratio that a result reaches in a form, or as trained."""
    stored = result.bytes["inference"]
    return (
        result.reached_ratio * stored / result.bytes[f"inference@{form}"]
        if form
        else result.reached_ratio
    )


def list_recorded(result: Result) -> list[str]:
    """The forms that a result has metrics of."""
    start = "inference@"
    return [name[len(start) :] for name in result.bytes if name.startswith(start)]


def draw_point(results: Iterable[Result], metric: str, form: str = "") -> Point:
    """A metric of runs that differ by their seed alone, in a form or as trained."""
    results = list(results)
    name = f"{metric}@{form}" if form else metric
    values = {result.seed: result.test[name] for result in results}
    return Point(values, (float(np.mean([reached_in(r, form) for r in results])),))


def tabulate_forms(
    results: Iterable[Result], metric: str | None = None
) -> pd.DataFrame:
    """Which methods bear which forms.

    Parameters
    ----------
    results : iterable of Result
        Of `FormExperiment`.
    metric : str, optional
        Key of `Result.test`; by default `main_metric`.

    Returns
    -------
    DataFrame
        Indexed by ``key`` and ``form``, empty for the layout as trained: ``ratio``
        reached, ``mean`` over seeds, ``change`` against the layout as trained, paired,
        its ``deviation``, and whether it is ``clear``.
    """
    results = list(results)
    metric = metric or main_metric(results)
    rows = {}
    for (name, _, _), group in group_seeds(results).items():
        trained = draw_point(group, metric)
        shared = [set(list_recorded(result)) for result in group]
        forms = [f for f in list_recorded(group[0]) if f in set.intersection(*shared)]
        for form in ("", *forms):
            point = draw_point(group, metric, form)
            change = Difference.of(point, trained)
            rows[name, form] = {
                "ratio": point.reached[0],
                "mean": point.mean,
                "change": change.mean,
                "deviation": change.deviation,
                "clear": bool(form) and change.is_clear,
            }
    table = pd.DataFrame.from_dict(rows, orient="index")
    return table.rename_axis(["key", "form"])
