"""The scheduler with a toy model: a document is its number of tokens, a step takes no time."""

from __future__ import annotations

import random

import pytest

from generator_svc.budget import Capacity
from generator_svc.scheduler import Scheduler
from generator_svc.sessions import Session, Start, Work
from generator_svc.slots import INITIAL_SLOTS
from generator_svc.turns import PATIENCE
from ragserve.errors import (
    DeadlineExceededError,
    FailedPreconditionError,
    InvalidInputError,
    ResourceExhaustedError,
)
from tests.generator_svc.toy import open_ready, run, session


def test_every_ready_session_is_in_one_step() -> None:
    scheduler = Scheduler(Capacity())
    sessions = [session(5, 6), session(3), session(4, 4, 4, shared=False, starts=3)]
    for one in sessions:
        open_ready(scheduler, one)
    for one in sessions:
        scheduler.advance(one, [(0, 7)], 0.0)
    assert scheduler.plan(0.0).step == tuple(sessions)


def test_prefill_keeps_to_its_budget_and_order_while_others_decode() -> None:
    scheduler = Scheduler(Capacity(prefill_tokens=100))
    decoding, first, second = session(10), session(60, 60, 60), session(30)
    open_ready(scheduler, decoding)
    scheduler.admit(first, 0.0)
    scheduler.admit(second, 0.0)
    seen = []
    for _ in range(4):
        scheduler.advance(decoding, [(0, 1)], 0.0)
        plan = scheduler.plan(0.0)
        assert decoding in plan.step
        seen.append([(one, len(plan.encode)) for one in plan.prefill])
        run(scheduler, plan, 0.0)
    assert seen == [[(second, 2), (first, 2)], [(first, 1)], [(first, 1)], []]


def test_a_document_over_the_budget_is_encoded_alone() -> None:
    scheduler = Scheduler(Capacity(prefill_tokens=100))
    decoding, one = session(10), session(500, 10)
    open_ready(scheduler, decoding)
    scheduler.admit(one, 0.0)
    assert scheduler.plan(0.0).encode == tuple(one.documents[:1])


def test_whoever_has_little_to_encode_goes_first_but_not_for_ever() -> None:
    scheduler = Scheduler(Capacity(prefill_tokens=100))
    decoding, long = session(10), session(100, 100, 100)
    open_ready(scheduler, decoding)
    scheduler.admit(long, 0.0)
    waited = 0.0
    while not any(one.encoded for one in long.documents):
        scheduler.admit(session(100), waited)
        run(scheduler, scheduler.plan(waited), waited)
        waited += 0.1
        assert waited < 300 / PATIENCE
    assert waited > 200 / PATIENCE


def test_sessions_take_turns_where_a_pass_has_few_rows() -> None:
    scheduler = Scheduler(Capacity(step_rows=4))
    long = [session(5, 5) for _ in range(4)]
    for one in long:
        open_ready(scheduler, one)
    turns = []
    for number in range(24):
        if number == 8:
            short = session(5)
            open_ready(scheduler, short)
        for one in (*long, *([short] if number >= 8 else [])):
            if one.work is Work.NOTHING:
                scheduler.advance(one, [(0, 7)], 0.0)
        plan = scheduler.plan(0.0)
        turns.append(plan.step)
        run(scheduler, plan, 0.0)
    before, after = turns[:8], turns[8:]
    assert [sum(one in step for step in before) for one in long] == [4] * 4
    counts = [sum(one in step for step in after) for one in long]
    assert max(counts) - min(counts) <= 1
    assert sum(short in step for step in after) >= 1.5 * max(counts)  # it has half their rows


def test_score_requests_take_turns() -> None:
    scheduler = Scheduler(Capacity())
    first, second = session(5), session(5)
    for one in (first, second):
        open_ready(scheduler, one)
    for one in (first, second):
        scheduler.request(one, Work.SCORE, 0.0)
    turns = [scheduler.plan(0.0).score for _ in range(4)]
    assert turns == [first, second, first, second]
    scheduler.finished(first, 0.0)
    assert [scheduler.plan(0.0).score for _ in range(2)] == [second, second]


@pytest.mark.parametrize(
    ("capacity", "names"),
    [
        (Capacity(max_sessions=1), "max_sessions"),
        (Capacity(max_rows=3), "max_rows"),
        (Capacity(cache_bytes=1500, document_token_bytes=50, slot_bytes=50), "cache_bytes"),
    ],
)
def test_what_does_not_fit_is_refused_and_takes_nothing(capacity: Capacity, names: str) -> None:
    scheduler = Scheduler(capacity)
    first = session(8, 8)
    open_ready(scheduler, first)
    before = scheduler.used_bytes
    with pytest.raises(ResourceExhaustedError, match=names) as caught:
        scheduler.admit(session(8, 8), 0.0)
    assert caught.value.retry_after_seconds
    assert (scheduler.n_sessions, scheduler.used_bytes) == (1, before)


def test_a_step_that_does_not_fit_leaves_the_session_as_it_was() -> None:
    scheduler = Scheduler(Capacity(max_rows=4))
    one, other = session(8, 8), session(8)
    open_ready(scheduler, one)
    open_ready(scheduler, other)
    with pytest.raises(ResourceExhaustedError, match="max_rows"):
        scheduler.advance(one, [(0, 1), (0, 2)], 0.0)
    scheduler.close(other)
    scheduler.plan(0.0)
    scheduler.advance(one, [(0, 1), (0, 2)], 0.0)
    assert one.n_rows == 4


def announced(*context_tokens: int, hypotheses: int, tokens: int = 0, shared: bool = True) -> Session:
    one = session(*context_tokens, shared=shared, starts=1 if shared else len(context_tokens))
    one.most_hypotheses, one.most_tokens = hypotheses, tokens
    return one


def test_rows_and_slots_that_a_session_announces_are_its_own() -> None:
    scheduler = Scheduler(Capacity(max_rows=10, cache_bytes=200))
    one, other, small = announced(8, 8, hypotheses=3, tokens=5), announced(8, hypotheses=5), session(8)
    open_ready(scheduler, one)
    with pytest.raises(ResourceExhaustedError, match="others have 6 rows, this session asks for 5, max_rows is 10"):
        scheduler.admit(other, 0.0)
    open_ready(scheduler, small, 10.0)
    open_ready(scheduler, session(200 - (16 + 2 * 3 * 5) - 9 - 3), 10.0)  # two bytes are left
    for step in range(4):  # of five tokens one is there
        with pytest.raises(ResourceExhaustedError, match="cache_bytes"):
            scheduler.advance(small, [(0, 1)] * 3, 0.0)
        scheduler.advance(one, [(parent if step else 0, 1) for parent in range(3)], 0.0)
        run(scheduler, scheduler.plan(0.0), 0.0)
    assert (one.n_rows, one.n_slots) == (6, 2 * (1 + 3 * 4))
    with pytest.raises(ResourceExhaustedError, match="max_rows"):
        scheduler.advance(one, [(0, 1)] * 5, 0.0)


@pytest.mark.parametrize(
    ("shared", "independent", "slots"),
    [(True, False, 2 * (3 * 16 + 24)), (False, False, 3 * 16 + 2 * 24), (True, True, 2 * 3 * 40)],
)
def test_what_hypotheses_have_in_common_is_counted_once(shared: bool, independent: bool, slots: int) -> None:
    scheduler = Scheduler(Capacity())
    one = announced(8, 8, hypotheses=3, tokens=40, shared=shared)
    one.independent = independent
    scheduler.admit(one, 0.0)
    assert one.kept_slots == slots


def test_what_is_announced_and_never_fits() -> None:
    scheduler = Scheduler(Capacity(max_rows=10, cache_bytes=50))
    with pytest.raises(InvalidInputError, match="12 rows") as caught:
        scheduler.admit(announced(8, 8, hypotheses=6), 0.0)
    assert caught.value.field == "open.max_hypotheses"
    one = announced(8, 8, hypotheses=2, tokens=1000)  # an answer may end long before
    scheduler.admit(one, 0.0)
    assert one.kept_slots == (50 - 16) // 4


def test_a_search_that_moves_needs_no_more_than_it_had() -> None:
    """Four beams with a hundred common tokens over three documents, opened again with their prefixes."""
    stem = tuple(range(3, 103))
    starts = tuple(Start((2, *stem, token)) for token in range(4))
    moved = Session(tuple((document,) for document in range(3)), True, starts, most_hypotheses=4, most_tokens=110)
    scheduler = Scheduler(Capacity(cache_bytes=3 + 3 * (101 + 4)))
    scheduler.admit(moved, 0.0)
    assert moved.n_slots == moved.first_slots == 3 * (101 + 4)


def test_guesses_leave_the_next_step_its_own_room() -> None:
    scheduler = Scheduler(Capacity(cache_bytes=200))
    one = announced(2, hypotheses=1, tokens=12)
    open_ready(scheduler, one)
    open_ready(scheduler, session(200 - 2 - 12 - 1))
    for _ in range(5):
        scheduler.advance(one, [(0, 1)], 0.0)
        run(scheduler, scheduler.plan(0.0), 0.0)
    assert scheduler.advance(one, [(0, 1)], 0.0, [5, 6, 7, 8, 9]) == 0  # then only 12 of 12 would be left
    run(scheduler, scheduler.plan(0.0), 0.0)
    assert scheduler.advance(one, [(0, 1)], 0.0, [5, 6, 7]) == 3
    run(scheduler, scheduler.plan(0.0), 0.0)
    scheduler.advance(one, [(0, 1)], 0.0)


def test_a_large_session_is_not_kept_out_by_small_ones() -> None:
    scheduler = Scheduler(Capacity(max_rows=10, document_token_bytes=0))
    small = [session(1, 1) for _ in range(4)]
    for one in small:
        open_ready(scheduler, one)
    with pytest.raises(ResourceExhaustedError, match="max_rows"):
        scheduler.admit(session(*(1,) * 8), 0.0)
    with pytest.raises(ResourceExhaustedError, match="a larger session waits"):
        scheduler.admit(session(1, 1), 0.5)
    for one in small[:3]:
        scheduler.close(one)
    scheduler.plan(0.6)
    with pytest.raises(ResourceExhaustedError, match="a larger session waits"):
        scheduler.admit(session(1, 1), 0.7)
    large = session(*(1,) * 8)
    open_ready(scheduler, large, 1.0)
    scheduler.close(large)
    scheduler.plan(1.1)
    open_ready(scheduler, session(1, 1), 1.2)  # what was kept was for that one only


def test_room_is_not_kept_for_a_session_that_does_not_come_back() -> None:
    scheduler = Scheduler(Capacity(max_rows=10, document_token_bytes=0))
    open_ready(scheduler, session(1, 1, 1))
    with pytest.raises(ResourceExhaustedError, match="max_rows"):
        scheduler.admit(session(*(1,) * 8), 0.0)
    with pytest.raises(ResourceExhaustedError, match="max_rows"):
        scheduler.admit(session(*(1,) * 8), 1.0)  # which makes it no longer
    with pytest.raises(ResourceExhaustedError, match="a larger session waits"):
        scheduler.admit(session(1, 1), 1.9)
    open_ready(scheduler, session(1, 1), 2.0)


def test_only_what_the_larger_session_lacks_is_kept() -> None:
    scheduler = Scheduler(Capacity(max_rows=4, cache_bytes=100))
    open_ready(scheduler, session(1, 1, 1))
    with pytest.raises(ResourceExhaustedError, match="max_rows"):
        scheduler.admit(session(30, 30), 0.0)
    scheduler.admit(session(50, starts=0), 0.0)  # encode only: no rows
    with pytest.raises(ResourceExhaustedError, match="a larger session waits"):
        scheduler.admit(session(1), 0.0)


@pytest.mark.parametrize(
    ("capacity", "prefix", "field", "names"),
    [
        (Capacity(max_rows=1), 1, "open.documents", "max_rows"),
        (Capacity(cache_bytes=15), 1, "open.documents", "cache_bytes"),
        (Capacity(cache_bytes=15), 20, "open.documents", "cache_bytes"),
        (Capacity(cache_bytes=17), 1, "open.documents", "cache_bytes"),
        (Capacity(cache_bytes=55), 20, "open.prefixes", "cache_bytes"),
    ],
)
def test_an_open_that_never_fits_is_a_wrong_request(capacity: Capacity, prefix: int, field: str, names: str) -> None:
    scheduler = Scheduler(capacity)
    with pytest.raises(InvalidInputError, match=names) as caught:
        scheduler.admit(Session(((1,) * 8,) * 2, True, (Start((2,) * prefix),)), 0.0)
    assert caught.value.field == field
    assert (scheduler.n_sessions, scheduler.used_bytes) == (0, 0)


@pytest.mark.parametrize(
    ("capacity", "names"), [(Capacity(max_rows=5), "max_rows"), (Capacity(cache_bytes=25), "cache_bytes")]
)
def test_a_step_that_never_fits_is_a_wrong_request(capacity: Capacity, names: str) -> None:
    scheduler = Scheduler(capacity)
    one = session(8, 8)
    open_ready(scheduler, one)
    scheduler.advance(one, [(0, 1), (0, 2)], 0.0)
    run(scheduler, scheduler.plan(0.0), 0.0)
    with pytest.raises(InvalidInputError, match=names) as caught:
        scheduler.advance(one, [(0, 1), (0, 2), (1, 3)], 0.0)
    assert (caught.value.field, one.n_rows) == ("advance.hypotheses", 4)


def test_late_idle_and_closed_sessions_are_freed_at_the_next_plan() -> None:
    scheduler = Scheduler(Capacity(idle_seconds=10))
    late, idle, closed, busy = session(1, deadline=5.0), session(1), session(1), session(1)
    for one in (late, idle, closed, busy):
        open_ready(scheduler, one)
    assert scheduler.next_event() == 5.0
    scheduler.close(closed)
    scheduler.advance(busy, [(0, 1)], 9.0)
    ended = {one: error for now in (6.0, 11.0) for one, error in scheduler.plan(now).ended}
    assert set(ended) == {late, idle, closed}
    assert ended[closed] is None
    assert isinstance(ended[late], DeadlineExceededError)
    assert "idle_seconds" in str(ended[idle])
    with pytest.raises(FailedPreconditionError, match="ended"):
        scheduler.advance(idle, [(0, 1)], 12.0)
    assert scheduler.n_sessions == 1


def test_sessions_beyond_the_cache_are_evicted_and_their_slots_forgotten() -> None:
    scheduler = Scheduler(Capacity())
    old, new, next_to_come = (session(*(1,) * 400) for _ in range(3))
    open_ready(scheduler, old)
    open_ready(scheduler, new)
    scheduler.advance(new, [(0, 1)], 0.0)
    assert scheduler.plan(0.0).n_slots == 2 * INITIAL_SLOTS
    assert scheduler.evict(INITIAL_SLOTS) == (new,)
    plan = scheduler.plan(0.0)
    assert (plan.n_slots, plan.ended, scheduler.slots.used) == (INITIAL_SLOTS, ((new, None),), 400)
    open_ready(scheduler, next_to_come)
    assert scheduler.plan(0.0).n_slots == INITIAL_SLOTS


def test_one_request_at_a_time() -> None:
    scheduler = Scheduler(Capacity())
    one = session(5)
    open_ready(scheduler, one)
    scheduler.advance(one, [(0, 1)], 0.0)
    with pytest.raises(FailedPreconditionError, match="previous request"):
        scheduler.advance(one, [(0, 1)], 0.0)


def test_nothing_leaks_over_random_lives() -> None:
    rng = random.Random(5)
    scheduler = Scheduler(Capacity(max_sessions=6, max_rows=60, cache_bytes=4000, prefill_tokens=20, idle_seconds=40))
    alive: list[Session] = []
    refused = 0
    for turn in range(1500):
        now = float(turn)
        try:
            if rng.random() < 0.3:
                shared = rng.random() < 0.5
                lengths = [rng.randint(1, 30) for _ in range(rng.randint(1, 4))]
                one = session(*lengths, shared=shared, starts=rng.randint(0, 3), deadline=now + rng.randint(1, 60))
                scheduler.admit(one, now)
                alive.append(one)
            for one in alive:
                if one.work is Work.NOTHING and not one.closed and one.hypotheses and rng.random() < 0.6:
                    n = rng.randint(1, 4)
                    scheduler.advance(one, [(rng.randrange(len(one.hypotheses)), 1) for _ in range(n)], now)
        except ResourceExhaustedError:
            refused += 1
        if alive and rng.random() < 0.1:
            scheduler.close(rng.choice(alive))
        plan = scheduler.plan(now)
        assert not plan.ended or all(one.closed for one, _ in plan.ended)
        run(scheduler, plan, now)
        alive = [one for one in alive if not one.closed]
        held = {(int(slot)) for one in alive for h in one.hypotheses for slot in h.slots.reshape(-1)}
        assert scheduler.slots.used == len(held)
        last = [int(slot) for one in alive for h in one.hypotheses for slot in h.slots[:, -1]]
        assert len(last) == len(set(last))
    for one in alive:
        scheduler.close(one)
    scheduler.plan(1e9)
    assert refused > 10
    assert (scheduler.n_sessions, scheduler.used_bytes) == (0, 0)
