"""Whose turn it is, where not all fit one pass: which sessions step, and which documents are encoded. No torch."""

from __future__ import annotations

from collections.abc import Sequence

from generator_svc.documents import DocumentEntry
from generator_svc.sessions import Session

# Context tokens that a second of waiting outweighs: short documents go first, but not for ever.
PATIENCE = 200.0
# Steps that a session has had when it counts as one of the long: until then it need not share every pass with them.
YOUNG_STEPS = 16


class StepTurns:
    """Shares the rows of step passes between sessions: who has had the fewest goes first (fair queueing).

    Under load, every second pass serves only sessions in their first 16 steps. Such a pass has few rows and is short,
    so that an answer of a few tokens does not take two full passes for each of them. The other passes serve all
    sessions.

    A session that joins, or comes back from a pause, gets the smallest virtual time in the queue: it is soon in a pass,
    and cannot make up for rows that it never asked for.
    """

    def __init__(self, max_rows: int, young_steps: int) -> None:
        self._max_rows = max_rows
        self._young_steps = young_steps
        self._behind = 0
        self._young_had_theirs = False

    def join(self, session: Session) -> None:
        """The session wants a step."""
        session.rows_run = max(session.rows_run, self._behind)

    def choose(self, ready: Sequence[Session]) -> list[Session]:
        """The sessions of the next pass: at least one of those whose turn it is, then as many as its rows hold."""
        young = [session for session in ready if session.steps_run < self._young_steps]
        crowded = sum(session.n_rows for session in ready) > self._max_rows
        apart = crowded and 0 < len(young) < len(ready) and not self._young_had_theirs
        self._young_had_theirs = apart
        ordered = sorted(young if apart else ready, key=lambda session: session.rows_run)
        left = self._max_rows
        chosen: set[Session] = set()
        for session in ordered:
            if session.n_rows <= left or not chosen:
                chosen.add(session)
                left -= session.n_rows
        if ordered and not apart:
            self._behind = ordered[0].rows_run
        for session in chosen:
            session.rows_run += session.n_rows
            session.steps_run += 1
        return [session for session in ready if session in chosen]


def documents_to_encode(
    waiting: Sequence[Session], max_tokens: int, now: float
) -> tuple[list[DocumentEntry], list[Session]]:
    """Documents that the next pass encodes, and the sessions they are for.

    At least one document, then as many as the tokens hold; the session with the least left to encode goes first.
    """
    left = max_tokens
    chosen: dict[DocumentEntry, None] = {}
    sessions = []
    for session, missing in _in_order(waiting, now):
        for document in missing:
            if document in chosen:
                continue
            if document.n_tokens > left and chosen:
                break
            left -= document.n_tokens
            chosen[document] = None
        if any(document in chosen for document in missing):
            sessions.append(session)
        if not all(document in chosen for document in missing):
            break
    return list(chosen), sessions


def _in_order(waiting: Sequence[Session], now: float) -> list[tuple[Session, list[DocumentEntry]]]:
    """Sessions and their documents not yet encoded."""
    missing = [(session, [one for one in session.documents if not one.encoded]) for session in waiting]

    def left(item: tuple[Session, list[DocumentEntry]]) -> float:
        session, documents = item
        return sum(one.n_tokens for one in documents) - PATIENCE * (now - session.active)

    return sorted(missing, key=left)
