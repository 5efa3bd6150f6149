from __future__ import annotations

import random
from collections.abc import Sequence

from generator_svc.documents import DocumentEntry, DocumentPool

TOKEN_BYTES = 10
A, B, C, D = ((n,) * 10 for n in range(4))  # 100 bytes each


def hold(pool: DocumentPool, *contexts: tuple[int, ...], encoded: bool = True) -> list[DocumentEntry]:
    entries = [pool.hold(context)[0] for context in contexts]
    for entry in entries:
        entry.encoded = entry.encoded or encoded
    return entries


def found(pool: DocumentPool, context: tuple[int, ...]) -> bool:
    """Whether it is there; it stays as recently used as it was only when it is not."""
    entry, there = pool.hold(context)
    pool.release([entry])
    return there


def ids(entries: Sequence[DocumentEntry]) -> list[tuple[int, ...]]:
    return [entry.token_ids for entry in entries]


def test_the_least_recently_used_goes_first() -> None:
    pool = DocumentPool(300, TOKEN_BYTES)
    for context in (A, B, C):
        assert pool.release(hold(pool, context)) == []
    assert pool.release(hold(pool, A)) == []  # used again
    assert pool.kept_bytes == 300
    assert ids(pool.release(hold(pool, D))) == [B]
    assert pool.kept_bytes == 300
    assert [found(pool, context) for context in (A, C, D)] == [True, True, True]
    assert not found(pool, B)


def test_a_document_that_is_held_takes_no_room_and_is_not_dropped() -> None:
    pool = DocumentPool(100, TOKEN_BYTES)
    (first,) = hold(pool, A)
    (again,) = hold(pool, A)
    assert first is again
    assert pool.release([first]) == []
    assert pool.kept_bytes == 0
    assert pool.release(hold(pool, B)) == []
    assert ids(pool.release([again])) == [B]
    assert pool.kept_bytes == 100


def test_what_does_not_fit_drives_nothing_out() -> None:
    pool = DocumentPool(150, TOKEN_BYTES)
    pool.release(hold(pool, A))
    long = (9,) * 16
    assert ids(pool.release(hold(pool, long))) == [long]
    assert found(pool, A)
    assert not found(pool, long)


def test_what_was_not_encoded_is_shared_but_not_kept() -> None:
    pool = DocumentPool(300, TOKEN_BYTES)
    (first,) = hold(pool, A, encoded=False)
    (second,) = hold(pool, A, encoded=False)
    assert first is second
    assert pool.release([first]) == []
    assert pool.release([second]) == [second]
    assert not found(pool, A)


def test_what_is_distrusted_serves_those_that_hold_it_only() -> None:
    pool = DocumentPool(300, TOKEN_BYTES)
    old = hold(pool, A)
    pool.distrust(old)
    (new,) = hold(pool, A)
    assert new is not old[0]
    assert pool.release(old) == old
    assert pool.release([new]) == []
    assert pool.hold(A) == (new, True)


def test_without_room_nothing_is_shared() -> None:
    pool = DocumentPool(0, TOKEN_BYTES)
    first, second = hold(pool, A, A)
    assert first is not second
    assert pool.release([first, second]) == [first, second]
    assert not found(pool, A)


def test_nearly_the_same_context_is_another_document() -> None:
    pool = DocumentPool(10_000, TOKEN_BYTES)
    pool.release(hold(pool, (1, 2, 3)))
    assert not any(found(pool, other) for other in ((1, 2), (1, 2, 3, 4), (1, 3, 2), (2, 2, 3)))
    assert found(pool, (1, 2, 3))


def test_the_budget_holds_over_random_lives() -> None:
    rng = random.Random(3)
    contexts = [(n,) * rng.randint(1, 20) for n in range(12)]
    pool = DocumentPool(500, TOKEN_BYTES)
    held: list[DocumentEntry] = []
    alive: set[DocumentEntry] = set()
    for _ in range(3000):
        if held and rng.random() < 0.5:
            alive -= set(pool.release([held.pop(rng.randrange(len(held)))]))
        else:
            held += hold(pool, rng.choice(contexts), encoded=rng.random() < 0.8)
            alive.add(held[-1])
        kept = alive - set(held)
        assert pool.kept_bytes == sum(entry.n_tokens for entry in kept) * TOKEN_BYTES <= 500
        assert len({entry.token_ids for entry in alive}) == len(alive)
