"""Zero-collision hashing: who gets a slot, who loses it, what becomes of its row."""

import numpy as np
import pytest
import torch
from hypothesis import given, strategies as st

from survey_code import TableSpec
from survey_code.catalog import get_method
from survey_code.data.synthetic import make_clicks, make_stream
from survey_code.embedding import Regime, TrainingStep, decode_layout
from survey_code.lab.memory import measure_training
from survey_code.lab.stream import gather_windows
from survey_code.lab.task import make_task
from survey_code.lab.trial import TRIALS
from survey_code.layouts import ProbedLayout
from survey_code.spec import OutOfReach
from survey_code.training import TrainingSettings, forget_rows, make_table_optimizer
from survey_code.weight_sharing.hashing import ZeroCollision

pytestmark = pytest.mark.usefixtures("one_thread")

SPEC = TableSpec.of_shape(200, 4)


def build(slots=8, window=3, plain=True, spec=SPEC, **options):
    """A table in training, whose ids have their number modulo the slots as home."""
    table = ZeroCollision.make(spec, slots=slots, window=window, **options)
    if plain:
        table.numbers = np.array([1, 1, 0])
    return table.train()


def end_step(table):
    nothing = TrainingStep(
        lambda: torch.zeros(()), lambda: torch.zeros(()), table, 1, 0
    )
    table.after_step(nothing)


def read(table, *lookups):
    """One step: some look-ups, and its end."""
    found = [table(torch.tensor(ids)).detach().numpy() for ids in lookups]
    end_step(table)
    return found


def held(table):
    """Slot -> id."""
    slots = enumerate(table.identities.tolist())
    return {slot: one for slot, one in slots if one >= 0}


# -- by hand -------------------------------------------------------------------


def test_eight_slots_six_ids_and_one_that_is_evicted():
    table = build()
    read(table, [10, 10, 18, 26, 15])  # homes 2, 2, 2 and 7
    assert held(table) == {2: 10, 3: 18, 4: 26, 7: 15}
    np.testing.assert_allclose(
        table.counts, 0.99 * np.array([0, 0, 2, 1, 1, 0, 0, 1]), rtol=1e-6
    )
    read(table, [10, 26, 23])  # home 7 is taken: 23 goes round to slot 0
    assert held(table) == {2: 10, 3: 18, 4: 26, 7: 15, 0: 23}
    read(table, [34])  # home 2: the window is full, and 18 is coldest
    assert held(table) == {2: 10, 3: 34, 4: 26, 7: 15, 0: 23}


def test_the_more_read_of_two_newcomers_gets_the_slot():
    table = build(slots=1, window=1)
    rows = read(table, [5, 6, 6])[0]
    assert held(table) == {0: 6}
    values = table.values.detach().numpy()
    np.testing.assert_array_equal(rows, values[[1, 0, 0]])  # 5 reads the default row
    # Of equals the smaller number, whichever way they are given.
    for ids in ([8, 7], [7, 8]):
        table = build(slots=1, window=1)
        read(table, ids)
        assert held(table) == {0: 7}


def test_who_was_read_in_a_step_stays_until_it_is_over():
    """A user is read before an item, say, in one step."""
    table = build(slots=1, window=1, evict="last")
    before = table.values[0].detach().clone()
    first, second = read(table, [3], [4, 4, 4])
    assert held(table) == {0: 3}
    np.testing.assert_array_equal(first[0], table.values[0].detach())
    np.testing.assert_array_equal(second[0], table.values[1].detach())
    assert not torch.equal(before, table.values[0])  # drawn anew when it was claimed
    read(table, [4])
    assert held(table) == {0: 4}


def test_who_is_read_often_is_not_pushed_out_by_many_that_are_read_once():
    by_counts, by_last = (build(window=8, evict=evict) for evict in ("counts", "last"))
    for table in (by_counts, by_last):
        for step in range(30):
            often = [1, 2] * (3 if not step else step % 3 == 0)
            read(table, [*often, *range(10 + 6 * step, 16 + 6 * step)])
    assert {1, 2} <= set(held(by_counts).values())
    assert not {1, 2} & set(held(by_last).values())


def test_old_reads_count_less_and_less():
    table = build(slots=1, window=1, decay=0.5)
    read(table, [1] * 4)  # 2 at the end of the step
    read(table, [2])
    read(table, [2])  # 1 is as many: the one that is there stays
    assert held(table) == {0: 1}
    read(table, [2])
    assert held(table) == {0: 2}
    kept = build(slots=1, window=1, decay=1.0)
    for ids in ([1] * 4, *([[2]] * 9)):
        read(kept, ids)
    assert held(kept) == {0: 1}


# -- the rule written for one id at a time ---------------------------------------


class Slots:
    """The same rule in dicts and loops."""

    def __init__(self, slots, window, evict, decay):
        self.slots, self.window, self.decay = slots, window, decay
        self.by_counts = evict == "counts"
        self.ids, self.counts, self.last = {}, {}, {}
        self.now = 0

    def look_up(self, ids):
        times = {one: ids.count(one) for one in ids}
        place = {one: slot for slot, one in self.ids.items()}
        for one in times.keys() & place.keys():
            self.counts[place[one]] += times[one]
            self.last[place[one]] = self.now
        waiting = times.keys() - place.keys()
        while waiting:
            asked = {}
            for one in sorted(waiting, key=lambda one: (-times[one], one)):
                slot = self.coldest(one, times[one])
                asked.setdefault(slot, []).append(one)
            hopeless = asked.pop(None, [])
            for slot, (first, *_) in asked.items():
                self.ids[slot] = first
                self.counts[slot], self.last[slot] = np.float32(times[first]), self.now
            waiting -= {*hopeless, *(them[0] for them in asked.values())}

    def coldest(self, one, times):
        reached = [(one + step) % self.slots for step in range(self.window)]
        free = [slot for slot in reached if slot not in self.ids]
        if free:
            return free[0]
        old = [slot for slot in reached if self.last[slot] < self.now]
        warm = self.counts if self.by_counts else self.last
        slot = min(old, key=warm.get, default=None)
        if slot is None or (self.by_counts and not warm[slot] < times):
            return None
        return slot

    def end_step(self):
        self.now += 1
        for slot in self.counts:
            self.counts[slot] *= np.float32(self.decay)


# Few ids and few slots, so that windows are full and ids meet.
STEPS = st.lists(
    st.lists(st.lists(st.integers(0, 40), min_size=1, max_size=12), max_size=2),
    max_size=12,
)


@given(
    STEPS,
    st.integers(1, 9),
    st.integers(1, 4),
    st.sampled_from(["counts", "last"]),
    st.sampled_from([0.3, 0.9, 1.0]),
)
def test_no_two_ids_share_a_slot_whatever_is_read(steps, slots, window, evict, decay):
    table = build(slots, window, evict=evict, decay=decay)
    wanted = Slots(slots, table.window, evict, decay)
    for lookups in steps:
        read(table, *lookups)
        for ids in lookups:
            wanted.look_up(ids)
        wanted.end_step()
        assert held(table) == wanted.ids
        # Validated: no id twice, and none outside its window.
        layout = table.freeze()
        ids = np.arange(200)
        slots_read = layout.find_slots(ids)
        own = slots_read[slots_read < slots]
        assert len(np.unique(own)) == len(own) == len(wanted.ids)
        np.testing.assert_array_equal(table.find(torch.from_numpy(ids)), slots_read)


@given(st.lists(st.lists(st.integers(0, 199), min_size=1, max_size=60), max_size=8))
def test_ids_that_are_read_apart_are_moved_apart(steps):
    """A gradient reaches the row of its own id, or the default row."""
    table = build(slots=40, window=6, plain=False)
    for ids in steps:
        table.zero_grad()
        distinct = np.unique(ids)
        rows = table(torch.from_numpy(distinct))
        (rows * torch.from_numpy(distinct + 1.0)[:, None]).sum().backward()
        slots = table.find(torch.from_numpy(distinct)).numpy()
        gradient = table.values.grad[:, 0].numpy()
        for one, slot in zip(distinct, slots):
            if slot < 40:
                assert gradient[slot] == one + 1
        assert gradient[40] == (distinct[slots == 40] + 1).sum()
        assert not gradient[np.setdiff1d(np.arange(41), slots)].any()
        end_step(table)


# -- rows ------------------------------------------------------------------------


def test_a_row_that_changes_hands_begins_anew():
    table = build(slots=2, window=1, evict="last")
    read(table, [0, 1])
    with torch.no_grad():
        table.values.fill_(7.0)
    (rows,) = read(table, [2, 1])  # 2 takes the slot of 0
    assert held(table) == {0: 2, 1: 1}
    assert abs(rows[0]).max() < 0.1 and (rows[1] == 7).all()
    (back,) = read(table, [0])  # it returns, and begins anew as well
    assert abs(back).max() < 0.1 and not np.array_equal(back[0], rows[0])


def test_reading_without_training_claims_nothing():
    table = build()
    read(table, [10])
    state = {name: value.clone() for name, value in table.named_buffers()}
    found = table.eval()(torch.tensor([10, 18, 11]))
    np.testing.assert_array_equal(found.detach(), table.values[[2, 8, 8]].detach())
    for name, value in table.named_buffers():
        assert torch.equal(value, state[name]), name


@pytest.mark.parametrize(
    "optimizer", ["adam", "rowwise_adagrad", "rowwise_adagrad_8bit"]
)
def test_the_optimiser_forgets_the_rows_that_begin_anew(optimizer):
    """Such a row then moves as one does that was never read."""
    moved = {}
    for forgets in (True, False):
        table = build(slots=3, window=1, evict="last")
        settings = TrainingSettings(optimizer=optimizer, learning_rate=0.1)
        own = make_table_optimizer(table, settings)
        for ids in ([0, 1], [0, 1], [0, 1], [3, 5, 1]):
            own.zero_grad()
            table(torch.tensor(ids)).sum().backward()
            ((weight, rows),) = table.renewed_rows()
            assert weight is table.values
            if forgets:
                forget_rows([own], weight, rows)
            before = table.values.detach().clone()
            own.step()
            end_step(table)
        # 3 took the slot of 0, and 5 one that was free.
        assert held(table) == {0: 3, 1: 1, 2: 5}
        moved[forgets] = (table.values - before).detach()
    torch.testing.assert_close(moved[True][0], moved[True][2], rtol=1e-4, atol=0)
    assert ((moved[False][0] / moved[False][2] - 1).abs() > 0.1).all()
    torch.testing.assert_close(moved[True][1], moved[False][1], rtol=1e-4, atol=0)


def test_what_an_optimiser_keeps_is_forgotten_row_by_row():
    weight = torch.nn.Parameter(torch.ones(4, 2))
    own = torch.optim.Adam([weight])
    forget_rows([own], weight, torch.tensor([1]))  # nothing is kept yet
    weight.sum().backward()
    own.step()
    forget_rows([own], weight, torch.tensor([1, 3]))
    for name in ("exp_avg", "exp_avg_sq"):
        nothing = (own.state[weight][name] == 0).all(1)
        assert nothing.tolist() == [False, True, False, True]
    assert own.state[weight]["step"] == 1


def test_the_marks_of_renewed_rows_are_asked_for_once():
    table = build()
    table(torch.tensor([10, 15]))
    ((_, rows),) = table.renewed_rows()
    assert rows.tolist() == [2, 7]
    ((_, rows),) = table.renewed_rows()
    assert not len(rows)


# -- budgets ---------------------------------------------------------------------


@pytest.mark.parametrize(("open_ids", "identity"), [(False, 4), (True, 8)])
def test_identities_are_counted(open_ids, identity):
    spec = TableSpec.of_shape(5000, 16)
    for ratio in (1, 4, 30):
        planned = get_method("zero_collision").plan(spec, ratio, open_ids=open_ids)
        layout = ZeroCollision(spec, planned).eval().freeze()
        row = 64 + identity
        assert layout.nbytes == planned.slots * row + 64 + 24 <= spec.budget(ratio)
        assert layout.nbytes + row > spec.budget(ratio)
    with pytest.raises(OutOfReach, match="the smallest such table takes"):
        get_method("zero_collision").plan(spec, 10_000)


def test_there_are_no_more_slots_than_ids():
    spec = TableSpec(100, 4, [0, 100], np.ones(100, int), outside_bytes=10**6)
    assert get_method("zero_collision").plan(spec, 1.001).slots <= 100


def test_any_id_can_be_served():
    table = build(plain=False, open_ids=True)
    far = torch.tensor([2**62 + 1, 2**40, 3])
    rows = table(far)
    layout = table.eval().freeze()
    assert layout.identities.dtype == np.int64 and layout.open_ids
    np.testing.assert_array_equal(layout.lookup(far.numpy()), rows.detach())
    assert sorted(held(table).values()) == sorted(far.tolist())


def test_counts_and_last_reads_are_counted_in_the_memory_of_training():
    table = build(slots=50, plain=False)
    settings, ids = TrainingSettings(optimizer="sgd"), torch.arange(20)
    persistent = measure_training(table, ids, settings)["persistent"]
    assert persistent == 51 * 16 + 50 * (4 + 4 + 4 + 1)


# -- in training -----------------------------------------------------------------


def test_frequent_ids_end_with_rows_of_their_own_and_the_rest_reads_the_default():
    data = make_clicks(rows=(20_000, 1000, 1000))
    task = make_task(data, TRIALS["synthetic", "dcnv2"], 1)
    planned = get_method("zero_collision").plan(task.spec, 10)
    table = ZeroCollision(task.spec, planned, seed=1)
    task.train(table)
    counts = task.spec.train_counts
    own = np.array(sorted(held(table).values()))
    assert len(own) == planned.slots
    most = np.sort(counts)[::-1][: planned.slots].sum()
    assert counts[own].sum() > 0.95 * most
    busiest = np.argsort(-counts, kind="stable")[: planned.slots // 4]
    assert np.isin(busiest, own).mean() > 0.97
    layout = table.freeze()
    assert isinstance(layout, ProbedLayout)
    ids = torch.arange(task.spec.num_embeddings)
    rows = decode_layout(layout)
    np.testing.assert_array_equal(rows, table(ids).detach())
    others = np.setdiff1d(ids.numpy(), own)
    assert (rows[others] == rows[others[0]]).all()
    assert layout.nbytes <= task.spec.budget(10)
    other = ZeroCollision(task.spec, planned, seed=2)
    other.load_state_dict(table.state_dict())
    np.testing.assert_array_equal(other.eval()(ids).detach(), rows)
    assert other.steps_done == table.steps_done > 0 and other.draws == table.draws


def test_the_same_seed_ends_in_the_same_table_and_a_state_can_go_on():
    data = make_clicks(rows=(3000, 100, 100), field_sizes=(300, 200))
    task = make_task(data, TRIALS["synthetic", "dcnv2"], 1)
    planned = get_method("zero_collision").plan(task.spec, 6)
    first, again, other = (ZeroCollision(task.spec, planned, s) for s in (1, 1, 2))
    for table in (first, again, other):
        task.train(table)
    for name, value in first.state_dict().items():
        assert name == "_extra_state" or torch.equal(value, again.state_dict()[name])
    assert held(first) != held(other)
    # What follows depends on the state alone.
    other.load_state_dict(first.state_dict())
    other.seed = first.seed
    ids = np.random.default_rng(0).integers(500, size=300).tolist()
    for table in (first.train(), other.train()):
        read(table, ids)
        read(table, ids[:50])
    assert held(first) == held(other)
    assert torch.equal(first.values, other.values)


def test_ids_that_come_are_served_on_a_stream():
    """Those of the last window hold slots; most of those that went do not."""
    data = make_stream(
        "seasons", rows=(4000,) * 6, field_sizes=(300, 100), new_ids=0.2, away=0.0
    )
    trial = TRIALS["synthetic", "dcnv2"]
    task = make_task(gather_windows(data, 0, 6), trial, 1)
    planned = get_method("zero_collision").plan(task.spec, 3, decay=0.9)
    table = ZeroCollision(task.spec, planned, seed=1).train()
    for window in data.windows:
        for ids in np.array_split(window.ids, 20):
            read(table, ids.ravel().tolist())
    reads = np.bincount(data.windows[-1].ids.ravel(), minlength=data.num_embeddings)
    own = np.array(list(held(table).values()))
    assert reads[own].sum() > 0.85 * reads.sum()
    gone = (reads == 0) & (task.spec.train_counts > 20)
    assert gone.sum() > 20 and np.isin(np.flatnonzero(gone), own).mean() < 0.3


def test_sparse_gradients_are_of_the_rows_read():
    table = build()
    table.begin(Regime(sparse=True))
    table(torch.tensor([[10, 18], [10, 99]])).sum().backward()
    grad = table.values.grad.coalesce()
    assert grad.indices()[0].tolist() == [2, 3, 4] and grad.values()[0, 0] == 2


# -- bad input -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"window": 0}, "window must be an integer from 1 to 1024, got 0"),
        ({"evict": "oldest"}, "evict must be one of"),
        ({"decay": 1.5}, "decay must be a number from 0 to 1"),
        ({"slots": 0}, "slots must be an integer from 1"),
        ({"open_ids": 1}, "open_ids must be True or False"),
    ],
)
def test_options_that_cannot_be_are_value_errors(options, said):
    with pytest.raises(ValueError, match=said):
        ZeroCollision.make(SPEC, **{"slots": 4, **options})


def test_a_window_is_no_longer_than_the_table():
    table = build(slots=2, window=16)
    read(table, [5, 6, 7])
    assert table.window == 2 and len(held(table)) == 2
