"""Standard metrics: AUC and log-loss for clicks, Recall and NDCG for rankings."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from survey_code.checks import as_array, check_labels, check_range


def measure_clicks(labels: np.ndarray, logits: np.ndarray) -> dict[str, float]:
    """AUC and log-loss of predicted logits.

    Parameters
    ----------
    labels : ndarray, shape (rows,), each 0 or 1
    logits : ndarray, shape (rows,)

    Returns
    -------
    dict
        ``"auc"`` and ``"log_loss"`` (natural logarithm).

    Raises
    ------
    ValueError
        If labels and logits are not of one length and one axis, or a label is neither
        0 nor 1.  If a logit is NaN or infinite: a diverged run must not look like a
        weak one.  If all labels are the same: there is no AUC then.
    """
    from sklearn.metrics import roc_auc_score

    logits = as_numbers_of_rows("logits", logits)
    labels = as_numbers_of_rows("labels", labels)
    if logits.shape != labels.shape:
        raise ValueError(
            f"labels and logits must be of one length, got {len(labels)} labels and "
            f"{len(logits)} logits"
        )
    check_labels(labels)
    if not np.isfinite(logits).all():
        bad = int((~np.isfinite(logits)).sum())
        raise ValueError(f"{bad} of {len(logits)} logits are NaN or infinite")
    if len(np.unique(labels)) != 2:
        raise ValueError(
            f"AUC needs clicks and non-clicks, got {len(labels)} rows with labels "
            f"{np.unique(labels).tolist()}"
        )
    # log(1 + e^x) - y x is the log-loss without a probability that rounds to 0.
    losses = np.logaddexp(0.0, logits) - labels * logits
    with np.errstate(over="ignore"):
        loss = float(np.mean(losses))
    if not np.isfinite(loss):  # sums and differences leave float64, the mean does not
        loss = float((losses / len(losses)).sum())
        logits = np.unique(logits, return_inverse=True)[1]
    return {"auc": float(roc_auc_score(labels, logits)), "log_loss": loss}


def as_numbers_of_rows(name: str, values: object) -> np.ndarray:
    """Float64 numbers, one a row; or one clear ValueError."""
    if isinstance(values, Tensor):
        if values.is_meta or values.layout != torch.strided:
            raise ValueError(f"{name} must be numbers, got {values!r:.80}")
        values = values.detach().cpu()
        # NumPy has no bfloat16.
        values = values.double() if values.is_floating_point() else values
    array = as_array(name, values, "be numbers", "fiub")
    # Columns against rows would be compared each with each.
    if array.ndim != 1:
        raise ValueError(f"{name} must have shape (rows,), got {array.shape}")
    return array.astype(np.float64)


def measure_ranking(
    top: Tensor, relevant: Tensor, relevant_counts: Tensor, k: int
) -> dict[str, float]:
    r"""Recall@k and NDCG@k, summed over users who have relevant items.

    Recall divides by the number of relevant items (not by the smaller of that
    number and k); NDCG's ideal ranking has min(k, relevant) hits on top.

    Parameters
    ----------
    top : Tensor of int64, shape (users, any)
        Ranked items, best first; fewer than k where there are no more items.
    relevant : Tensor of bool, shape (users, items)
        Which items each user met in the held-out part.
    relevant_counts : Tensor of int64, shape (users,)
    k : int

    Returns
    -------
    dict
        ``"recall@k"`` and ``"ndcg@k"`` *summed* over users, and ``"users"``,
        so that batches of users can be added up.

    Raises
    ------
    ValueError
        If the shapes do not fit together, the counts are not those of `relevant`, or
        an item is ranked twice.
    IndexError
        If a ranked item is none.
    """
    k = check_range("k", k, 1)
    check_ranking(top, relevant, relevant_counts)
    return add_up_hits(top.long(), relevant, relevant_counts.long(), k)


def add_up_hits(
    top: Tensor, relevant: Tensor, relevant_counts: Tensor, k: int
) -> dict[str, float]:
    """`measure_ranking` of what is known to fit together."""
    reach = max(min(k, relevant.shape[1]), 1)  # nobody has more places to fill
    hits = relevant.gather(1, top[:, :reach]).double()  # (users, reach)
    discount = 1 / torch.log2(
        torch.arange(2, reach + 2, device=top.device, dtype=torch.float64)
    )
    ideal = torch.cat([discount.new_zeros(1), discount.cumsum(0)])  # (reach + 1,)
    known = relevant_counts > 0
    counts = relevant_counts.clamp(min=1)
    recall = (hits.sum(1) / counts)[known].sum()
    gains = (hits * discount[: hits.shape[1]]).sum(1)
    ndcg = (gains / ideal[counts.clamp(max=reach)])[known].sum()
    return {
        f"recall@{k}": float(recall),
        f"ndcg@{k}": float(ndcg),
        "users": float(known.sum()),
    }


def check_ranking(top: Tensor, relevant: Tensor, relevant_counts: Tensor) -> None:
    """Raise the errors of `measure_ranking`."""
    for name, given in (
        ("top", top), ("relevant", relevant), ("relevant_counts", relevant_counts)
    ):  # fmt: skip
        if not isinstance(given, torch.Tensor) or given.is_complex() or given.is_meta:
            raise ValueError(
                f"{name} must be a tensor of whole numbers, got {given!r:.80}"
            )
    users = len(relevant) if relevant.ndim else 0
    if relevant.dtype != torch.bool or relevant.ndim != 2:
        raise ValueError(
            f"relevant must be of dtype bool and shape (users, items), got "
            f"{relevant.dtype} and {tuple(relevant.shape)}"
        )
    for name, given, axes in (("top", top, 2), ("relevant_counts", relevant_counts, 1)):
        whole = not (given.is_floating_point() or given.dtype == torch.bool)
        if not whole or given.ndim != axes or len(given) != users:
            raise ValueError(
                f"{name} must hold integers, {axes} axes of them and the first of "
                f"{users} users, got {given.dtype} of shape {tuple(given.shape)}"
            )
    if top.numel():
        low, high = (int(end) for end in torch.aminmax(top))
        if low < 0 or high >= relevant.shape[1]:
            raise IndexError(
                f"item {low if low < 0 else high} is out of range for "
                f"{relevant.shape[1]} items"
            )
        ordered = top.sort(dim=1, stable=True).values
        if (ordered[:, 1:] == ordered[:, :-1]).any():
            raise ValueError("top must rank every item at most once")
    if not torch.equal(relevant.sum(1), relevant_counts.to(torch.int64)):
        raise ValueError("relevant_counts must count the relevant items of each user")
