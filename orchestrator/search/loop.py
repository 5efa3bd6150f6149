"""The loop of a search: step, marginalize, choose, widen where the choice is not certain, advance."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass

from orchestrator.search.decoder import Decoder, Move, Uncertain
from orchestrator.search.filters import FilterChain
from orchestrator.search.inference import Control, Extension, Inference, Step
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
    counted: Callable[[str, int], None]

    def first(self, groups: Sequence[Decoder]) -> int:
        """M of an ordinary step."""
        return min(max(self.candidates, *(group.candidates for group in groups)), self.vocab_size)

    def next(self, candidates: int) -> int:
        """M after `candidates` were not enough."""
        return min(candidates * self.factor, self.vocab_size)


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
        filters, candidates = self.builder.filters, self.widening.first(self.groups)
        start = filters.control(())
        step = await self.inference.open(start, candidates)
        live = [_Live(group, [start], [], row) for row, group in enumerate(self.groups)]
        while True:
            moves = await self._decide(live, step, candidates)
            yield
            live, extensions = _continue(live, moves, filters)
            if not live:
                return
            step = await self.inference.advance(extensions, candidates)

    async def _decide(self, live: Sequence[_Live], step: Step, candidates: int) -> list[Sequence[Move]]:
        """The moves of each group, widening the rows that leave one of them uncertain."""
        shown: dict[int, int] = {row: row for one in live for row in range(one.first, one.first + len(one.controls))}
        decided: dict[int, Sequence[Move]] = {}
        while True:
            unsure = await self._measured(live, step, shown, decided)
            if not unsure:
                return [decided[one.first] for one in live]
            rows = [row for _, group_rows in unsure for row in group_rows]
            for reason, group_rows in unsure:
                self.widening.counted(reason, len(group_rows))
            candidates = self.widening.next(candidates)
            step = await self.inference.widen(rows, candidates)
            shown = {row: position for position, row in enumerate(rows)}

    async def _measured(
        self, live: Sequence[_Live], step: Step, shown: dict[int, int], decided: dict[int, Sequence[Move]]
    ) -> list[tuple[str, tuple[int, ...]]]:
        with self.measure():
            if step.log_probs.size <= INLINE_LOG_PROBS and len(step.log_probs) <= INLINE_ROWS:
                return self._attempt(live, step, shown, decided)
            return await asyncio.to_thread(self._attempt, live, step, shown, decided)

    def _attempt(
        self, live: Sequence[_Live], step: Step, shown: dict[int, int], decided: dict[int, Sequence[Move]]
    ) -> list[tuple[str, tuple[int, ...]]]:
        """Decide what can be; of the other groups the reasons and the rows of the session to widen.

        `shown` maps rows of the session to rows of `step`, which after a Widen has only some of them.
        """
        unsure: list[tuple[str, tuple[int, ...]]] = []
        ranked = self.builder.ranked(step)
        for one in live:
            if one.first in decided:
                continue
            one.rows = self._rows(one, step, ranked, shown)
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
