"""A method of one's own: tuned and run as the book's contests are, and placed in them.

It competes for itself: the same trials, the same ratios and seeds.  What it is compared
with comes with the package, in `evidence.json`.  A folder holds what came of it:
``KEY.html`` and ``KEY.json``, the card; ``CONTEST_trials.jsonl``,
``CONTEST_runs.jsonl`` and ``CONTEST_costs.jsonl``, a line for each, written as soon as
it is made; and ``KEY_as_run.py``, a copy of the method's file.
"""

from __future__ import annotations

import dataclasses
import inspect
import json
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import torch

from survey_code.advice.evidence import METRICS, Evidence, load_evidence
from survey_code.catalog import Method, get_method
from survey_code.checks import check_range, check_switch
from survey_code.curves import FALLBACK
from survey_code.lab.card import Card, Entry
from survey_code.lab.comparison import draw_curves
from survey_code.lab.contest import (
    CHECKED,
    TUNED_AT,
    Contest,
    Entrant,
    arrange,
    list_courses,
    list_missed,
    list_own_entrants,
    list_ratios,
    pose_best,
)
from survey_code.lab.contests import CONTESTS
from survey_code.lab.measures import note_costs, read_costs
from survey_code.lab.page import write_page
from survey_code.lab.promises import Verdict, check_promises
from survey_code.lab.records import Recorder, Records, Workers, move
from survey_code.lab.results import (
    Result,
    append_result,
    check_writable,
    describe_result,
    is_missed,
)
from survey_code.lab.standing import draw_recorded, place_among
from survey_code.lab.task import check_device, open_data
from survey_code.lab.tuning import TRIALS_EACH
from survey_code.layouts.files import replace_file

# On which a method is put unless someone says otherwise.
USUAL_CONTESTS = ("synthetic", "frappe")
# Whose costs are measured beside the method's own, on the same machine.
COST_RIVALS = ("full", FALLBACK)


@dataclass(frozen=True)
class Workshop:
    """Where and how cards are made.

    Parameters
    ----------
    folder : Path
        Of pages, and of trials, runs and costs, to which lines are added.
    workers : Workers
    measure : bool
        Whether costs are measured.
    evidence : Evidence
        The field.
    command : str
        What is noted as the command.
    tell : callable
        Is told a line after each run.
    """

    folder: Path
    workers: Workers
    measure: bool
    evidence: Evidence
    command: str
    tell: Callable[[str], object]


def make_card(
    key: str,
    contests: Sequence[str | Contest] = USUAL_CONTESTS,
    out: str | os.PathLike[str] = "cards",
    *,
    rivals: Sequence[str] = (),
    device: str = "cpu",
    jobs: int = 1,
    measure: bool = True,
    evidence: Evidence | None = None,
    command: str = "",
    tell: Callable[[str], object] | None = None,
) -> Card:
    """Tune a method, run it, place it among the recorded ones, and write a page.

    Parameters
    ----------
    key : str
        Of a method, such as one that `load_plugin` has added.
    contests : sequence of str or Contest
        By name, of `survey_code.lab.contests`, or your own.
    out : path
        A folder.  A call that was interrupted is made again, and goes on there.
    rivals : sequence of str
        Entrants of the contests to be tuned and run beside it.
    device, jobs
        Of `Workers`.
    measure, evidence, command, tell
        Of `Workshop`; by default the field is what comes with the package, the command
        this call, and nobody is told.

    Raises
    ------
    ValueError
        If the method, a contest or a rival is unknown, the method does not serve a
        contest's task, or the folder's runs are of another version of its file.
    FileNotFoundError
        If the data of a contest is not there.
    """
    method = get_method(key)
    check_device(device)
    workers = Workers(device, check_range("jobs", jobs, 1), timed=False)
    # Last, as data may have to be fetched.
    posed = pose_contests(method, contests, rivals)
    field = load_evidence() if evidence is None else evidence
    command = command or f"make_card({key!r}, ..., device={device!r})"
    measure = check_switch("measure", measure)
    told = tell or (lambda line: None)
    shop = Workshop(Path(out), workers, measure, field, command, told)
    return fill_card(method, posed, shop)


def pose_contests(
    method: Method, contests: Sequence[str | Contest], rivals: Sequence[str]
) -> list[Contest]:
    """Contests with a method alone, which serves their tasks; their data is there."""
    posed = [narrow_contest(open_contest(one), method, rivals) for one in contests]
    for contest in posed:
        check_task(contest, method)
    return posed


def fill_card(method: Method, posed: Sequence[Contest], shop: Workshop) -> Card:
    """Check, run and measure; then write the page and its numbers."""
    page = shop.folder / f"{method.key}.html"
    check_writable(page)
    shop.folder.mkdir(parents=True, exist_ok=True)
    keep_source(method, shop.folder)
    verdicts = check_promises(method)
    shop.tell(f"{method.key}: {say_verdicts(verdicts)}")
    entries = []
    for contest in posed:
        records, failed = compete_alone(contest, shop)
        if shop.measure and not failed:
            add_costs(contest, method, records, shop)
        entries.append(enter_field(contest, method, records, shop, failed))
    card = Card(method, verdicts, entries, shop.command, page)
    write_page(card)
    with replace_file(page.with_suffix(".json")) as file:
        text = json.dumps(card.describe(), sort_keys=True, indent=1)
        file.write(f"{text}\n".encode())
    return card


def open_contest(given: str | Contest) -> Contest:
    """A contest by its name, or as given."""
    if isinstance(given, Contest):
        return given
    if given not in CONTESTS:
        raise ValueError(f"unknown contest {given!r}; contests: {', '.join(CONTESTS)}")
    return CONTESTS[given]


def narrow_contest(contest: Contest, method: Method, rivals: Sequence[str]) -> Contest:
    """The contest with a method alone, and whom that and the rivals wait for."""
    known = {one.name: one for one in contest.entrants}
    unknown = [name for name in rivals if name not in known]
    if unknown:
        raise ValueError(
            f"{unknown[0]!r} does not compete in {contest.name}; who does: "
            f"{', '.join(known) or 'nobody'}"
        )
    own = [one for one in contest.entrants if one.key == method.key]
    own = own or list_own_entrants(method, contest.trial.dim)
    chosen = {one.name: one for one in (*(known[name] for name in rivals), *own)}
    waiting = [*chosen.values()]
    while waiting:
        one = waiting.pop()
        for name in filter(None, (one.like, one.rates_of)):
            if name not in chosen:
                # What is compressed after training is the full table, tuned.
                chosen[name] = known.get(name, Entrant(name, name))
                waiting.append(chosen[name])
    mine = {one.name for one in own}
    others = [one for name, one in chosen.items() if name not in mine]
    return dataclasses.replace(contest, entrants=(*others, *own))


def check_task(contest: Contest, method: Method) -> None:
    """Raise an error unless the data is there and the method serves its task."""
    try:
        data = open_data(contest.data)
    except OSError as error:
        raise FileNotFoundError(
            f"contest {contest.name}: {error}; or leave it out, by naming others with "
            "--contest"
        ) from error
    if data.task not in method.tasks:
        raise ValueError(
            f"{method.key} serves {' and '.join(method.tasks)} tasks, but contest "
            f"{contest.name} is a {data.task} task; --contest names others"
        )


def keep_source(method: Method, folder: Path) -> None:
    """Copy a plug-in's file beside its results, which are of that file and no other.

    Raises
    ------
    ValueError
        If the folder has another copy.
    """
    kind = method.load()
    if kind.__module__.startswith("survey_code."):
        return
    path = None
    with suppress(OSError, TypeError):  # a class that was typed in has no file
        path = Path(inspect.getsourcefile(kind) or "")
    if path is None or not path.is_file():
        return
    content, place = path.read_bytes(), folder / f"{method.key}_as_run.py"
    if place.exists() and place.read_bytes() != content:
        raise ValueError(
            f"{folder} holds runs of {method.key} as it is in {place.name}, and {path} "
            "has changed since: take another --out, or remove what the folder holds"
        )
    with replace_file(place) as file:
        file.write(content)


def say_verdicts(verdicts: Sequence[Verdict]) -> str:
    """How many checks were passed, and which were not."""
    broken = [one for one in verdicts if not one.kept]
    said = f"passes {len(verdicts) - len(broken)} of {len(verdicts)} checks"
    return said + "".join(f"; {one.name}: {one.said}" for one in broken)


def compete_alone(contest: Contest, shop: Workshop) -> tuple[Records, str]:
    """Make the trials and runs that are missing, a line for each: all results, and why
    some could not be made.
    """
    runs, trials = (
        shop.folder / f"{contest.name}_{part}.jsonl" for part in ("runs", "trials")
    )
    records = Records(runs, trials)
    left = count_most(contest) - sum(map(len, arrange(contest, records)))
    recorder = Recorder(records, shop.workers, shop.command)
    failed = ""
    try:
        for result in recorder.follow(list_courses(contest, records)):
            left -= 1
            say = describe_result(result)
            shop.tell(f"{contest.name}: {say}; at most {max(left, 0)} left")
    except RuntimeError as error:
        failed = str(error)
        shop.tell(f"{contest.name}: {failed}")
    for result in arrange(contest, records)[1]:
        # Lines that say what is out of reach, for those who read the file.
        if is_missed(result) and not knows(records, result):
            append_result(runs, result)
            records.note(result)
    return records, failed


def knows(records: Records, result: Result) -> bool:
    """Whether a line that says what is out of reach is there already."""
    own = (result.key, result.entrant, result.requested_ratio)
    return any(
        (one.key, one.entrant, one.requested_ratio) == own and one.failure
        for one in records.by_key.values()
    )


def count_most(contest: Contest) -> int:
    """Trials and runs of a contest, at most, with the lines of what is out of reach."""
    most = 0
    for entrant in contest.entrants:
        tried = (TRIALS_EACH + CHECKED) * len(contest.tuned_on)
        most += tried * entrant.tuned
        most += len(list_ratios(contest, entrant)) * len(contest.seeds)
        most += len(list_missed(contest, entrant))
    return most


def add_costs(
    contest: Contest, method: Method, records: Records, shop: Workshop
) -> None:
    """Measure what the method costs near 10x, and the full table and double hashing
    beside it, as far as a file does not say so already.
    """
    device = shop.workers.device
    path = cost_path(shop.folder, contest)
    done = {one["entrant"] for one in read_costs(path) if one["where"] == device}
    rates = {one.name: one for one in contest.entrants}
    own = [one for one in contest.entrants if one.key == method.key]
    others = [rates.get(name, Entrant(name, name)) for name in COST_RIVALS]
    for entrant in dict.fromkeys((*own, *others)):
        posed = dataclasses.replace(contest, entrants=(*contest.entrants, entrant))
        run = pose_best(posed, entrant, records, TUNED_AT)
        if run is None or entrant.name in done:
            continue
        with one_thread():
            moved = move(run, device)
            line = note_costs(path, entrant.name, moved, TUNED_AT, shop.command)
        took = line["train"]["us_per_row"]
        shop.tell(f"{contest.name}: {entrant.name} costs {took:.2f} us a row trained")


@contextmanager
def one_thread() -> Iterator[None]:
    """Torch's own threads are one, as where the book's costs were measured."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def cost_path(folder: Path, contest: Contest) -> Path:
    """Where a contest's costs stand."""
    return folder / f"{contest.name}_costs.jsonl"


def enter_field(
    contest: Contest, method: Method, records: Records, shop: Workshop, failed: str
) -> Entry:
    """What the card shows of one contest."""
    trials, runs = arrange(contest, records)
    name = method.key
    recorded = shop.evidence.contests.get(contest.name)
    lines = read_costs(cost_path(shop.folder, contest))
    costs = {line["entrant"]: line for line in lines}
    own = [one.name for one in contest.entrants if one.key == name]
    shown = [n for n in dict.fromkeys((*own, *COST_RIVALS)) if n in costs]
    tested = [result for result in runs if result.test]
    data = open_data(contest.data)
    metric = METRICS[data.task]
    curves = {**draw_recorded(recorded), **draw_curves(tested, metric)}
    placed = name in curves
    standings = place_among(name, curves, contest.ratios) if placed else []
    return Entry(
        contest=contest.name, metric=metric, name=name,
        data=data.name,
        field_data=recorded.data if recorded else "",
        trials=trials, runs=runs, costs=[costs[n] for n in shown], curves=curves,
        standings=standings, failed=failed,
    )  # fmt: skip
