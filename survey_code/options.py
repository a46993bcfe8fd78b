"""What a method may be asked: each option once, with its range and a line of help."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import inspect
import types
import typing
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from numbers import Integral, Real
from typing import Any, ClassVar, Self, TypeVar

import numpy as np

from survey_code.checks import is_within

T = TypeVar("T")

# Types of options that can be asked for in words.
SIMPLE = frozenset({bool, int, float, str, types.NoneType})

# Truth values, in words on a command line.
WORDS = {"true": True, "false": False, "yes": True, "no": False}


@dataclass(frozen=True)
class Rule:
    """What is known about an option besides its name, type and default.

    Parameters
    ----------
    help : str
        One line.
    low, high : float, optional
        The smallest and the largest allowed number.
    above, below : float, optional
        Bounds that are themselves not allowed.
    choices : tuple
        All allowed values, where they can be listed.
    tune : tuple
        Values worth trying, the default first.
    planned : bool
        Whether `plan` chooses it where nobody asks.
    found : bool
        Whether only `plan` or a search can say it: it cannot be asked for.
    otherwise : object
        Value in force where there is no budget to plan by.
    """

    help: str
    low: float | None = None
    high: float | None = None
    above: float | None = None
    below: float | None = None
    choices: tuple[object, ...] = ()
    tune: tuple[object, ...] = ()
    planned: bool = False
    found: bool = False
    otherwise: object = None


def option(
    default: T,
    help: str,
    *,
    low: float | None = None,
    high: float | None = None,
    above: float | None = None,
    below: float | None = None,
    choices: tuple[object, ...] = (),
    tune: tuple[object, ...] = (),
) -> T:
    """A field of `Options` that has a default; see `Rule`."""
    rule = Rule(help, low, high, above, below, choices, tune)
    return field(default=default, metadata={"rule": rule})


def planned(
    help: str,
    *,
    otherwise: object = None,
    low: float | None = None,
    high: float | None = None,
    choices: tuple[object, ...] = (),
    tune: tuple[object, ...] = (),
) -> Any:
    """A field that `plan` chooses by the budget, unless it is asked for; see `Rule`."""
    rule = Rule(
        help, low, high, choices=choices, tune=tune, planned=True, otherwise=otherwise
    )
    return field(default=None, metadata={"rule": rule})


def found(
    help: str,
    *,
    otherwise: object = None,
    low: float | None = None,
    high: float | None = None,
) -> Any:
    """A field that only `plan` or a search fills in; see `Rule`."""
    rule = Rule(help, low, high, planned=True, found=True, otherwise=otherwise)
    return field(default=None, metadata={"rule": rule})


@typing.dataclass_transform(frozen_default=True, kw_only_default=True, eq_default=False)
@dataclass(frozen=True, eq=False, repr=False, kw_only=True)
class Options:
    """Base of every method's options: a frozen dataclass, whose fields they are.

    A field is made by `option`, `planned` or `found`; its annotation is its type: a
    truth value, a whole number, a number, a word, or one of them or None.

    Raises
    ------
    ValueError
        If a value has another type or leaves the option's range.
    """

    # By name, in the fields' order; and the types, once they were asked for.
    rules: ClassVar[dict[str, Rule]] = {}
    kinds: ClassVar[dict[str, tuple[type, ...]]] = {}

    def __init_subclass__(cls) -> None:
        dataclass(frozen=True, eq=False, repr=False, kw_only=True)(cls)
        cls.rules = {f.name: rule_of(cls, f) for f in dataclasses.fields(cls)}
        cls.kinds = {}
        cls.__doc__ = f"{cls.__doc__ or cls.__name__}{document(cls)}"

    def __post_init__(self) -> None:
        kinds = value_types(type(self))
        for name, rule in self.rules.items():
            # Arrays are checked by the table that is made from them.
            if SIMPLE.issuperset(kinds[name]):
                checked = check_option(name, getattr(self, name), kinds[name], rule)
                object.__setattr__(self, name, checked)

    @classmethod
    def names(cls) -> list[str]:
        """What can be asked for."""
        return [name for name, rule in cls.rules.items() if not rule.found]

    @classmethod
    def of(cls, key: str, given: Mapping[str, object], found: bool = True) -> Self:
        """Options by name, as a user gives them; what is `found` only where a table
        is to be made of it.

        Raises
        ------
        ValueError
            If there is no such option; the message lists those that there are.
        """
        if not isinstance(given, Mapping):
            raise ValueError(f"{key}: options are names and values, got {given!r}")
        known = cls.rules if found else cls.names()
        unknown = sorted(map(str, set(given) - set(known)))
        if unknown:
            allowed = ", ".join(sorted(cls.names())) or "none"
            raise ValueError(
                f"{key} has no option {unknown[0]!r} to ask for; its options: {allowed}"
                if unknown[0] in cls.rules
                else f"{key} has no option {unknown[0]!r}; its options: {allowed}"
            )
        make: Any = cls
        try:
            made: Self = make(**given)
        except ValueError as error:
            raise ValueError(f"{key}: {error}") from None
        return made

    @classmethod
    def parse(cls, words: Mapping[str, str]) -> dict[str, object]:
        """Values of the options' own types, from words: ``"false"`` is False.

        A word that names no option, or is no such value, stays as it is, for the
        error to show.
        """
        kinds = value_types(cls)
        return {
            name: parse_word(word, kinds[name]) if name in kinds else word
            for name, word in words.items()
        }

    @classmethod
    def grid(cls) -> dict[str, tuple[object, ...]]:
        """The values worth tuning, of each option that has several."""
        return {name: rule.tune for name, rule in cls.rules.items() if rule.tune}

    @classmethod
    def describe(cls) -> list[tuple[str, str, str, str, str]]:
        """Name, type, default, range and help of what can be asked, in words."""
        kinds, rows = value_types(cls), []
        defaults = {f.name: f.default for f in dataclasses.fields(cls)}
        for name, rule in cls.rules.items():
            if rule.found:
                continue
            own = [kind for kind in kinds[name] if kind is not types.NoneType]
            default = "by the budget" if rule.planned else repr(defaults[name])
            allowed = describe_rule(tuple(own), rule).removeprefix("one of ")
            types_ = " or ".join(kind.__name__ for kind in own)
            rows.append((name, types_, default, allowed, rule.help))
        return rows

    def asked(self) -> dict[str, object]:
        """What can be asked for, and its values in force, as JSON can hold them."""
        return {name: as_plain(getattr(self, name)) for name in self.names()}

    def described(self) -> dict[str, object]:
        """All that is set, what was found included, as JSON can hold it."""
        values = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        return {n: as_plain(v) for n, v in values.items() if v is not None}

    def given(self) -> dict[str, object]:
        """What differs from the defaults, for a call or a command to show."""
        return {
            f.name: value
            for f in dataclasses.fields(self)
            if repr(as_plain(value := getattr(self, f.name))) != repr(f.default)
        }

    def settled(self) -> Self:
        """With what is still open as it is where there is no budget.

        Raises
        ------
        ValueError
            If something is open that only a plan or a search can say.
        """
        rules = self.rules.items()
        open_ = [n for n, r in rules if r.planned and getattr(self, n) is None]
        values = {name: self.rules[name].otherwise for name in open_}
        missing = [n for n, v in values.items() if v is None and needs(type(self), n)]
        if missing:
            raise ValueError(
                f"{missing[0]} is not set: {self.rules[missing[0]].help}; "
                "`plan` chooses it by a budget"
            )
        return self.replace(**values) if values else self

    def replace(self, **changes: Any) -> Self:
        """A copy with other values."""
        return dataclasses.replace(self, **changes)

    def __eq__(self, other: object) -> bool:
        return type(self) is type(other) and repr(self) == repr(other)

    def __hash__(self) -> int:
        return hash(repr(self))

    def __repr__(self) -> str:
        shown = (f"{name}={value!r}" for name, value in self.described().items())
        return f"{type(self).__name__}({', '.join(shown)})"


def rule_of(kind: type[Options], entry: dataclasses.Field[Any]) -> Rule:
    """The rule of a field, whose default and values worth tuning must keep to it.

    Raises
    ------
    TypeError
        If the field is no option, or contradicts itself.
    """
    rule = entry.metadata.get("rule")
    name = f"{kind.__name__}.{entry.name}"
    if not isinstance(rule, Rule):
        raise TypeError(f"{name} must be made by option, planned or found")
    for value in (entry.default, rule.otherwise, *rule.tune):
        if value is not None and not is_allowed(value, rule):
            raise TypeError(f"{name}: its own value {value!r} is outside its range")
    return rule


def document(kind: type[Options]) -> str:
    """The options as a section of a docstring, from what is stated once."""
    lines = []
    for entry in dataclasses.fields(kind):
        rule = kind.rules.get(entry.name)
        if rule is not None:
            start = f"default {entry.default!r}"
            if rule.planned:
                start = "found by a plan or a search" if rule.found else "planned"
            allowed = f"; one of {rule.choices}" if rule.choices else ""
            tuned = f"; tuned over {rule.tune}" if rule.tune else ""
            written = inspect.formatannotation(entry.type).strip("'")
            lines.append(f"    {entry.name} : {written}, {start}")
            lines.append(f"        {rule.help}{allowed}{tuned}")
    return "\n\n    Parameters\n    ----------\n" + "\n".join(lines) if lines else ""


def value_types(kind: type[Options]) -> dict[str, tuple[type, ...]]:
    """The types that each option's value may have; `NoneType` where it may be open."""
    if not kind.kinds:
        hints = typing.get_type_hints(kind)
        for name, rule in kind.rules.items():
            hint = hints[name]
            union = typing.get_origin(hint) in (types.UnionType, typing.Union)
            parts = typing.get_args(hint) if union else (hint,)
            kind.kinds[name] = (*parts, types.NoneType) if rule.planned else parts
    return kind.kinds


def needs(kind: type[Options], name: str) -> bool:
    """Whether a table cannot be made while this is open."""
    hint = typing.get_type_hints(kind)[name]
    return types.NoneType not in typing.get_args(hint)


def check_option(
    name: str, value: object, kinds: tuple[type, ...], rule: Rule
) -> object:
    """The value as Python's own type, or one clear ValueError."""
    value = value.item() if isinstance(value, np.generic) else value
    if value is None and types.NoneType in kinds:
        return None
    if not isinstance(value, bool):  # truth values are no numbers
        if isinstance(value, Integral):
            value = int(value)
        if float in kinds and isinstance(value, Real):
            with contextlib.suppress(OverflowError):
                # -0.0 is 0.0, which is written otherwise.
                value = float(value) + 0.0
    fits = type(value) in kinds and is_allowed(value, rule)
    if not fits:
        raise ValueError(f"{name} must be {describe_rule(kinds, rule)}, got {value!r}")
    return value


def is_allowed(value: object, rule: Rule) -> bool:
    """Whether a value of the right type lies in the option's range."""
    if rule.choices:
        return value in rule.choices
    if isinstance(value, bool) or not isinstance(value, int | float):
        return True
    return is_within(value, rule.low, rule.high, rule.above, rule.below)


def describe_rule(kinds: tuple[type, ...], rule: Rule) -> str:
    """What a value must be, in words.

    Examples
    --------
    >>> describe_rule((int,), Rule("", low=1))
    'an integer from 1 up'
    """
    if rule.choices:
        return f"one of {rule.choices}"
    if bool in kinds:
        return "True or False"
    if int not in kinds and float not in kinds:
        return "a word"
    words = ["a number" if float in kinds else "an integer"]
    if rule.low is not None:
        words.append(f"from {rule.low:g}" if float in kinds else f"from {rule.low}")
    if rule.above is not None:
        words.append(f"above {rule.above:g}")
    if rule.high is not None:
        words.append(f"to {rule.high:g}" if float in kinds else f"to {rule.high}")
    elif rule.below is not None:
        words.append(f"below {rule.below:g}")
    elif rule.low is not None:
        words.append("up")
    return " ".join(words)


def parse_word(word: str, kinds: Iterable[type]) -> object:
    """A word as the first type that it can be.

    Examples
    --------
    >>> parse_word("false", (bool,)), parse_word("4", (int,)), parse_word("x", (int,))
    (False, 4, 'x')
    """
    if word.lower() == "none" and types.NoneType in kinds:
        return None
    for kind in kinds:
        if kind is bool and word.lower() in WORDS:
            return WORDS[word.lower()]
        if kind in (int, float):
            try:
                return kind(word)
            except ValueError:
                continue
    return word


def as_plain(value: object) -> object:
    """As JSON can hold it: NumPy's numbers as Python's own, short arrays as lists,
    long ones as their shape and the beginning of their SHA-256.
    """
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, dict):
        return {name: as_plain(part) for name, part in value.items()}
    if isinstance(value, list | tuple):
        return [as_plain(part) for part in value]
    if not isinstance(value, np.ndarray):
        return value
    if value.size <= 64:
        return value.tolist()
    digest = hashlib.sha256(np.ascontiguousarray(value).tobytes()).hexdigest()
    return f"array{value.shape} {digest[:16]}"


class SearchOptions(Options):
    """What every search may be asked, and the budget that it is to meet."""

    search_epochs: int | None = option(
        None, "epochs of the search; None: a third of the training's", low=1
    )
    budget: int = found("bytes that the frozen table may take", otherwise=0)
