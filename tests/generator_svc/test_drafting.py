"""Guesses from the documents: what is guessed, and that their steps are those of a session that never guesses."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from generator_svc.commands import AdvanceCommand, NextHypothesis, StepControl, StepOutput, WidenCommand
from generator_svc.drafting import Drafter
from generator_svc.engine import GeneratorEngine
from generator_svc.options import EngineOptions
from generator_svc.session import DecodeSession
from ragserve.serving.metrics import Metrics
from tests.generator_svc.test_engine import opening, scheduler_of

START, END = 1, 2
OPTIONS = EngineOptions(device="cpu", max_documents=8, max_hypotheses=16, draft_tokens=5)
BANNED = StepControl(banned=(END,))


def drafter(*contexts: list[int], most: int = 4) -> Drafter:
    return Drafter(contexts, [START], most, {START, END})


def test_the_longest_match_wins_then_the_likeliest_document() -> None:
    one = drafter([10, 11, 12, END], [20, 10, 13, 14, END], [30, 10, 15, END])
    assert one.propose(0, 10, 4) == (11, 12)
    one.take(0, 20, ())
    assert one.propose(0, 10, 4) == (13, 14)
    assert one.propose(0, 99, 4) == ()


def test_guesses_end_before_special_tokens_and_are_no_longer_than_asked() -> None:
    one = drafter([10, 11, 12, 13, 14, 15, END, 20, 21])
    assert one.propose(0, 10, 3) == (11, 12, 13)
    assert one.propose(0, 10, 9) == (11, 12, 13, 14)
    assert one.propose(0, 15, 3) == ()
    assert one.propose(0, END, 3) == ()


def test_a_guess_goes_on_from_the_guessed_token_that_was_chosen() -> None:
    one = drafter([10, 11, 12, 13, 14, END], [12, 13, 60, END], [12, 50, 51, END], most=3)
    one.take(0, 10, (11, 12, 13))
    assert one.propose(2, 50, 3) == (51,)
    assert one.propose(2, 13, 3) == (14,)  # 11 12 13 stand there
    assert one.propose(0, 13, 3) == (14,)  # only 13 does, and the first document is likelier


def test_guesses_get_shorter_when_they_are_wrong_and_longer_when_right() -> None:
    one = drafter(list(range(10, 60)), most=6)
    lengths = []
    for right in (False, False, False, True, True, False):
        drafted = one.propose(0, 10, 9)
        lengths.append(len(drafted))
        one.take(0, 10, drafted)
        one.take(len(drafted) if right else 0, 99, ())
    assert lengths == [6, 5, 4, 3, 5, 6]


@pytest.fixture
async def engines(bart_dir: Path) -> AsyncIterator[tuple[GeneratorEngine, GeneratorEngine]]:
    """One that guesses, and one that does not."""
    pair = (
        GeneratorEngine(bart_dir, OPTIONS, Metrics()),
        GeneratorEngine(bart_dir, replace(OPTIONS, draft_tokens=0), Metrics()),
    )
    for engine in pair:
        await engine.start()
    yield pair
    for engine in pair:
        await engine.stop()


def advancing(token: int, parent: int = 0, drafts: int = 9, control: StepControl = BANNED) -> AdvanceCommand:
    return AdvanceCommand((NextHypothesis(parent, token, control),), 6, drafts)


async def opened(stack: AsyncExitStack, engine: GeneratorEngine, mode: str = "token") -> DecodeSession:
    session = await stack.enter_async_context(engine.connect())
    await session.open(opening(3, mode))
    return session


def context_of(session: DecodeSession, document: int = 0) -> list[int]:
    assert session._session is not None
    return list(session._session.contexts[document])


async def advance(session: DecodeSession, command: AdvanceCommand) -> StepOutput:
    return (await session.advance(command)).output


def same_row(found: StepOutput, row: int, expected: StepOutput) -> None:
    assert found.token_ids[row].tolist() == expected.token_ids[0].tolist()
    np.testing.assert_allclose(found.log_probs[row], expected.log_probs[0], atol=1e-5)
    np.testing.assert_allclose(found.log_normalizers[row], expected.log_normalizers[0], atol=1e-5)
    assert found.allowed_log_mass[row] == pytest.approx(expected.allowed_log_mass[0], abs=1e-5)


async def test_guessed_steps_equal_those_taken_one_by_one(engines: tuple[GeneratorEngine, GeneratorEngine]) -> None:
    async with AsyncExitStack() as stack:
        guessing, plain = [await opened(stack, engine) for engine in engines]
        context = context_of(guessing)
        step = await advance(guessing, advancing(context[3]))
        assert step.drafted == tuple(context[4:9])
        assert step.token_ids.shape[0] == 6
        for row, token in enumerate(context[3:9]):
            same_row(step, row, await advance(plain, advancing(token)))
        # A choice in the middle: what was guessed beyond it is dropped, what is before it stays.
        async with engines[1].connect() as again:
            await again.open(opening(3))
            for token in context[3:6]:
                await advance(again, advancing(token))
            other = context_of(guessing, 1)[5]
            same_row(await advance(guessing, advancing(other, parent=2)), 0, await advance(again, advancing(other)))


async def test_guessed_rows_can_be_widened(engines: tuple[GeneratorEngine, GeneratorEngine]) -> None:
    async with AsyncExitStack() as stack:
        guessing, plain = [await opened(stack, engine) for engine in engines]
        context = context_of(guessing)
        await advance(guessing, advancing(context[3]))
        for token in context[3:6]:
            await advance(plain, advancing(token))
        wide = (await guessing.widen(WidenCommand((2,), 40))).output
        same_row(wide, 0, (await plain.widen(WidenCommand((0,), 40))).output)


async def test_nothing_is_guessed_where_nobody_asked_or_many_hypotheses_live(
    engines: tuple[GeneratorEngine, GeneratorEngine],
) -> None:
    async with AsyncExitStack() as stack:
        token, sequence = await opened(stack, engines[0]), await opened(stack, engines[0], "sequence")
        place = context_of(token)[3]
        assert (await advance(token, advancing(place, drafts=0))).drafted == ()
        assert (await advance(token, advancing(place))).drafted != ()
        both = AdvanceCommand((NextHypothesis(0, place), NextHypothesis(0, place)), 6, 9)
        assert (await advance(token, both)).drafted == ()
        assert (await advance(token, advancing(place))).drafted == ()
        assert (await advance(sequence, advancing(place))).drafted == ()


async def test_guesses_leave_room_for_what_was_asked(bart_dir: Path) -> None:
    engine = GeneratorEngine(bart_dir, replace(OPTIONS, max_rows=6, max_target_tokens=6), Metrics())
    await engine.start()
    async with AsyncExitStack() as stack:
        stack.push_async_callback(engine.stop)
        session = await opened(stack, engine)
        context = context_of(session)
        assert (await advance(session, advancing(context[3]))).drafted == ()  # 3 rows, and 6 there may be
        assert scheduler_of(engine).sessions()[0].n_rows == 3


async def test_guesses_end_with_the_longest_output(bart_dir: Path) -> None:
    engine = GeneratorEngine(bart_dir, replace(OPTIONS, max_target_tokens=4), Metrics())
    await engine.start()
    async with AsyncExitStack() as stack:
        stack.push_async_callback(engine.stop)
        session = await opened(stack, engine)
        step = await advance(session, advancing(context_of(session)[3]))
        assert len(step.drafted) == 2
        assert scheduler_of(engine).slots.used == 3 * 4
        step = await advance(session, advancing(context_of(session)[4], parent=1))
        assert step.drafted == ()
        assert scheduler_of(engine).slots.used == 3 * 4
