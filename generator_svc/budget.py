"""What all sessions together may take, and whether one more fits, or more of one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

from generator_svc.sessions import Session
from generator_svc.slots import SlotPool
from generator_svc.turns import YOUNG_STEPS
from ragserve.errors import InvalidInputError, RagserveError, ResourceExhaustedError
from ragserve.printable import counted

RETRY_AFTER_SECONDS = 1.0
# How long room is kept for the largest session that found none: until its client has tried again.
CLAIM_SECONDS = 2 * RETRY_AFTER_SECONDS
# Hypotheses of one search seldom differ in older tokens: the slots of these are counted once.
APART_TOKENS = 16
# Of what documents leave of the cache, the part that one session may have kept for it: answers are mostly much shorter
# than what their clients allow.
MOST_KEPT = 4


@dataclass(frozen=True)
class Capacity:
    """What all sessions together may take, and how much one pass may hold."""

    max_sessions: int = 64
    max_rows: int = 2048
    cache_bytes: int = 4 * 2**30  # a document that several sessions share counts for each of them
    encoder_cache_bytes: int = 0  # of documents that no session holds
    document_token_bytes: int = 1  # cross-attention keys and values of one context token
    slot_bytes: int = 1  # self-attention keys and values of one decoder token of one row
    step_rows: int = 2048  # of one step pass
    prefill_tokens: int = 1024  # encoded between two step passes, or fed of prefixes, or of targets to be scored
    young_steps: int = YOUNG_STEPS  # that a session may have had and still share passes with the young alone
    idle_seconds: float = 60.0


@dataclass(frozen=True)
class Claim:
    """Room for a session that found none, kept from smaller ones until a moment (monotonic seconds)."""

    rows: int
    size: int  # bytes
    by_rows: bool  # rows were what it found too few of, else bytes
    until: float

    def outranks(self, rows: int, size: int) -> bool:
        """Whether a session that wants so much is smaller."""
        return rows <= self.rows and size <= self.size and not self.same(rows, size)

    def same(self, rows: int, size: int) -> bool:
        """Whether a session that wants so much may be the one."""
        return (rows, size) == (self.rows, self.size)


class _Lacking(NamedTuple):
    """What there is too little of."""

    by_rows: bool
    why: str


class Budget:
    """Rows and bytes of the sessions that it is shown.

    Reserves the declared rows and cache when a session opens; refuses the open if they do not fit. So a session does
    not find the generator full in the middle of an answer.
    """

    def __init__(self, capacity: Capacity, sessions: Mapping[Session, None], slots: SlotPool) -> None:
        self.capacity = capacity
        self._sessions = sessions
        self._slots = slots
        self._document_bytes = 0
        self.claim: Claim | None = None

    @property
    def used_bytes(self) -> int:
        """Bytes of documents and of slots in use."""
        return self._document_bytes + self._slots.used * self.capacity.slot_bytes

    def admit(self, session: Session, now: float) -> None:
        """Give a new session its room.

        Raises:
            InvalidInputError: it would not fit if it were alone.
            ResourceExhaustedError: a limit is reached, or what is left is kept for a larger session.
        """
        if len(self._sessions) >= self.capacity.max_sessions:
            raise _full(f"max_sessions ({self.capacity.max_sessions}) decode sessions are open")
        documents = session.context_tokens * self.capacity.document_token_bytes
        rows = self._check_alone(session, documents)
        free = max(0, self.capacity.cache_bytes - documents) // max(1, self.capacity.slot_bytes)
        slots = min(_expected_slots(session), free // MOST_KEPT)
        size = documents + max(session.first_slots, slots) * self.capacity.slot_bytes
        claim = self.claim if self.claim is not None and now < self.claim.until else None
        lacking = self._lacking(rows, size, None)
        if lacking is not None:
            if claim is None or not (claim.outranks(rows, size) or claim.same(rows, size)):
                self.claim = Claim(rows, size, lacking.by_rows, now + CLAIM_SECONDS)
            raise _full(lacking.why)
        if claim is not None and claim.outranks(rows, size):
            more = (rows + claim.rows, 0) if claim.by_rows else (0, size + claim.size)
            takes_of_it = rows > 0 or not claim.by_rows
            if takes_of_it and self._lacking(*more, None) is not None:
                raise _full("a larger session waits for the room that is left")
        elif claim is not None and claim.same(rows, size):
            self.claim = None
        session.kept_rows, session.kept_slots = rows, slots
        self._document_bytes += documents

    def leave(self, session: Session) -> None:
        """A session that was admitted is over."""
        self._document_bytes -= session.context_tokens * self.capacity.document_token_bytes

    def check_step(self, session: Session, rows: int) -> None:
        """Whether a session may have so many rows, each with a slot more. Raises as `admit`, for advance.hypotheses."""
        if rows <= session.kept_rows and session.n_slots + rows <= session.kept_slots:
            return
        own, slot_bytes = self._size(session), self.capacity.slot_bytes
        if rows > self.capacity.max_rows:
            raise _too_many_rows("advance.hypotheses", rows, self.capacity.max_rows)
        needed = own - max(0, session.kept_slots - session.n_slots) * slot_bytes + rows * slot_bytes
        if needed > self.capacity.cache_bytes:
            raise _too_large("advance.hypotheses", needed, self.capacity.cache_bytes)
        lacking = self._lacking(max(rows, session.kept_rows), max(needed, own), session)
        if lacking is not None:
            raise _full(lacking.why)

    def fits_guesses(self, session: Session, rows: int, count: int) -> bool:
        """Whether so many guesses find room beside a step, and leave the session its own for the step after it.

        Those that turn out wrong are there until that step has its slots.
        """
        if session.kept_slots and session.n_slots + rows * (2 + count) > session.kept_slots:
            return False
        try:
            self.check_step(session, rows * (1 + count))
        except RagserveError:
            return False
        return True

    def _check_alone(self, session: Session, documents: int) -> int:
        """The rows that a new session will have. Raises InvalidInputError."""
        begun, most = len(session.starts) * session.docs_of_each, self.capacity
        rows = max(len(session.starts), session.most_hypotheses) * session.docs_of_each
        size = documents + session.first_slots * most.slot_bytes
        if rows > most.max_rows:
            raise _too_many_rows("open.documents" if rows == begun else "open.max_hypotheses", rows, most.max_rows)
        if size > most.cache_bytes:
            prefixes = session.first_slots > begun and documents <= most.cache_bytes
            raise _too_large("open.prefixes" if prefixes else "open.documents", size, most.cache_bytes)
        return rows

    def _lacking(self, rows: int, size: int, session: Session | None) -> _Lacking | None:
        """What the others do not leave for a session of so many rows and bytes."""
        others = [one for one in self._sessions if one is not session]
        used_rows, most = sum(max(one.n_rows, one.kept_rows) for one in others), self.capacity.max_rows
        if used_rows + rows > most:
            return _Lacking(
                True, f"others have {counted(used_rows, 'row')}, this session asks for {rows}, max_rows is {most}"
            )
        used, most = sum(map(self._size, others)), self.capacity.cache_bytes
        if used + size > most:
            return _Lacking(
                False, f"others have {used} bytes of cache, this session asks for {size}, cache_bytes is {most}"
            )
        return None

    def _size(self, session: Session) -> int:
        """Of a session: max(used, reserved), in bytes."""
        documents = session.context_tokens * self.capacity.document_token_bytes
        return documents + max(session.n_slots, session.kept_slots) * self.capacity.slot_bytes


def _expected_slots(session: Session) -> int:
    """Slots of as many and as long hypotheses as a session has said it will have; 0 where it has not."""
    if not session.most_tokens:
        return 0
    hypotheses = max(len(session.starts), session.most_hypotheses)
    longest = max((len(start.tokens) for start in session.starts), default=0)
    tokens = max(longest, session.most_tokens)
    apart = tokens if session.independent else min(tokens, APART_TOKENS)
    stems = 1 if session.shared else len(session.contexts)
    return (hypotheses * apart + min(stems, hypotheses) * (tokens - apart)) * session.docs_of_each


def _too_many_rows(field: str, rows: int, most: int) -> InvalidInputError:
    return InvalidInputError(
        field, f"{rows} rows (hypotheses times their documents) are over the limit of {most} (max_rows)"
    )


def _too_large(field: str, size: int, most: int) -> InvalidInputError:
    return InvalidInputError(field, f"{size} bytes of keys and values are over the limit of {most} (cache_bytes)")


def _full(message: str) -> ResourceExhaustedError:
    return ResourceExhaustedError(message, retry_after_seconds=RETRY_AFTER_SECONDS)
