"""Decides what the next pass runs: schedule, run, post-process, over all sessions. Pure Python, no torch.

Sessions with a step to take are all in the next step pass, or take turns where a pass has too few rows for them. New
sessions' documents are encoded within a token budget, and targets are scored chunk by chunk, so that neither holds up
those that decode. A document that is there already, or that another session waits for, is not encoded again where
sessions share them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from generator_svc.budget import Budget, Capacity
from generator_svc.documents import DocumentEntry, DocumentPool
from generator_svc.sessions import Hypothesis, PrefixTree, Session, Start, Work
from generator_svc.slots import PathNode, SlotArray, SlotPool
from generator_svc.trie import Trie
from generator_svc.turns import StepTurns, documents_to_encode
from ragserve.errors import (
    DeadlineExceededError,
    FailedPreconditionError,
    RagserveError,
)


@dataclass(frozen=True)
class Plan:
    """What one turn of the loop does."""

    ended: tuple[tuple[Session, RagserveError | None], ...] = ()
    forget: tuple[DocumentEntry, ...] = ()  # their states are of no use any more
    start: tuple[Session, ...] = ()  # all documents are there: some of its prefixes are fed, or it is in `step` already
    encode: tuple[DocumentEntry, ...] = ()
    prefill: tuple[Session, ...] = ()  # whom `encode` is for
    step: tuple[Session, ...] = ()
    widen: tuple[Session, ...] = ()
    score: Session | None = None
    n_slots: int = 0  # slots that the cache must have

    @property
    def empty(self) -> bool:
        """Nothing to do."""
        return not (self.ended or self.start or self.encode or self.step or self.widen or self.score)


class Scheduler:
    """Sessions, their rows and their memory."""

    def __init__(self, capacity: Capacity) -> None:
        self.capacity = capacity
        self._sessions: dict[Session, None] = {}  # in order of arrival
        self._scoring: list[Session] = []
        self.slots = SlotPool()
        self.budget = Budget(capacity, self._sessions, self.slots)
        self._turns = StepTurns(capacity.step_rows, capacity.young_steps)
        self.documents = DocumentPool(capacity.encoder_cache_bytes, capacity.document_token_bytes)

    @property
    def n_sessions(self) -> int:
        """Sessions not yet freed."""
        return len(self._sessions)

    @property
    def n_rows(self) -> int:
        """Rows of one step of all sessions."""
        return sum(session.n_rows for session in self._sessions)

    @property
    def used_bytes(self) -> int:
        """Bytes of cache in use."""
        return self.budget.used_bytes

    @property
    def asked(self) -> bool:
        """Whether a session waits for work, or for its end."""
        return any(session.closed or session.work is not Work.NOTHING for session in self._sessions)

    def sessions(self) -> tuple[Session, ...]:
        """Sessions not yet freed."""
        return tuple(self._sessions)

    def admit(self, session: Session, now: float) -> int:
        """Take a new session, with room for its documents, its first step and what it has said it will have.

        Returns:
            How many of its documents need not be encoded for it.

        Raises:
            InvalidInputError: it would not fit if it were alone.
            ResourceExhaustedError: a limit is reached; nothing was taken.
        """
        self.budget.admit(session, now)
        self._sessions[session] = None
        used = self.slots.used
        self._begin(session)
        session.n_slots = self.slots.used - used
        session.work, session.active = Work.ENCODE, now
        held = [self.documents.hold(token_ids) for token_ids in session.contexts]
        session.documents = [document for document, _ in held]
        return sum(found for _, found in held)

    def advance(
        self, session: Session, choices: Sequence[tuple[int, int]], now: float, drafted: Sequence[int] = ()
    ) -> int:
        """Replace the hypotheses by children, given as (parent index, token), and ask for a step.

        The tokens `drafted` become hypotheses too, each a child of the one before it, the first of the only choice.

        Returns:
            How many of them found room: all or none.

        Raises:
            InvalidInputError: the new rows would not fit if the session were alone; it is as before.
            ResourceExhaustedError: no room for the new rows; the session is as before.
        """
        self._check_ready(session)
        parents = [session.hypotheses[parent] for parent, _ in choices]
        rows = sum(parent.slots.shape[0] for parent in parents)
        if drafted and not self.budget.fits_guesses(session, rows, len(drafted)):
            drafted = ()
        self.budget.check_step(session, rows)
        old, used = session.hypotheses, self.slots.used
        session.hypotheses = self._children(parents, [token for _, token in choices])
        for token in drafted:
            session.hypotheses += self._children(session.hypotheses[-1:], [token])
        for hypothesis in old:
            self.slots.release(hypothesis.path)
        session.n_slots += self.slots.used - used
        session.work, session.active = Work.STEP, now
        self._turns.join(session)
        return len(drafted)

    def request(self, session: Session, work: Work, now: float) -> None:
        """Ask for a widening or for scores."""
        self._check_ready(session)
        session.work, session.active = work, now
        if work is Work.SCORE:
            # It may still be in line from a score that has just ended.
            self._scoring = [*(other for other in self._scoring if other is not session), session]

    def close(self, session: Session) -> None:
        """The session is to be freed by the next plan."""
        session.closed = True

    def fail(self, session: Session) -> None:
        """As `close`, after a pass that went wrong: its documents may be why, and are for no other session."""
        self.documents.distrust(session.documents)
        session.closed = True

    def evict(self, n_slots: int) -> tuple[Session, ...]:
        """Close the sessions that hold slots from `n_slots` on and forget those slots: the cache has no room."""
        evicted = tuple(
            session
            for session in self._sessions
            if any(hypothesis.slots.max() >= n_slots for hypothesis in session.hypotheses)
        )
        for session in evicted:
            self._release(session)
            session.closed = True
        self.slots.shrink(n_slots)
        return evicted

    def plan(self, now: float) -> Plan:
        """What to run next. Closed, late and idle sessions are freed first."""
        ended = self._reap(now)
        forget = [entry for session, _ in ended for entry in self._let_go(session)]
        waiting = [session for session in self._sessions if session.work is Work.ENCODE]
        start = tuple(session for session in waiting if session.is_encoded)
        ready = [session for session in self._sessions if session.work is Work.STEP]
        for session in start:
            self._turns.join(session)
        missing = [session for session in waiting if not session.is_encoded]
        encode, prefill = documents_to_encode(missing, self.capacity.prefill_tokens, now)
        self._scoring = [session for session in self._scoring if session.work is Work.SCORE and not session.closed]
        score = self._scoring.pop(0) if self._scoring else None
        if score is not None:
            self._scoring.append(score)
        return Plan(
            ended=tuple(ended),
            forget=tuple(forget),
            start=start,
            encode=tuple(encode),
            prefill=tuple(prefill),
            step=tuple(self._turns.choose([*ready, *(session for session in start if session.steps_at_once)])),
            widen=tuple(session for session in self._sessions if session.work is Work.WIDEN),
            score=score,
            n_slots=self.slots.size,
        )

    def encoded(self, documents: Sequence[DocumentEntry]) -> None:
        """Documents were encoded."""
        for document in documents:
            document.encoded = True

    def started(self, session: Session) -> None:
        """Its prefixes were fed: the session steps, if it has starts."""
        if session.starts:
            session.work = Work.STEP

    def finished(self, session: Session, now: float) -> None:
        """The session's request was answered; it now waits for its client."""
        session.work, session.active = Work.NOTHING, now

    def next_event(self) -> float | None:
        """When, in monotonic seconds, a session falls idle or late with nobody asking; None when there is none."""
        idle = self.capacity.idle_seconds
        times = [session.active + idle for session in self._sessions if session.work is Work.NOTHING]
        times += [session.deadline for session in self._sessions if session.deadline is not None]
        return min(times, default=None)

    def _check_ready(self, session: Session) -> None:
        if session.closed or session not in self._sessions:
            raise FailedPreconditionError("the session has ended")
        if session.work is not Work.NOTHING:
            raise FailedPreconditionError("the session still works on its previous request")

    def _reap(self, now: float) -> list[tuple[Session, RagserveError | None]]:
        ended = [(session, error) for session in self._sessions for gone, error in [self._end(session, now)] if gone]
        for session, _ in ended:
            session.closed = True
            del self._sessions[session]
            self.budget.leave(session)
            self._release(session)
        return ended

    def _let_go(self, session: Session) -> list[DocumentEntry]:
        """Of its documents. Returns those to be forgotten."""
        documents, session.documents = session.documents, []
        return self.documents.release(documents)

    def _release(self, session: Session) -> None:
        for hypothesis in session.hypotheses:
            self.slots.release(hypothesis.path)
        session.hypotheses, session.n_slots = [], 0

    def _end(self, session: Session, now: float) -> tuple[bool, RagserveError | None]:
        """Whether the session is over, and why."""
        if session.closed:
            return True, None
        if session.deadline is not None and now >= session.deadline:
            return True, DeadlineExceededError("the deadline of the decode session passed")
        idle = self.capacity.idle_seconds
        if session.work is Work.NOTHING and now >= session.active + idle:
            return True, DeadlineExceededError(f"no request for {idle:g} s (idle_seconds): the session was freed")
        return False, None

    def _children(self, parents: Sequence[Hypothesis], tokens: Sequence[int]) -> list[Hypothesis]:
        """One token more for each parent; all of one session, so all have as many rows."""
        own = self.slots.allocate(sum(len(parent.slots) for parent in parents)).reshape(len(parents), -1)
        return [
            _extended(token, parent.document, parent.slots, parent.path, more)
            for token, parent, more in zip(tokens, parents, own, strict=True)
        ]

    def _begin(self, session: Session) -> None:
        """Its first hypotheses, in the order of its starts."""
        begun: dict[int, Hypothesis] = {}
        for one in session.beginnings:
            nodes = self.slots.allocate(len(one.documents) * one.trie.size).reshape(len(one.documents), one.trie.size)
            if one.trie.size:
                rows = zip(one.documents, nodes, strict=True)
                session.prefix_trees += [PrefixTree(document, one.trie, row) for document, row in rows]
            starts = [session.starts[i] for i in one.starts]
            begun.update(zip(one.starts, self._begun(starts, one.trie, nodes), strict=True))
        session.hypotheses = [begun[i] for i in range(len(session.starts))]

    def _begun(self, starts: Sequence[Start], trie: Trie, nodes: SlotArray) -> list[Hypothesis]:
        """A hypothesis for each start; the trie of their prefixes is in the slots `nodes` [n_rows, n_nodes]."""
        prefixes: dict[int, PathNode] = {}
        for path in trie.paths:
            before = None
            for node in path.tolist():
                before = prefixes.get(node) or prefixes.setdefault(node, PathNode(nodes[:, node], before))
        own = self.slots.allocate(len(starts) * len(nodes)).reshape(len(starts), len(nodes))
        begun = []
        for start, path, more in zip(starts, trie.paths, own, strict=True):
            before = prefixes[int(path[-1])] if len(path) else None
            begun.append(_extended(start.tokens[-1], start.document, nodes[:, path], before, more))
        for held in prefixes.values():
            self.slots.release(held)
        return begun


def _extended(token: int, document: int, past: SlotArray, before: PathNode | None, own: SlotArray) -> Hypothesis:
    """A hypothesis whose path goes on from the slots `past` [n_rows, length], which end with `before`."""
    return Hypothesis(token, document, np.concatenate([past, own[:, None]], axis=1), PathNode(own, before))
