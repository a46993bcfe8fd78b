"""What is advised, and why: as values, as JSON, as a text of a few lines."""

from __future__ import annotations

import dataclasses
import json
import re
import textwrap
from dataclasses import dataclass, field
from typing import Any

# Lines of a printed advice, and letters of each.
MOST_LINES, WIDTH = 25, 96
# Methods that are named for each reason not to take them; a number in such a reason.
SOME_NAMES = 3
NUMBER = re.compile(r"(?<![\w.])\d+(?:,\d{3})*(?:\.\d+)?")


@dataclass(frozen=True)
class Choice:
    """A method that meets all constraints that are known.

    Parameters
    ----------
    name, key : str
        The curve of the contests, and the method of the catalogue.
    stage : str
        When it compresses.
    options : dict
        Ready for `survey_code.compress` if it works after training, sizes included;
        for `survey_code.run`, which is given the ratio, if it does not.
    as_good : bool
        Whether no contest shows it clearly behind the best.
    gap : float
        To the full table, in the task's metric: the mean over the contests.
    gaps : dict of (float, float or None)
        Of each contest: mean and deviation over its seeds.
    reached : dict of tuple
        The ratios at which each contest was read; two where it is read off between.
    costs : dict
        At the recorded ratio nearest to the one asked for: ``training_bytes`` and
        ``persistent_bytes`` of this table (where they were not measured and training
        has a limit, ``weights_bytes``: what it holds at least); ``us_per_row`` and
        ``search_us_per_row``;
        ``lookup_us`` and ``bag_us``, median and 99th percentile of 256 ids on the
        device that was asked for; ``moved_per_row``, bytes that a refreshed row moves;
        ``rows_seen`` in search and training, by contest.  What was not measured is not
        there.
    needs : tuple of str
        What it has to be told that was not given: ``"counts"``, or words.
    reasons : tuple of str
    evidence : tuple of str
        A line for each contest.
    """

    name: str
    key: str
    stage: str
    options: dict[str, Any]
    as_good: bool
    gap: float
    gaps: dict[str, tuple[float, float | None]]
    reached: dict[str, tuple[float, ...]]
    costs: dict[str, Any]
    needs: tuple[str, ...]
    reasons: tuple[str, ...]
    evidence: tuple[str, ...]

    def describe(self) -> str:
        """The method and its options in words."""
        options = ", ".join(f"{name}={value}" for name, value in self.options.items())
        shown = self.key if self.key == self.name else f"{self.key} ({self.name})"
        return f"{shown}: {options}" if options else shown

    @classmethod
    def of(cls, told: dict[str, Any]) -> Choice:
        """Undo `dataclasses.asdict`, after JSON made lists of tuples."""
        pairs = {
            name: {contest: tuple(own) for contest, own in told[name].items()}
            for name in ("gaps", "reached")
        }
        words = {n: tuple(told[n]) for n in ("needs", "reasons", "evidence")}
        costs = {
            name: tuple(own) if isinstance(own, list) else own
            for name, own in told["costs"].items()
        }
        return cls(**{**told, **pairs, **words, "costs": costs})


@dataclass(frozen=True)
class Advice:
    """What to compress a table with; printed, a text of at most 25 lines.

    Parameters
    ----------
    ratio : float
        Bytes of the full table over the budget; at most 1 where it fits as it is.
    asked : dict
        What was asked for.
    choices : tuple of Choice
        Those as good as the best come first, the simplest stage before the others;
        then those behind.  All meet the constraints as far as costs are known.
    excluded : dict of str
        Why each other curve is not among them.
    nearest : str
        The contest nearest to this case, and how far it is.
    nearest_miss : str
        Where there are no choices: what comes nearest, and what it breaks by how much.
    warnings : tuple of str
        What the records do not cover, extrapolations first of all.
    """

    ratio: float
    asked: dict[str, Any]
    choices: tuple[Choice, ...] = ()
    excluded: dict[str, str] = field(default_factory=dict)
    nearest: str = ""
    nearest_miss: str = ""
    warnings: tuple[str, ...] = ()

    def to_json(self) -> str:
        """As JSON, on one line."""
        return json.dumps(dataclasses.asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Advice:
        """Undo `to_json`."""
        told = json.loads(text)
        choices = tuple(Choice.of(own) for own in told["choices"])
        own = {"choices": choices, "warnings": tuple(told["warnings"])}
        return cls(**{**told, **own})

    def __str__(self) -> str:
        lines = [self._tell_case()]
        if self.choices:
            lines += tell_first(self.choices[0])
            others = self.choices[1:]
            good = [one for one in others if one.as_good]
            rest = [one for one in others if not one.as_good]
            lines += tell("as good", ", ".join(map(tell_short, good)))
            lines += tell("behind", ", ".join(map(tell_short, rest)))
        else:
            lines += tell("nothing", self.nearest_miss or "no method to choose from")
        if self.excluded:
            some = "; ".join(say_excluded(self.excluded))
            lines += tell(f"not {len(self.excluded)}", some, most=3)
        lines += tell("nearest", self.nearest)
        for warning in self.warnings:
            lines += tell("beware", warning)
        return "\n".join(lines[:MOST_LINES])

    def _tell_case(self) -> str:
        rows, dim = self.asked["rows"], self.asked["dim"]
        full, budget = 4 * rows * dim, self.asked["budget_bytes"]
        return (
            f"{rows:,} x {dim}, {say_bytes(full)} into {say_bytes(budget)}: "
            f"{say_number(self.ratio)}x, {self.asked['task']}"
            + (", trained already" if self.asked["trained"] else "")
        )


def tell_first(choice: Choice) -> list[str]:
    """The lines on what to take."""
    lines = tell("take", choice.describe())
    for reason in choice.reasons:
        lines += tell("", reason)
    for evidence in choice.evidence[:4]:
        lines += tell("", evidence, most=1)
    if len(choice.evidence) > 4:
        lines += tell("", f"and {len(choice.evidence) - 4} more")
    return lines


def say_excluded(excluded: dict[str, str]) -> list[str]:
    """Reasons that differ in their numbers alone once, with the range of these; those
    of the most methods first.

    Examples
    --------
    >>> say_excluded({"a": "reaches 2x", "b": "too slow", "c": "reaches 16x"})
    ['reaches 2 to 16x (a, c)', 'too slow (b)']
    """
    kinds: dict[str, dict[str, str]] = {}
    for name, why in excluded.items():
        kinds.setdefault(NUMBER.sub("#", why), {})[name] = why
    return [say_kind(own) for own in sorted(kinds.values(), key=len, reverse=True)]


def say_kind(own: dict[str, str]) -> str:
    """One kind of reason, and the first of the methods that it is of."""
    ranges = []
    for found in zip(*(NUMBER.findall(why) for why in own.values()), strict=True):
        values = sorted(set(found), key=lambda text: float(text.replace(",", "")))
        ranges.append(values[0] if len(values) == 1 else f"{values[0]} to {values[-1]}")
    numbers = iter(ranges)
    said = NUMBER.sub(lambda _: next(numbers), next(iter(own.values())))
    named = [*own][:SOME_NAMES]
    more = f", {len(own) - len(named)} more" if len(own) > len(named) else ""
    return f"{said} ({', '.join(named)}{more})"


def tell_short(choice: Choice) -> str:
    """A choice among others."""
    return f"{choice.name} {choice.gap:+.4f}"


def tell(head: str, words: str, most: int = 2) -> list[str]:
    """Words behind a head, in so many lines at most; none without words."""
    if not words:
        return []
    lines = textwrap.wrap(words, WIDTH - 10, max_lines=most, placeholder=" ...")
    return [f"{head if not k else '':9} {line}" for k, line in enumerate(lines)]


def say_bytes(size: float) -> str:
    """Bytes in words.

    Examples
    --------
    >>> say_bytes(777216), say_bytes(4e10), say_bytes(12)
    ('777 kB', '40 GB', '12 bytes')
    """
    for unit, each in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if size >= each:
            return f"{size / each:.3g} {unit}"
    return f"{size:g} bytes"


def say_factor(factor: float, more: str = "more", fewer: str = "fewer") -> str:
    """How many times more or fewer.

    Examples
    --------
    >>> say_factor(30), say_factor(0.25), say_factor(1.0)
    ('30 times more', '4 times fewer', 'as many')
    """
    if abs(factor - 1) < 0.05:
        return "as many"
    times = say_number(max(factor, 1 / factor))
    return f"{times} times {more if factor > 1 else fewer}"


def say_number(number: float) -> str:
    """Three digits of a small number, whole ones of a large one.

    Examples
    --------
    >>> say_number(30.051), say_number(12866.2), say_number(2.0)
    ('30.1', '12,866', '2')
    """
    return f"{number:,.0f}" if number >= 100 else f"{number:.3g}"


def say_share(share: float) -> str:
    """A share in percent, never rounded up to all.

    Examples
    --------
    >>> say_share(0.5), say_share(0.99998)
    ('50.0%', 'over 99.9%')
    """
    return f"{share:.1%}" if share < 0.999 or share == 1 else "over 99.9%"
