"""Which documents the scheduler encodes, for whom and when. The toy model takes no time."""

from __future__ import annotations

import random

import pytest

from generator_svc.budget import Capacity
from generator_svc.scheduler import Scheduler
from generator_svc.sessions import Session, Start, Work
from ragserve.errors import ResourceExhaustedError
from tests.generator_svc.toy import open_ready, run, session

SHARING = Capacity(prefill_tokens=100, encoder_cache_bytes=200)
A, B, C, D = ((n,) * 60 for n in range(4))


def asking(*contexts: tuple[int, ...], starts: tuple[Start, ...] = (Start((2,)),)) -> Session:
    return Session(contexts, True, starts)


def test_sessions_that_arrive_together_are_encoded_together() -> None:
    scheduler = Scheduler(Capacity(prefill_tokens=100))
    arriving = [session(10, 10), session(30), session(25, 25)]
    for one in arriving:
        scheduler.admit(one, 0.0)
    plan = scheduler.plan(0.0)
    assert plan.prefill == tuple(arriving)
    assert plan.encode == tuple(document for one in arriving for document in one.documents)


def test_a_document_asked_for_twice_is_encoded_once_and_leaves_room_for_others() -> None:
    scheduler = Scheduler(SHARING)
    first, same, other = asking(A), asking(A), session(40)
    assert [scheduler.admit(one, 0.0) for one in (first, same, other)] == [0, 1, 0]
    plan = scheduler.plan(0.0)
    assert plan.encode == (*other.documents, *first.documents)
    assert plan.prefill == (other, first, same)
    run(scheduler, plan, 0.0)
    assert scheduler.plan(0.0).step == (first, same, other)


def test_a_session_whose_documents_are_there_steps_at_once_before_those_in_line() -> None:
    scheduler = Scheduler(SHARING)
    open_ready(scheduler, asking(A, B))
    waiting, same = session(90, 90), asking(A, B)
    scheduler.admit(waiting, 0.0)
    assert scheduler.admit(same, 0.0) == 2
    plan = scheduler.plan(0.0)
    assert (plan.start, plan.step, plan.prefill) == ((same,), (same,), (waiting,))


def test_only_what_is_missing_is_encoded_and_the_session_waits_for_it() -> None:
    scheduler = Scheduler(SHARING)
    open_ready(scheduler, asking(A))
    more = asking(B, A, C)
    assert scheduler.admit(more, 0.0) == 1
    encoded = []
    while more.work is Work.ENCODE:
        plan = scheduler.plan(0.0)
        encoded += [document.token_ids for document in plan.encode]
        run(scheduler, plan, 0.0)
    assert encoded == [B, C]


def test_documents_outlive_their_session_within_their_budget() -> None:
    scheduler = Scheduler(Capacity(encoder_cache_bytes=120))
    first = asking(A, B)
    open_ready(scheduler, first)
    scheduler.close(first)
    assert scheduler.plan(0.0).forget == ()
    assert (scheduler.used_bytes, scheduler.documents.kept_bytes) == (0, 120)
    second = asking(C)
    open_ready(scheduler, second)
    assert scheduler.documents.kept_bytes == 120
    scheduler.close(second)
    forgotten = scheduler.plan(0.0).forget
    assert [document.token_ids for document in forgotten] == [A]
    assert scheduler.admit(asking(C, B), 0.0) == 2
    assert scheduler.admit(asking(A), 0.0) == 0


def test_what_is_kept_takes_nothing_from_sessions_and_sharing_none_of_it() -> None:
    scheduler = Scheduler(Capacity(cache_bytes=130, encoder_cache_bytes=1000))
    first = asking(A, B)
    open_ready(scheduler, first)
    with pytest.raises(ResourceExhaustedError, match="cache_bytes"):
        scheduler.admit(asking(A), 0.0)
    scheduler.close(first)
    scheduler.plan(0.0)
    assert scheduler.documents.kept_bytes == 120
    assert scheduler.admit(asking(C, D), 0.0) == 0
    assert scheduler.used_bytes == 122


def test_a_session_that_leaves_while_encoding_takes_no_document_from_another() -> None:
    scheduler = Scheduler(SHARING)
    decoding, first, same = session(1), asking(A, B), asking(B)
    open_ready(scheduler, decoding)
    scheduler.admit(first, 0.0)
    scheduler.admit(same, 1.0)
    plan = scheduler.plan(1.0)
    assert [document.token_ids for document in plan.encode] == [A]
    scheduler.close(first)  # amid the pass
    run(scheduler, plan, 0.0)
    plan = scheduler.plan(0.0)
    assert (plan.ended, plan.forget) == (((first, None),), ())
    assert [document.token_ids for document in plan.encode] == [B]
    run(scheduler, plan, 0.0)
    assert scheduler.plan(0.0).step == (same,)
    assert scheduler.admit(asking(A), 0.0) == 1


def test_a_session_that_leaves_before_it_is_encoded_leaves_nothing() -> None:
    scheduler = Scheduler(SHARING)
    first = asking(A)
    scheduler.admit(first, 0.0)
    scheduler.close(first)
    assert [document.token_ids for document in scheduler.plan(0.0).forget] == [A]
    assert scheduler.admit(asking(A), 0.0) == 0


def test_documents_of_a_pass_that_failed_are_encoded_again() -> None:
    scheduler = Scheduler(SHARING)
    failed, holding = asking(A), asking(A, B)
    open_ready(scheduler, failed)
    open_ready(scheduler, holding)
    scheduler.fail(failed)
    assert scheduler.plan(0.0).forget == ()  # the other still reads it
    assert scheduler.admit(asking(A, B), 0.0) == 1


def test_prefixes_are_fed_before_the_first_step() -> None:
    scheduler = Scheduler(SHARING)
    open_ready(scheduler, asking(A))
    moved, scored = asking(A, starts=(Start((2, 5, 6)),)), asking(A, starts=())
    scheduler.admit(moved, 0.0)
    scheduler.admit(scored, 0.0)
    plan = scheduler.plan(0.0)
    assert (plan.start, plan.step, plan.encode) == ((moved, scored), (), ())
    assert moved.prefix_trees
    scheduler.started(scored)
    scheduler.finished(scored, 0.0)
    plan = scheduler.plan(0.0)  # as long as some are left
    assert (plan.start, plan.step, moved.steps_run) == ((moved,), (), 0)
    moved.prefix_trees.clear()
    scheduler.started(moved)
    plan = scheduler.plan(0.0)
    assert (plan.start, plan.step) == ((), (moved,))


def test_decoding_is_not_held_up_by_a_stream_of_arrivals() -> None:
    rng = random.Random(7)
    scheduler = Scheduler(Capacity(max_sessions=1000, max_rows=10_000, prefill_tokens=100))
    decoding = session(10, 10)
    open_ready(scheduler, decoding)
    n_joined = 0
    for _ in range(300):
        for _ in range(rng.randrange(3)):
            scheduler.admit(session(*(rng.randint(1, 150) for _ in range(rng.randint(1, 5)))), 0.0)
        scheduler.advance(decoding, [(0, 1)], 0.0)
        plan = scheduler.plan(0.0)
        assert decoding in plan.step
        lengths = [document.n_tokens for document in plan.encode]
        assert sum(lengths) <= 100 or len(lengths) == 1
        n_joined += len(plan.prefill) > 1
        run(scheduler, plan, 0.0)
        assert decoding.work is Work.NOTHING
    assert n_joined > 20
    assert any(one.work is Work.ENCODE for one in scheduler.sessions()), "the stream never was more than it could take"
