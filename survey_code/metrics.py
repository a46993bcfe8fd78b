"""Standard metrics: AUC and log-loss for clicks, Recall and NDCG for rankings."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor


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
        If a logit is NaN or infinite: a diverged run must not look like a weak
        one.  If all labels are the same: there is no AUC then.
    """
    from sklearn.metrics import roc_auc_score

    logits = np.asarray(logits, dtype=np.float64)
    labels = np.asarray(labels, dtype=np.float64)
    if not np.isfinite(logits).all():
        bad = int((~np.isfinite(logits)).sum())
        raise ValueError(f"{bad} of {len(logits)} logits are NaN or infinite")
    if len(np.unique(labels)) != 2:
        raise ValueError(
            f"AUC needs clicks and non-clicks, got {len(labels)} rows with labels "
            f"{np.unique(labels).tolist()}"
        )
    # log(1 + e^x) - y x is the log-loss without a probability that rounds to 0.
    loss = float(np.mean(np.logaddexp(0.0, logits) - labels * logits))
    return {"auc": float(roc_auc_score(labels, logits)), "log_loss": loss}


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
    """
    hits = relevant.gather(1, top[:, :k]).double()  # (users, k)
    discount = 1 / torch.log2(
        torch.arange(2, k + 2, device=top.device, dtype=torch.float64)
    )
    ideal = torch.cat([discount.new_zeros(1), discount.cumsum(0)])  # (k + 1,)
    known = relevant_counts > 0
    counts = relevant_counts.clamp(min=1)
    recall = (hits.sum(1) / counts)[known].sum()
    gains = (hits * discount[: hits.shape[1]]).sum(1)
    ndcg = (gains / ideal[counts.clamp(max=k)])[known].sum()
    return {
        f"recall@{k}": float(recall),
        f"ndcg@{k}": float(ndcg),
        "users": float(known.sum()),
    }
