"""Odd values for every parameter of the clients, and whatever a call with one of them does."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import date
from decimal import Decimal
from fractions import Fraction
from itertools import islice
from typing import Any

import numpy as np

import ragserve
from ragserve import options

CLIENTS: tuple[type[Any], ...] = (
    ragserve.Client,
    ragserve.AsyncClient,
    ragserve.KnowledgeClient,
    ragserve.AsyncKnowledgeClient,
)
# How each public method is called well. A method that is not here fails a test.
ASKING: Mapping[str, Mapping[str, Any]] = {
    "generate": {"question": "a b"},
    "generate_stream": {"question": "a b"},
    "retrieve": {"question": "a b"},
    "score": {"question": "a b", "answer": "5 6"},
    "close": {},
}
KNOWING: Mapping[str, Mapping[str, Any]] = {
    "upsert": {"passages": [{"id": "odd", "text": "text"}]},
    "delete": {"ids": ["odd"]},
    "rollback": {"knowledge_version": 1},
    "compact": {},
    "get": {"ids": ["odd"]},
    "versions": {},
    "diff": {"from_version": 1},
    "refresh": {},
    "info": {},
    "retrieve": {"queries": "a b"},
    "retrieve_stream": {"lookups": ["a b"]},
    "close": {},
}
MOST_EVENTS = 20


class CallersOwnError(Exception):
    """What the caller's own code raises."""


class Unspeakable:
    """Raises when it is shown or asked for anything."""

    def __repr__(self) -> str:
        raise CallersOwnError("repr")


def raising() -> Iterator[Any]:
    yield from ()
    raise CallersOwnError("iterating")


def odd_values() -> list[Any]:
    """Fresh ones: some can be used once only."""
    numbers = [0, -1, True, 1.5, -0.0, 1e300, math.nan, -math.inf, 2**31, 2**64, 10**30, 10**5000]
    foreign = [Decimal(1), Fraction(1, 3), 1j, np.int64(2), np.float32(0.5), np.float64("nan"), np.bool_(True)]
    arrays = [np.array(3), np.zeros(0), np.zeros((2, 2)), np.array(["a"]), np.array([None]), np.full(3, np.nan)]
    texts = ["", " ", "\ud800", "x" * 20_000, "\0", b"bytes", bytearray(b"x"), date(2020, 1, 1)]
    several = [[], [None], [[]], [1.5], [-1], ["\ud800"], [b"x"], [{}], (2**40,), {1}, range(2), iter([0]), raising()]
    mappings = [{}, {"id": 1}, {3: 4}, {"a": object()}, {"lang": []}, {"a": 10**5000}, {"\ud800": "x"}, {b"a": "x"}]
    others = [None, object(), Unspeakable(), [Unspeakable()], lambda *_: None, Ellipsis]
    return [*numbers, *foreign, *arrays, *texts, *several, *mappings, *others, *records()]


def records() -> list[Any]:
    """Dataclasses of ours, filled wrongly."""
    made: list[Any] = [
        options.Sampling(temperature="hot"),  # type: ignore[arg-type]
        options.Sampling(top_k=-1, seed=2**70),
        options.Document(1, None),  # type: ignore[arg-type]
        options.Document("t", "x", log_prior=math.nan),
        ragserve.NewPassage("a", "b", vector="c"),  # type: ignore[arg-type]
        ragserve.NewPassage("a", "b", metadata={"a": {1, 2}}),
        ragserve.NewPassage(None, 3),  # type: ignore[arg-type]
        ragserve.Lookup(None, k="3"),  # type: ignore[arg-type]
        ragserve.Range(above=object()),  # type: ignore[arg-type]
        ragserve.Split(words="3"),  # type: ignore[arg-type]
        ragserve.Split(overlap=-1),
    ]
    deep: list[Any] = []
    for _ in range(5000):
        deep = [deep]
    return [
        *made,
        *([one] for one in made),
        {"a": ragserve.Range()},
        [{"id": "a", "text": "b", "metadata": {"d": deep}}],
    ]


@dataclass(frozen=True)
class Method:
    """A public method, or the constructor, of a client."""

    client: type[Any]
    name: str

    @property
    def base(self) -> Mapping[str, Any]:
        return (KNOWING if "Knowledge" in self.client.__name__ else ASKING)[self.name]

    @property
    def is_async(self) -> bool:
        return self.client.__name__.startswith("Async")

    def parameters(self) -> list[str]:
        """Their names; those behind `**keywords` too."""
        return list(parameters(getattr(self.client, self.name)))

    def __str__(self) -> str:
        return f"{self.client.__name__}.{self.name}"


def methods() -> list[Method]:
    found = []
    for client in CLIENTS:
        names = [name for name, _ in inspect.getmembers(client, inspect.isfunction) if not name.startswith("_")]
        found += [Method(client, name) for name in names]
    return found


def parameters(function: Callable[..., Any]) -> Iterator[str]:
    for name, parameter in inspect.signature(function).parameters.items():
        if parameter.kind is inspect.Parameter.VAR_KEYWORD:
            yield from getattr(options, parameter.annotation.removeprefix("Unpack[").rstrip("]")).__annotations__
        elif name != "self":
            yield name


def finish(result: Any) -> Any:
    """The result of a blocking call; of a stream, its first events."""
    return list(islice(result, MOST_EVENTS)) if inspect.isgenerator(result) else result


async def finish_async(result: Any) -> Any:
    if inspect.isasyncgen(result):
        return [one async for one in result]
    return await result if inspect.isawaitable(result) else result
