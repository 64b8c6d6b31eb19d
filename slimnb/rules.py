"""Annotations as rules: `checked` holds arguments and fields to the types and bounds that they are declared with.

Types are strict, as those of a chapter's parameters are: True is no integer, "0.1" no number, and no number is infinite
or NaN. This file must stay importable without torch.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, fields
from functools import cache, partial, reduce, wraps
from operator import or_
from types import UnionType
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

import numpy as np
from annotated_types import Interval, MinLen
from pydantic import (
    AfterValidator,
    BeforeValidator,
    ConfigDict,
    StringConstraints,
    TypeAdapter,
    ValidationError,
)

from slimnb.errors import ParameterError

Count = Annotated[int, Interval(ge=1, le=10**7)]
Whole = Annotated[int, Interval(ge=0, le=10**12)]
Index = Annotated[int, Interval(ge=0, le=2**20)]
Stride = Annotated[int, Interval(ge=1, le=8)]
Classes = Annotated[int, Interval(ge=1, le=10**6)]
Seed = Annotated[int, Interval(ge=0, le=2**32 - 1)]
Pixels = Annotated[int, Interval(ge=1, le=2**14)]
Channels = Annotated[int, Interval(ge=1, le=2**16)]
Amount = Annotated[float, Interval(ge=0)]
Positive = Annotated[float, Interval(gt=0)]
Share = Annotated[float, Interval(ge=0, le=1)]
Below1 = Annotated[float, Interval(ge=0, lt=1)]
Mult = Annotated[float, Interval(gt=0, le=64)]  # a width multiplier
Portion = Annotated[float, Interval(gt=0, le=1)]
Device = Annotated[str, StringConstraints(pattern=r"^(cpu|meta|cuda(:[0-9]{1,3})?)$")]
Rounding = Literal["divisible", "floor"]  # of widths
Scale = Literal["smoke", "small", "full"]

T = TypeVar("T")
Some = Annotated[Sequence[T], MinLen(1)]


def _numbers(values: Any) -> Any:
    try:
        np.asarray(values.detach().cpu() if hasattr(values, "detach") else values, dtype=float)
    except (TypeError, ValueError, OverflowError, RuntimeError):
        raise ValueError("must be numbers, in an array or a list of them") from None
    return values


Array = Annotated[Any, AfterValidator(_numbers)]
"""Whatever numpy reads as numbers: an array, a tensor, nested lists; a function checks their shape and range."""

STRICT = ConfigDict(strict=True, allow_inf_nan=False, arbitrary_types_allowed=True)
PLAIN = (bool, int, float, str, bytes, type(None))


def short(value: Any, limit: int = 32) -> str:
    """Return a value as a line of an error can show it."""
    if isinstance(value, int) and abs(value) > 2**64:
        return f"about 2**{value.bit_length()}"  # Python refuses to write out an integer of 5,000 digits
    try:
        text = repr(value)
    except Exception:  # of a number in a list that is too long to be written out
        text = "\n"
    if "\n" in text:  # a net, an array, a frame
        text = f"a {type(value).__name__}"
    return text if len(text) <= limit else text[: limit - 1] + "…"


def checked(thing: Any) -> Any:
    """Check the arguments of a function, or the fields of a dataclass (below `@dataclass`), by their annotations.

    Each call of the function, and each instance of the class and of its subclasses, raises ParameterError for a value
    that is not what its annotation says. No number depends on it: fingerprints of code leave it out.
    """
    if not isinstance(thing, type):
        signature = inspect.signature(thing)

        @wraps(thing)
        def call(*args, **kwargs):
            for name, value in signature.bind(*args, **kwargs).arguments.items():
                if (rule := _rules(thing).get(name)) is not None:
                    _check(rule, name, value, signature.parameters[name].default)
            return thing(*args, **kwargs)

        return call
    after = getattr(thing, "__post_init__", lambda self: None)

    def check_fields(self) -> None:
        for a_field in fields(self):
            if (rule := _rules(type(self)).get(a_field.name)) is not None:
                name = f"{type(self).__name__}.{a_field.name}"
                _check(rule, name, getattr(self, a_field.name), a_field.default)
        after(self)

    thing.__post_init__ = check_fields
    return thing


@cache
def _rules(thing: Any) -> dict[str, TypeAdapter]:
    if isinstance(thing, type):
        names = [a_field.name for a_field in fields(thing)]
    else:  # not *args and **kwargs
        names = [name for name, each in inspect.signature(thing).parameters.items() if each.kind not in (2, 4)]
    hints = get_type_hints(thing, include_extras=True)
    return {name: TypeAdapter(_strict(hints[name]), config=STRICT) for name in names if hints.get(name, Any) is not Any}


def _strict(hint: Any) -> Any:
    """A type as pydantic is to take it: of other classes an instance will do, and iterators are not run."""
    origin, args = get_origin(hint) or hint, get_args(hint)
    if hint is Any:
        return Any
    if origin is Annotated:
        return Annotated[(_strict(args[0]), *hint.__metadata__)]
    if origin in (Union, UnionType):
        return reduce(or_, map(_strict, args))
    if origin in (Sequence, list) or (origin is tuple and args[1:] == (...,)):
        item = _strict(args[0]) if args else Any
        return Annotated[list[item], BeforeValidator(_listed)]
    if not isinstance(origin, type) or (origin in (*PLAIN, dict, tuple) and not args) or _is_loose(origin):
        return Any if _is_loose(origin) else hint
    if origin in (dict, tuple, Mapping) and args:
        inner = origin[tuple(map(_strict, args))]
        return Annotated[inner, BeforeValidator(_tupled)] if origin is tuple else inner
    return Annotated[Any, AfterValidator(partial(_instance, origin))]


def _instance(kind: type, value: Any) -> Any:
    if not isinstance(value, kind):
        raise ValueError(f"must be a {kind.__name__}, not a {type(value).__name__}")
    return value


def _is_loose(hint: Any) -> bool:
    return getattr(hint, "_is_protocol", False) and not getattr(hint, "_is_runtime_protocol", False)


def _listed(value: Any) -> Any:
    return list(value) if isinstance(value, (tuple, range)) else value.tolist() if hasattr(value, "tolist") else value


def _tupled(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def _check(rule: TypeAdapter, name: str, value: Any, default: Any) -> None:
    try:
        rule.validate_python(value)
    except ValidationError as error:
        problems = error.errors(include_url=False, include_context=False)
        place = "".join(f"[{part}]" for part in problems[0]["loc"] if type(part) is int)
        whys = dict.fromkeys(problem["msg"].removeprefix("Value error, ").replace("Input should", "must", 1)
                             for problem in problems if problem["input"] is problems[0]["input"])
        plain = default is not None and default not in (MISSING, inspect.Parameter.empty)
        raise ParameterError(f"{name[:60]}{place} = {short(problems[0]['input'])}", " or ".join(whys)[:90],
                             f"Leave it out for {short(default, 20)}." if plain else "Correct it.") from None
