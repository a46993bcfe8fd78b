"""The metrics, against scikit-learn and against slow definitions."""

import numpy as np
import pytest
import torch
from sklearn.metrics import log_loss, ndcg_score, roc_auc_score

from survey_code.metrics import measure_clicks, measure_ranking
from survey_code.objectives import evaluate_ranking

# -- clicks -------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["plain", "ties", "constant", "float32"])
def test_clicks_agree_with_scikit_learn(kind):
    rng = np.random.default_rng(0)
    logits = rng.normal(size=500)
    labels = (rng.random(500) < 1 / (1 + np.exp(-logits))).astype(np.float32)
    if kind == "ties":
        logits = np.round(logits)
    if kind == "constant":
        logits = np.zeros(500)
    if kind == "float32":
        logits = logits.astype(np.float32)
    found = measure_clicks(labels, logits)
    chance = 1 / (1 + np.exp(-logits.astype(np.float64)))
    assert found["auc"] == pytest.approx(roc_auc_score(labels, logits), abs=1e-12)
    assert found["log_loss"] == pytest.approx(log_loss(labels, chance), rel=1e-9)


def test_losses_whose_sum_leaves_float64_have_a_mean():
    found = measure_clicks(np.array([0, 1, 1]), np.array([1e308, -1e308, 1e308]))
    assert found["log_loss"] == pytest.approx(1e308 / 1.5)


def test_auc_is_the_share_of_pairs_in_order():
    """Half a point for a tie: the definition, pair by pair."""
    rng = np.random.default_rng(1)
    labels, logits = rng.integers(0, 2, 60), rng.integers(0, 6, 60)
    pairs = [
        (a > b) + 0.5 * (a == b)
        for a in logits[labels == 1]
        for b in logits[labels == 0]
    ]
    assert measure_clicks(labels, logits)["auc"] == pytest.approx(np.mean(pairs))


def test_log_loss_of_sure_predictions_is_no_overflow():
    found = measure_clicks(np.array([1, 0, 1]), np.array([800.0, -800.0, -800.0]))
    assert found["log_loss"] == pytest.approx(800 / 3)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_diverged_logits_are_a_value_error(bad):
    with pytest.raises(ValueError, match="1 of 3 logits are NaN or infinite"):
        measure_clicks(np.array([0, 1, 1]), np.array([0.1, bad, 0.3]))


@pytest.mark.parametrize("label", [0, 1])
def test_labels_of_one_kind_are_a_value_error(label):
    with pytest.raises(ValueError, match="AUC needs clicks and non-clicks"):
        measure_clicks(np.full(4, label), np.arange(4.0))


ROWS = np.arange(4.0)


@pytest.mark.parametrize(
    ("labels", "logits", "said"),
    [
        ([0, 1, 0, 1], ROWS[:, None], "logits must have shape"),
        ([[0], [1], [0], [1]], ROWS, "labels must have shape"),
        ([[0], [1], [0], [1]], ROWS[:, None], r"must have shape \(rows,\), got \(4, 1"),
        ([0, 1, 0], ROWS, "one length, got 3 labels and 4 logits"),
        ([0], ROWS, "one length"),
        (1, ROWS, "labels must have shape"),
        ([-1, 1, -1, 1], ROWS, "labels must be 0 or 1, got -1"),
        ([1, 2, 1, 2], ROWS, "labels must be 0 or 1, got 2"),
        ([0.2, 1, 0, 1], ROWS, "labels must be 0 or 1, got 0.2"),
        ([np.nan, 1, 0, 1], ROWS, "labels must be 0 or 1, got nan"),
        (["no", "yes", "no", "yes"], ROWS, "labels must be numbers, got dtype <U3"),
        ([None, 1, 0, 1], ROWS, "labels must be numbers, got dtype object"),
        ([0, 1, 0, 1], ROWS * 1j, "logits must be numbers, got dtype complex128"),
        (np.ma.masked_array([0, 1, 0, 1], [1, 0, 0, 0]), ROWS, "labels .* masked"),
        ([0, 1, 0, 1], np.ma.masked_array(ROWS, ROWS > 2), "logits .* masked"),
        ([], [], "AUC needs clicks and non-clicks, got 0 rows"),
    ],
)
def test_what_are_no_labels_and_logits_is_a_value_error(labels, logits, said):
    with pytest.raises(ValueError, match=said):
        measure_clicks(labels, logits)


def test_clicks_of_any_type_give_the_same():
    labels, logits = np.array([0, 1, 1, 0]), np.array([0.5, 1, -1, -2], np.float32)
    wanted = measure_clicks(labels, logits)
    assert measure_clicks(labels.astype(bool), logits) == wanted
    assert measure_clicks(labels.tolist(), logits.tolist()) == wanted
    tensors = torch.from_numpy(labels), torch.from_numpy(logits).requires_grad_()
    assert measure_clicks(*tensors) == wanted
    assert measure_clicks(labels, tensors[1].bfloat16()) == wanted


# -- rankings -----------------------------------------------------------------


def slow_ranking(scores, seen, held_out, k):
    """Recall@k and NDCG@k, user by user and item by item."""
    recalls, gains = [], []
    for user in range(len(scores)):
        wanted = {item for u, item in held_out if u == user}
        if not wanted:
            continue
        masked = {item for u, item in seen if u == user}
        order = sorted(
            (i for i in range(scores.shape[1]) if i not in masked),
            key=lambda item: -scores[user, item],
        )[:k]
        recalls.append(len(wanted & set(order)) / len(wanted))
        gain = sum(1 / np.log2(p + 2) for p, i in enumerate(order) if i in wanted)
        ideal = sum(1 / np.log2(p + 2) for p in range(min(k, len(wanted))))
        gains.append(gain / ideal)
    return {f"recall@{k}": np.mean(recalls), f"ndcg@{k}": np.mean(gains)}


class Fixed:
    """A ranking network with given vectors."""

    training = True

    def __init__(self, users, items):
        self.users, self.items = users, items

    def eval(self):
        return self.train(False)

    def train(self, mode=True):
        self.training = mode
        return self

    def represent_all(self):
        assert not self.training
        return self.users, self.items


USERS, ITEMS = 23, 31


def draw_world(seed):
    """Vectors, and pairs that are seen or held out, none of them both."""
    rng = np.random.default_rng(seed)
    network = Fixed(
        *(torch.from_numpy(rng.normal(size=(n, 4))) for n in (USERS, ITEMS))
    )
    met = rng.choice(USERS * ITEMS, 260, replace=False)
    pairs = np.stack([met // ITEMS, met % ITEMS], axis=1)
    # Three users hold nothing out, one has seen nothing.
    held_out = pairs[:120][~np.isin(pairs[:120, 0], [0, 7, 22])]
    seen = pairs[120:][pairs[120:, 0] != 5]
    return network, seen, held_out


def to_ids(pairs):
    return pairs + np.array([0, USERS])


@pytest.mark.parametrize("k", [1, 5, 20])
@pytest.mark.parametrize("chunk", [1, 10, 2048])
def test_ranking_agrees_with_the_slow_definition(k, chunk):
    network, seen, held_out = draw_world(k)
    scores = (network.users @ network.items.T).numpy()
    found = evaluate_ranking(network, to_ids(seen), to_ids(held_out), k, chunk)
    wanted = slow_ranking(scores, seen, held_out, k)
    assert found == pytest.approx(wanted, rel=1e-12)
    assert network.training


def test_ndcg_agrees_with_scikit_learn():
    network, seen, held_out = draw_world(3)
    scores = (network.users @ network.items.T).numpy()
    relevant = np.zeros((USERS, ITEMS))
    relevant[held_out[:, 0], held_out[:, 1]] = 1
    some = relevant.any(1)
    scores[seen[:, 0], seen[:, 1]] = scores.min() - 1
    found = evaluate_ranking(network, to_ids(seen), to_ids(held_out), 10)
    wanted = ndcg_score(relevant[some], scores[some], k=10)
    assert found["ndcg@10"] == pytest.approx(wanted)


def test_recall_divides_by_all_relevant_items():
    """Not by the smaller of k and their number: 2 of 4 found is a half."""
    top = torch.tensor([[3, 0]])
    relevant = torch.tensor([[True, True, True, True, False]])
    found = measure_ranking(top, relevant, torch.tensor([4]), k=2)
    assert found == {"recall@2": 0.5, "ndcg@2": 1.0, "users": 1.0}


def test_users_without_relevant_items_do_not_count():
    top = torch.tensor([[0, 1], [2, 1]])
    relevant = torch.zeros((2, 3), dtype=torch.bool)
    relevant[1, 1] = True
    found = measure_ranking(top, relevant, torch.tensor([0, 1]), k=2)
    assert found == {
        "recall@2": 1.0,
        "ndcg@2": pytest.approx(1 / np.log2(3)),
        "users": 1.0,
    }


def test_tied_scores_still_rank_every_item_once():
    """All scores the same: with as many places as items, all are found."""
    network, seen, held_out = draw_world(4)
    network.users.zero_()
    found = evaluate_ranking(network, to_ids(seen), to_ids(held_out), ITEMS)
    assert found[f"recall@{ITEMS}"] == 1.0


def test_seen_items_are_not_recommended():
    """Items that score highest but were seen leave their places to others."""
    users = torch.ones(1, 1)
    items = torch.tensor([[9.0], [8.0], [1.0], [0.0]])
    seen, held_out = np.array([[0, 1], [0, 2]]), np.array([[0, 3]])
    found = evaluate_ranking(Fixed(users, items), seen, held_out, k=1)
    assert found == {"recall@1": 1.0, "ndcg@1": 1.0}


def test_fewer_items_than_places_is_no_error():
    network, seen, held_out = draw_world(5)
    scores = (network.users @ network.items.T).numpy()
    found = evaluate_ranking(network, to_ids(seen), to_ids(held_out), k=ITEMS + 9)
    assert found == pytest.approx(slow_ranking(scores, seen, held_out, ITEMS + 9))


def test_nothing_held_out_is_a_value_error():
    network, seen, held_out = draw_world(6)
    with pytest.raises(ValueError, match="no user has a held-out item"):
        evaluate_ranking(network, to_ids(seen), to_ids(held_out[:0]))


@pytest.mark.parametrize("part", ["users", "items"])
def test_diverged_vectors_are_a_value_error(part):
    network, seen, held_out = draw_world(7)
    getattr(network, part)[3, 1] = torch.nan
    with pytest.raises(ValueError, match="NaN or infinite"):
        evaluate_ranking(network, to_ids(seen), to_ids(held_out))


TOP, RELEVANT = torch.tensor([[2, 0]]), torch.tensor([[True, False, False]])
ONE = torch.tensor([1])


@pytest.mark.parametrize(
    ("top", "relevant", "counts", "k", "error", "said"),
    [
        (TOP, RELEVANT, ONE, 0, ValueError, "k must be an integer from 1 up"),
        (TOP, RELEVANT, ONE, 2.0, ValueError, "k must be an integer"),
        (TOP, RELEVANT, ONE, True, ValueError, "k must be an integer"),
        (TOP + 1, RELEVANT, ONE, 2, IndexError, "item 3 is out of range for 3 items"),
        (TOP - 1, RELEVANT, ONE, 2, IndexError, "item -1 is out of range"),
        (TOP.float(), RELEVANT, ONE, 2, ValueError, "top must hold integers"),
        (TOP[0], RELEVANT, ONE, 2, ValueError, "top must hold integers, 2 axes"),
        (TOP[[0, 0]], RELEVANT, ONE, 2, ValueError, "the first of 1 users"),
        (TOP * 0, RELEVANT, ONE, 2, ValueError, "at most once"),
        (TOP, RELEVANT.long(), ONE, 2, ValueError, "relevant must be of dtype bool"),
        (TOP, RELEVANT[0], ONE, 2, ValueError, "relevant must be .* shape"),
        (TOP, RELEVANT, ONE + 1, 2, ValueError, "must count the relevant items"),
        (TOP, RELEVANT, ONE[:, None], 2, ValueError, "relevant_counts must hold"),
        (TOP, RELEVANT, ONE / 1, 2, ValueError, "relevant_counts must hold integers"),
        (TOP + 0j, RELEVANT, ONE, 2, ValueError, "top must be a tensor of whole"),
        ([[2, 0]], RELEVANT, ONE, 2, ValueError, "top must be a tensor of whole"),
        (TOP, [[True]], ONE, 2, ValueError, "relevant must be a tensor"),
        (TOP, RELEVANT, 1, 2, ValueError, "relevant_counts must be a tensor"),
        (TOP.to("meta"), RELEVANT, ONE, 2, ValueError, "top must be a tensor of whole"),
        (TOP, RELEVANT[0, 0], ONE, 2, ValueError, "relevant must be .* shape"),
    ],
)
def test_what_is_no_ranking_is_a_clear_error(top, relevant, counts, k, error, said):
    with pytest.raises(error, match=said):
        measure_ranking(top, relevant, counts, k)


def test_items_of_any_integer_type_and_any_k_are_counted():
    usual = measure_ranking(TOP, RELEVANT, ONE, 2)
    for kind in (torch.uint8, torch.int16, torch.int32):
        assert measure_ranking(TOP.to(kind), RELEVANT, ONE.to(kind), 2) == usual
    # No vector of k numbers is made for a list of two.
    long = measure_ranking(TOP, RELEVANT, ONE, 10**15)
    assert list(long.values()) == list(usual.values())


@pytest.mark.parametrize("part", ["seen", "held_out"])
@pytest.mark.parametrize(
    ("wrong", "error", "said"),
    [
        ([[0, 0]], IndexError, "item ids are from 23 to 53, got 0"),  # its own number
        ([[0, USERS + ITEMS]], IndexError, "item ids are from 23 to 53, got 54"),
        ([[USERS, USERS]], IndexError, "user ids are from 0 to 22, got 23"),
        ([[-1, USERS]], IndexError, "user ids are from 0 to 22, got -1"),
        ([[0.0, 30.0]], ValueError, "must hold integers"),
        ([[True, False]], ValueError, "must hold integers"),
        ([[0, 30, 1]], ValueError, r"must have shape \(pairs, 2\)"),
        ([0, 30], ValueError, r"must have shape \(pairs, 2\)"),
    ],
)
def test_pairs_that_are_none_are_clear_errors(part, wrong, error, said):
    network, seen, held_out = draw_world(8)
    pairs = {"seen": to_ids(seen), "held_out": to_ids(held_out), part: np.array(wrong)}
    with pytest.raises(error, match=f"{part}.*{said}"):
        evaluate_ranking(network, **pairs)


@pytest.mark.parametrize("name", ["k", "chunk"])
@pytest.mark.parametrize("value", [0, -3, 2.5, True, "20"])
def test_sizes_of_a_ranking_are_integers_from_1(name, value):
    network, seen, held_out = draw_world(9)
    with pytest.raises(ValueError, match=f"{name} must be an integer from 1 up"):
        evaluate_ranking(network, to_ids(seen), to_ids(held_out), **{name: value})


def test_an_item_that_is_held_out_twice_counts_once():
    network, seen, held_out = draw_world(10)
    seen, held_out = to_ids(seen), to_ids(held_out)
    wanted = evaluate_ranking(network, seen, held_out)
    twice = np.concatenate([held_out, held_out[::2]]).astype(np.int32)
    assert evaluate_ranking(network, seen, twice) == wanted


def test_users_without_held_out_items_play_no_part():
    """Whatever their vectors are: the mean is over the others."""
    network, seen, held_out = draw_world(11)
    wanted = evaluate_ranking(network, to_ids(seen), to_ids(held_out))
    network.users[[0, 7, 22]] *= -3
    assert evaluate_ranking(network, to_ids(seen), to_ids(held_out)) == wanted
    kept = ~np.isin(seen[:, 0], [0, 7, 22])
    assert evaluate_ranking(network, to_ids(seen[kept]), to_ids(held_out)) == wanted
