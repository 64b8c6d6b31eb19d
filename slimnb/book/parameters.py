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
from typing import Annotated, Any, Literal

from annotated_types import Interval, MinLen
from pydantic import AfterValidator, ConfigDict, FiniteFloat, StringConstraints, TypeAdapter, ValidationError
from pydantic_core import SchemaError

from slimnb.errors import BookError, ParameterError
from slimnb.rules import short

SCALES = ("smoke", "small", "full")
DATA_NAMES = ("auto", "synthetic", "cifar10", "cifar100")
NAME = re.compile(r"[a-z_][a-z0-9_]*")
LAST_SEED = 2**32 - 1
STRICT = ConfigDict(strict=True)
SIMPLE = (bool, int, float, complex, str, bytes, list, tuple, dict, set, type(None))


def refuse(name: str, value: Any, why: str, fix: str) -> ParameterError:
    """Make the error for one bad parameter; its value is shortened so that the line stays within 240 characters."""
    return ParameterError(f"{name[:40]} = {short(value)}", why, fix)


@dataclass(frozen=True)
class Rule:
    """What a parameter may be: a type as pydantic takes it, the same in words, a value that keeps it."""

    kind: Any
    words: str
    example: Any
    names: tuple[str, ...] = ()  # the nearest of them is offered in place of a misspelt one

    def check(self, name: str, value: Any) -> None:
        """Raise ParameterError, with what mends it, for a value of another type or out of bounds."""
        why, fix = f"must be {self.words}"[:96], f"Set e.g. {name[:40]}={short(self._near(value), 60)}."
        try:
            TypeAdapter(self.kind, config=STRICT).validate_python(value)
            plain = all(type(item) in SIMPLE for item in (value if type(value) is list else [value]))
        except ValidationError as error:
            ours = error.errors(include_url=False, include_input=False)[0].get("ctx", {}).get("error")
            why, fix = (*ours.args, fix)[:2] if isinstance(ours, ValueError) else (why, fix)
            plain = False
        if not plain:  # a numpy float is a float to pydantic, even where it is strict
            raise refuse(name, value, why, fix)

    def _near(self, value: Any) -> Any:
        near = difflib.get_close_matches(value, self.names, 1) if type(value) is str else []
        return near[0] if near else self.example


def Int(low: int = 1, high: int | None = None) -> Rule:
    """A whole number from `low` to `high` inclusive (no upper bound when None)."""
    words = f"an integer >= {low}" if high is None else f"an integer from {low} to {high}"
    return Rule(Annotated[int, Interval(ge=low, le=high)], words, low)


def Float(low: float = 0.0, high: float = math.inf, closed: bool = False) -> Rule:
    """A finite number above `low` (or equal to it when `closed`) and at most `high`; an integer is one, too."""
    words = f"a finite number {'>=' if closed else '>'} {low:g}" + ("" if math.isinf(high) else f" and <= {high:g}")
    bounds = Interval(ge=low, le=high) if closed else Interval(gt=low, le=high)
    return Rule(Annotated[FiniteFloat, bounds], words, low + 1 if math.isinf(high) else high)


def Bool() -> Rule:
    """True or False, and nothing that merely counts as one."""
    return Rule(bool, "True or False, without quotes", True)


def Choice(values: tuple[str, ...]) -> Rule:
    """One of the given texts."""
    return Rule(Literal[tuple(values)], f"one of {', '.join(values)}", values[0], tuple(values))


def Numbers(high: float = 1.0, complete: bool = False, whole: bool = False) -> Rule:
    """A list of finite numbers in (0, high]: not empty, ascending, none twice; `complete`: up to `high`.

    It serves width multipliers (`Numbers(1.0, complete=True)`) and image sides (`Numbers(224, whole=True)`).
    """
    item = Annotated[int if whole else FiniteFloat, Interval(gt=0, le=high)]
    words = f"a list of one or more {'integers' if whole else 'numbers'} above 0 and at most {high:g}"
    example = [int(high)] if whole else [high / 4, high / 2, float(high)]
    order = AfterValidator(Ascending(high if complete else None))
    return Rule(Annotated[list[item], MinLen(1), order], words, example)


@dataclass(frozen=True)
class Ascending:
    """Refuses a list that does not ascend or, if `last` is given, ends with another number."""

    last: float | None

    def __call__(self, values: list) -> list:
        """The list itself. Raises ValueError."""
        if values != sorted(set(values)):
            raise ValueError("must ascend, no value twice", f"Set e.g. {short(sorted(set(values)), 80)}.")
        if self.last is not None and values[-1] != self.last:
            example = short([*values, self.last], 80)
            raise ValueError(f"must end with the largest, {self.last:g}", f"Set e.g. {example}.")
        return values


def Device() -> Rule:
    """auto, cpu, cuda or cuda:N; whether it exists is asked by `Chapter.begin`, which may import torch."""
    pattern = StringConstraints(pattern=r"^(auto|cpu|cuda(:[0-9]{1,3})?)$")
    return Rule(Annotated[str, pattern], "auto, cpu, cuda or cuda:N", "auto")


def Folder(names: tuple[str, ...] = ("",)) -> Rule:
    """A folder, as a path; `names` are accepted beside it. Whether it exists is asked by whoever opens it."""
    words = f"{', '.join(names)} or a path with a /" if len(names) > 1 else "a path"
    return Rule(Annotated[str, AfterValidator(NameOrPath(names))], words, names[0], names)


@dataclass(frozen=True)
class NameOrPath:
    """Refuses a text that is none of `names` and no path that we take."""

    names: tuple[str, ...]

    def __call__(self, value: str) -> str:
        """The text itself. Raises ValueError."""
        if value not in self.names:
            if len(value) > 200 or not value.isprintable() or ".." in re.split(r"[/\\]", value):
                raise ValueError("must be a printable path of <= 200 characters without '..'")
            # A bare word is far more often a misspelt name than a folder beside the notebook.
            if len(self.names) > 1 and not re.search(r"[/\\]", value):
                raise ValueError(f"must be {', '.join(self.names)} or a path with a /")
        return value


RULES = {rule.__name__: rule for rule in (Int, Float, Bool, Choice, Numbers, Device, Folder)}
SPELLINGS = {"true": True, "false": False, "nan": math.nan, "inf": math.inf, "-inf": -math.inf}
COMMON = {
    "scale": Choice(SCALES),
    "seed": Int(0, LAST_SEED),  # the first seed; runs use seed, seed + 1, ...
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
    if (last := values["seed"] + values["seeds"] - 1) > LAST_SEED:
        raise refuse("seed + seeds - 1", last, f"must be at most {LAST_SEED}", "Lower seed or seeds.")
    return {name: values[name] for name in rules}


def check_name(name: str, known: Mapping[str, Any]) -> None:
    """Raise ParameterError, with the nearest known name, unless `name` is known."""
    if name in known:
        return
    if not NAME.fullmatch(name):
        rule = "a parameter's name is lower-case letters, digits and _"
        raise ParameterError(
            f"{short(name)} is no parameter", rule, "Write it as in the parameters cell."
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

    Raises ParameterError if the cell holds anything but `name = literal`, or if a rule's arguments are not literals;
    BookError for what is no Python.
    """
    defaults = {}
    for node in _tree(parameters_cell, "the parameters cell").body:
        try:
            (target,) = node.targets
            defaults[target.id] = ast.literal_eval(node.value)
        except (AttributeError, ValueError, TypeError):
            raise ParameterError(
                f"the parameters cell, line {node.lineno}",
                "it holds literals only, one `name = value` per line",
                "Move the computation below the set-up.",
            ) from None
    rules = {}
    for call in ast.walk(_tree(code, "the chapter's code")):
        if isinstance(call, ast.Call) and ast.unparse(call.func).endswith("Chapter.begin"):
            rules |= {word.arg: _rule(word) for word in call.keywords if word.arg}
    return Declaration(defaults, rules)


def _tree(code: str, place: str) -> ast.Module:
    try:
        return ast.parse(code)
    except (SyntaxError, ValueError, MemoryError, RecursionError) as error:
        line = short((getattr(error, "text", None) or code).strip(), 60)
        why = getattr(error, "msg", type(error).__name__)
        raise BookError(f"{place}: {line}", f"is no Python: {why[:60]}", "Correct that line.") from None


def _rule(word: ast.keyword) -> Rule:
    try:
        kind = RULES[ast.unparse(word.value.func).split(".")[-1]]
        arguments = [ast.literal_eval(a) for a in word.value.args]
        rule = kind(*arguments, **{k.arg: ast.literal_eval(k.value) for k in word.value.keywords})
        TypeAdapter(rule.kind, config=STRICT)
        return rule
    except (AttributeError, LookupError, ValueError, TypeError, SchemaError):
        raise ParameterError(
            f"the rule of {word.arg} in Chapter.begin",
            f"must be one of {', '.join(RULES)} with literal arguments",
            "See slimnb/book/parameters.py.",
        ) from None
