"""The loop of a search: step, marginalize, choose, widen where the choice is not certain, advance."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass

from orchestrator.search.decoder import Decoder, Move, Uncertain
from orchestrator.search.filters import FilterChain
from orchestrator.search.inference import Control, Extension, Inference, Step
from orchestrator.search.room import Room
from orchestrator.search.rows import Ranked, Row, RowBuilder

# A step with more than this is worked on in a thread: the event loop must not wait for it.
INLINE_LOG_PROBS = 4_000
INLINE_ROWS = 6


@dataclass(frozen=True)
class Widening:
    """How candidates are chosen and widened. `counted` is told the reason of each Widen and how many rows it had."""

    candidates: int
    factor: int
    vocab_size: int
    room: Room
    counted: Callable[[str, int], None]

    def first(self, groups: Sequence[Decoder], controls: Sequence[Control]) -> int:
        """M of an ordinary step, whose rows have these controls and come in one message."""
        wanted = min(max(self.candidates, *(group.candidates for group in groups)), self.vocab_size)
        return min(wanted, self.room.candidates(len(controls), _most_requested(controls)))

    def next(self, candidates: int, controls: Sequence[Control]) -> int:
        """M after `candidates` were not enough. Raises ResourceExhaustedError where not even one row has room."""
        wanted = min(candidates * self.factor, self.vocab_size)
        wider = min(wanted, self.room.candidates(1, _most_requested(controls)))
        return wider if wider > candidates else self.room.refuse(wanted)

    def parts(self, rows: Sequence[int], candidates: int, controls: Sequence[Control]) -> list[Sequence[int]]:
        """The rows of each Widen: as many as one message has room for."""
        most = self.room.rows(candidates, _most_requested(controls))
        return [rows[at : at + most] for at in range(0, len(rows), most)]


@dataclass
class _Live:
    """The present step of one group: its rows lie together in the step of the session."""

    group: Decoder
    controls: list[Control]
    rows: list[Row]
    first: int


@dataclass(frozen=True)
class Search:
    """One search on one session: `groups` has one decoder in token mode, one per document in sequence mode."""

    inference: Inference
    groups: Sequence[Decoder]
    builder: RowBuilder
    widening: Widening
    measure: Callable[[], AbstractContextManager[None]]

    async def run(self) -> AsyncGenerator[None, None]:
        """Runs to the end, and yields after every step; the decoders hold the results."""
        filters = self.builder.filters
        start = filters.control(())
        candidates = self.widening.first(self.groups, [start] * len(self.groups))
        step = await self.inference.open(start, candidates)
        live = [_Live(group, [start], [], row) for row, group in enumerate(self.groups)]
        while True:
            moves = await self._decide(live, step, candidates)
            yield
            live, extensions = _continue(live, moves, filters)
            if not live:
                return
            candidates = self.widening.first(self.groups, [one.control for one in extensions])
            step = await self.inference.advance(extensions, candidates)

    async def _decide(self, live: Sequence[_Live], step: Step, candidates: int) -> list[Sequence[Move]]:
        """The moves of each group, widening the rows that leave one of them uncertain."""
        shown: dict[int, int] = {row: row for one in live for row in range(one.first, one.first + len(one.controls))}
        controls = [control for one in live for control in one.controls]
        decided: dict[int, Sequence[Move]] = {}
        unsure = await self._measured(live, step, shown, decided)
        while unsure:
            for reason, group_rows in unsure:
                self.widening.counted(reason, len(group_rows))
            candidates = self.widening.next(candidates, controls)
            parts = self.widening.parts([row for _, group_rows in unsure for row in group_rows], candidates, controls)
            for number, part in enumerate(parts, 1):
                step = await self.inference.widen(part, candidates)
                shown = {row: position for position, row in enumerate(part)}
                unsure = await self._measured(live, step, shown, decided, whole=number == len(parts))
        return [decided[one.first] for one in live]

    async def _measured(
        self,
        live: Sequence[_Live],
        step: Step,
        shown: dict[int, int],
        decided: dict[int, Sequence[Move]],
        *,
        whole: bool = True,
    ) -> list[tuple[str, tuple[int, ...]]]:
        with self.measure():
            if step.log_probs.size <= INLINE_LOG_PROBS and len(step.log_probs) <= INLINE_ROWS:
                return self._attempt(live, step, shown, decided, whole)
            return await asyncio.to_thread(self._attempt, live, step, shown, decided, whole)

    def _attempt(
        self,
        live: Sequence[_Live],
        step: Step,
        shown: dict[int, int],
        decided: dict[int, Sequence[Move]],
        whole: bool,
    ) -> list[tuple[str, tuple[int, ...]]]:
        """Decide what can be; of the other groups the reasons and the rows of the session to widen.

        `shown` maps rows of the session to rows of `step`, which after a Widen has only some of them. Nothing is
        decided before the step is `whole`: until then another part follows.
        """
        unsure: list[tuple[str, tuple[int, ...]]] = []
        ranked = self.builder.ranked(step)
        for one in live:
            if one.first in decided:
                continue
            one.rows = self._rows(one, step, ranked, shown)
            if not whole:
                continue
            choice = one.group.decide(one.rows)
            if isinstance(choice, Uncertain):
                unsure.append((choice.reason, tuple(one.first + row for row in choice.rows)))
            else:
                decided[one.first] = choice
        return unsure

    def _rows(self, one: _Live, step: Step, ranked: Ranked, shown: dict[int, int]) -> list[Row]:
        """Rows of a group: new ones where the step shows them, else those of before."""
        return [
            self.builder.build(step, ranked, shown[one.first + i], hypothesis.tokens, control)
            if one.first + i in shown
            else one.rows[i]
            for i, (hypothesis, control) in enumerate(zip(one.group.live, one.controls, strict=True))
        ]


def _most_requested(controls: Sequence[Control]) -> int:
    """Requested tokens of the row that has the most."""
    return max(len(control.requested) for control in controls)


def _continue(
    live: Sequence[_Live], moves: Sequence[Sequence[Move]], filters: FilterChain
) -> tuple[list[_Live], list[Extension]]:
    """The groups that go on, and what the session is to extend; finished groups drop out."""
    following: list[_Live] = []
    extensions: list[Extension] = []
    for one, group_moves in zip(live, moves, strict=True):
        if not group_moves:
            continue
        controls = [filters.control(move.hypothesis.tokens) for move in group_moves]
        following.append(_Live(one.group, controls, [], len(extensions)))
        extensions += [
            Extension(one.first + move.parent, move.hypothesis.tokens[-1], control)
            for move, control in zip(group_moves, controls, strict=True)
        ]
    return following, extensions
