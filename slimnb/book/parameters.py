"""The rules for a chapter's parameters cell, checked before anything is imported, trained or written.

Types are strict because papermill changes them silently: "0.1" is not 0.1, "False" is true, and True would pass for the
integer 1. This file must stay importable without torch, so that a typo is refused within a second.
"""

from __future__ import annotations

import ast
import difflib
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from slimnb.errors import ParameterError

SCALES = ("smoke", "small", "full")
DATA_NAMES = ("auto", "synthetic", "cifar10", "cifar100")
NAME = re.compile(r"[a-z_][a-z0-9_]*")
SIMPLE = (bool, int, float, complex, str, bytes, list, tuple, dict, set, type(None))


def _short(value: Any, limit: int = 32) -> str:
    if isinstance(value, int) and abs(value) > 2**64:
        return f"about 2**{value.bit_length()}"  # Python refuses to write out an integer of 5,000 digits
    text = repr(value)
    return text if len(text) <= limit else text[: limit - 1] + "…"


def _finite(number: float) -> bool:
    return abs(number) < math.inf  # math.isfinite overflows on a huge int, and this is False for NaN too


def refuse(name: str, value: Any, why: str, fix: str) -> ParameterError:
    """Make the error for one bad parameter; its value is shortened so that the line stays within 240 characters."""
    return ParameterError(f"{name[:40]} = {_short(value)}", why, fix)


def _demand(kind: type, name: str, value: Any, fix: str) -> None:
    # `type(...) is`, not isinstance: True is an int to isinstance, and so is every numpy subclass.
    if type(value) is not kind:
        module = type(value).__module__.replace("builtins", "").split(".")[0]
        text = f"{module}.{type(value).__name__}".lstrip(".")
        raise refuse(name, value, f"must be {_WORDS[kind]}, not {text[:24]}", fix)


_WORDS = {
    int: "an integer",
    float: "a number",
    str: "a text",
    bool: "True or False",
    list: "a list of numbers",
}


@dataclass(frozen=True, slots=True)
class Int:
    """A whole number from `low` to `high` inclusive (no upper bound when None)."""

    low: int = 1
    high: int | None = None

    def check(self, name: str, value: Any) -> None:
        """Raise ParameterError for another type or a number outside the bounds."""
        _demand(int, name, value, f"Set e.g. {name}={self.low}.")
        if value < self.low or (self.high is not None and value > self.high):
            above = f"an integer >= {self.low}" if self.high is None else f"from {self.low} to {self.high}"
            raise refuse(name, value, f"must be {above}", f"Set e.g. {name}={self.low}.")


@dataclass(frozen=True, slots=True)
class Float:
    """A finite number above `low` (or equal to it when `closed`) and at most `high`."""

    low: float = 0.0
    high: float = math.inf
    closed: bool = False

    def check(self, name: str, value: Any) -> None:
        """Raise ParameterError for another type, or a number that is not finite or outside the bounds.

        An int passes.
        """
        if type(value) is not int:
            _demand(float, name, value, f"Write {name} as a plain number, without quotes.")
        inside = value >= self.low if self.closed else value > self.low
        if not _finite(value) or not inside or value > self.high:
            rule = f"must be a finite number {'>=' if self.closed else '>'} {self.low:g}"
            rule += "" if math.isinf(self.high) else f" and <= {self.high:g}"
            raise refuse(name, value, rule, f"Change {name} in the parameters cell or after -p.")


@dataclass(frozen=True, slots=True)
class Bool:
    """True or False, and nothing that merely counts as one."""

    def check(self, name: str, value: Any) -> None:
        """Raise ParameterError for anything but a bool."""
        _demand(bool, name, value, f"Set {name}=True or {name}=False, without quotes.")


@dataclass(frozen=True, slots=True)
class Choice:
    """One text out of a list."""

    values: tuple[str, ...]

    def check(self, name: str, value: Any) -> None:
        """Raise ParameterError for another type or a text that is not on the list."""
        near = self.values[0]
        _demand(str, name, value, f"Set e.g. {name}={near!r}.")
        if value not in self.values:
            near = (difflib.get_close_matches(value, self.values, 1) or [near])[0]
            rule = f"must be one of {', '.join(self.values)}"
            raise refuse(name, value, rule[:96], f"Set e.g. {name}={near!r}.")


@dataclass(frozen=True, slots=True)
class Numbers:
    """An ascending list of different finite numbers in (0, high], not empty; with `complete` it ends at `high`.

    It serves width multipliers (`Numbers(1.0, complete=True)`) and image sides (`Numbers(224, whole=True)`).
    """

    high: float = 1.0
    complete: bool = False
    whole: bool = False

    def check(self, name: str, value: Any) -> None:
        """Raise ParameterError for another type or a list that breaks a rule."""
        example = [int(self.high)] if self.whole else [self.high / 4, self.high / 2, float(self.high)]
        fix = f"Set e.g. {name}={example}."
        _demand(list, name, value, fix)
        if not value:
            raise refuse(name, value, "must not be empty", fix)
        for item in value:
            if type(item) is not int and (self.whole or type(item) is not float):
                kind = "integers" if self.whole else "numbers"
                raise refuse(name, value, f"must hold {kind} only, {_short(item, 16)} is none", fix)
            if not _finite(item) or not 0 < item <= self.high:
                rule = f"{_short(item, 16)} must be above 0 and at most {self.high:g}"
                raise refuse(name, value, rule, fix)
        if list(value) != sorted(set(value)):
            raise refuse(name, value, "must ascend, no value twice", f"Set {name}={sorted(set(value))}."
            )
        if self.complete and value[-1] != self.high:
            fix = f"Set {name}={[*value, self.high]}."
            raise refuse(name, value, f"must end with the largest, {self.high:g}", fix)


@dataclass(frozen=True, slots=True)
class Device:
    """auto, cpu, cuda or cuda:N. `Chapter.begin`, which may import torch, finds out whether it exists."""

    def check(self, name: str, value: Any) -> None:
        """Raise ParameterError for another type or a text that names no device."""
        _demand(str, name, value, f"Set {name}='auto'.")
        if not re.fullmatch(r"auto|cpu|cuda(:[0-9]{1,3})?", value):
            raise refuse(name, value, "must be auto, cpu, cuda or cuda:N", f"Set {name}='auto'.")


@dataclass(frozen=True, slots=True)
class Folder:
    """A folder, as a path; `names` are accepted beside it. Whoever opens it finds out whether it exists."""

    names: tuple[str, ...] = ("",)

    def check(self, name: str, value: Any) -> None:
        """Raise ParameterError for another type, an unknown bare name, or a path that we do not take."""
        _demand(str, name, value, f"Set {name}={self.names[0]!r}.")
        if value in self.names:
            return
        fix = f"Set e.g. {name}={self.names[-1]!r}."
        if len(value) > 200 or not value.isprintable() or ".." in re.split(r"[/\\]", value):
            raise refuse(name, value, "must be a printable path of <= 200 characters without '..'", fix
            )
        # A bare word is far more often a misspelt name than a folder beside the notebook.
        if len(self.names) > 1 and not re.search(r"[/\\]", value):
            fix = f"Set e.g. {name}={(difflib.get_close_matches(value, self.names, 1) or ['auto'])[0]!r}."
            raise refuse(name, value, f"must be {', '.join(self.names)} or a path with a /", fix)


Rule = Int | Float | Bool | Choice | Numbers | Device | Folder
SPELLINGS = {"true": True, "false": False, "nan": math.nan, "inf": math.inf, "-inf": -math.inf}
RULES = {rule.__name__: rule for rule in Rule.__args__}


@dataclass(frozen=True, slots=True)
class Seed:
    """An integer in [0, 2**32), which every random number generator that we use accepts unchanged."""

    def check(self, name: str, value: Any) -> None:
        """Raise ParameterError for another type or a number outside the range."""
        _demand(int, name, value, f"Set e.g. {name}=0.")
        if not 0 <= value < 2**32:
            raise refuse(name, value, "must be an integer from 0 to 4294967295", f"Set e.g. {name}=0.")


COMMON = {
    "scale": Choice(SCALES),
    "seed": Seed(),  # the first seed; runs use seed, seed + 1, ...
    "seeds": Int(1, 1000),  # how many seeds
    "device": Device(),
    "data": Folder(DATA_NAMES),
    "out": Folder(),  # folder for figures; "" is the book's own
}
"""The parameters that mean the same in every chapter, and their rules."""


def check_parameters(namespace: Mapping[str, Any], declared: Mapping[str, Rule]) -> dict[str, Any]:
    """Return the checked parameters, by name, out of a chapter's globals.

    Every simple-valued global (number, text, list ...) must be one of COMMON or of `declared`, so that a misspelt name
    that papermill wrote into the notebook is noticed. Raises ParameterError.
    """
    rules = COMMON | dict(declared)
    values = {k: v for k, v in namespace.items() if _looks_like_parameter(k, v)}
    for name in values:
        check_name(name, rules)
    for name, rule in rules.items():
        if name not in values:
            if name in namespace:  # there, but not a simple value: numpy scalars and the like
                rule.check(name, namespace[name])
            raise ParameterError(
                f"{name[:40]} is missing",
                "every declared parameter needs a value in the parameters cell",
                f"Add {name[:40]} = ... to it.",
            )
        rule.check(name, values[name])
    return {name: values[name] for name in rules}


def check_name(name: str, known: Mapping[str, Any]) -> None:
    """Raise ParameterError, with the nearest known name, unless `name` is known."""
    if name in known:
        return
    if not NAME.fullmatch(name):
        rule = "a parameter's name is lower-case letters, digits and _"
        raise ParameterError(
            f"{_short(name)} is no parameter", rule, "Write it as in the parameters cell."
        )
    near = difflib.get_close_matches(name, known, 1, cutoff=0.5)
    fix = f"Did you mean {near[0]}?" if near else f"Known: {', '.join(known)}."[:110]
    raise ParameterError(f"{name[:40]} is no parameter of this chapter", "unknown names are refused", fix)


def _looks_like_parameter(name: str, value: Any) -> bool:
    # IPython's own names: In, Out and everything with a leading underscore.
    return not name.startswith("_") and name not in ("In", "Out") and type(value) in SIMPLE


@dataclass(frozen=True)
class Declaration:
    """What a chapter's source says of its parameters: the defaults, in order, and its own rules."""

    defaults: dict[str, Any] = field(default_factory=dict)
    rules: dict[str, Rule] = field(default_factory=dict)

    def check(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """Return all parameters, `values` over the defaults, without running the chapter. Raises ParameterError."""
        for name in values:
            check_name(name, self.defaults)
        return check_parameters({**self.defaults, **values}, self.rules)

    def read(self, name: str, text: str) -> Any:
        """Return the value that `text` on a command line stands for: itself for a text parameter, else a literal."""
        check_name(name, self.defaults)
        if type(self.defaults[name]) is str:
            return text
        try:
            return SPELLINGS[text] if text in SPELLINGS else ast.literal_eval(text)
        except (ValueError, SyntaxError, MemoryError, RecursionError):
            return text  # the parameter's rule then says what it must be


def declaration(parameters_cell: str, code: str) -> Declaration:
    """Return the defaults in the parameters cell and the rules in `Chapter.begin(...)` of `code`; neither is executed.

    Raises ParameterError if the cell holds anything but `name = literal`, or if a rule's arguments are not literals.
    """
    defaults = {}
    for node in ast.parse(parameters_cell).body:
        try:
            (target,) = node.targets
            defaults[target.id] = ast.literal_eval(node.value)
        except (AttributeError, ValueError):
            raise ParameterError(
                f"the parameters cell, line {node.lineno}",
                "it holds literals only, one `name = value` per line",
                "Move the computation below the set-up.",
            ) from None
    rules = {}
    for call in ast.walk(ast.parse(code)):
        if isinstance(call, ast.Call) and ast.unparse(call.func).endswith("Chapter.begin"):
            rules |= {word.arg: _rule(word) for word in call.keywords if word.arg}
    return Declaration(defaults, rules)


def _rule(word: ast.keyword) -> Rule:
    try:
        kind = RULES[ast.unparse(word.value.func).split(".")[-1]]
        arguments = [ast.literal_eval(a) for a in word.value.args]
        return kind(*arguments, **{k.arg: ast.literal_eval(k.value) for k in word.value.keywords})
    except (AttributeError, KeyError, ValueError, TypeError):
        raise ParameterError(
            f"the rule of {word.arg} in Chapter.begin",
            f"must be one of {', '.join(RULES)} with literal arguments",
            "See slimnb/book/parameters.py.",
        ) from None
