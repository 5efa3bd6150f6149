"""Whether the scheduler has room for what clients ask, worked out anew from all that is there."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import NamedTuple

from generator_svc.budget import Capacity
from generator_svc.sessions import Session
from ragserve.errors import InvalidInputError, ResourceExhaustedError
from tests.generator_svc.toy import Client, Server


class Wanted(NamedTuple):
    """What a session is to have after an Open or a step."""

    rows: int
    alone: int  # bytes that it cannot do without
    size: int  # bytes, with those that are kept for it
    within: bool = False  # what is its own already


class Rooms(Server):
    """A server that knows what it must refuse."""

    def __init__(self, capacity: Capacity, events: Counter[str]) -> None:
        super().__init__(capacity)
        self.capacity, self.events = capacity, events

    def attempt(self, name: str, run: Callable[[], None], client: Client, wanted: Wanted) -> type | None:
        """Run what may be refused: it is, exactly when there is no room, and then takes nothing."""
        session, most = client.session, self.capacity
        present, fits = session in self.clients, self.fits(session, wanted)
        full = not present and len(self.clients) >= most.max_sessions
        fits_alone = wanted.rows <= most.max_rows and wanted.alone <= most.cache_bytes
        claim = None if present else self.scheduler.budget.claim
        kept = False
        if claim is not None and self.now < claim.until and (wanted.rows, wanted.size) != (claim.rows, claim.size):
            more = (wanted.rows + claim.rows, 0) if claim.by_rows and wanted.rows else (0, wanted.size + claim.size)
            kept = wanted.rows <= claim.rows and wanted.size <= claim.size and (wanted.rows > 0 or not claim.by_rows)
            kept = kept and not self.fits(session, Wanted(more[0], 0, more[1]))
        before = self.taken
        try:
            run()
        except (InvalidInputError, ResourceExhaustedError) as error:
            refused = type(error)
        else:
            assert fits
            assert not full
            assert not kept
            self.events["as announced"] += wanted.within
            return None
        assert not fits or full or kept
        assert not wanted.within, "what it announced is its own"
        assert self.taken == before
        assert refused is (ResourceExhaustedError if full or fits_alone else InvalidInputError)
        self.events["kept for a larger one"] += fits and kept
        self.events[f"{name}: {'full' if refused is ResourceExhaustedError else 'never fits'}"] += 1
        return refused

    def wanted_by(self, session: Session, rows: int) -> Wanted:
        """A step of so many rows, each with a slot more."""
        held = (self.bytes_of([session]) - self.documents_of(session)) // self.capacity.slot_bytes
        alone = self.documents_of(session) + (held + rows) * self.capacity.slot_bytes
        size = max(alone, self.kept_bytes(session))
        return Wanted(max(rows, session.kept_rows), alone, size, self.announced(self.clients[session], rows))

    def announced(self, client: Client, rows: int) -> bool:
        """Whether a step of so many rows, and what there is now, are as it said: not more nor longer hypotheses.

        Where it is kept all of that: they are short enough to have nothing in common, and not too much for the cache.
        """
        session = client.session
        most = client.rows(max(len(session.starts), session.most_hypotheses))
        longest = max(len(tokens) for _, tokens in client.paths[: client.n_own])
        expected = self.expected(client)
        whole = expected <= (self.capacity.cache_bytes - self.documents_of(session)) // self.capacity.slot_bytes // 4
        as_said = max(rows, client.rows(client.n_own)) <= most and longest < min(session.most_tokens, 16)
        return bool(session.most_tokens) and whole and as_said

    def guesses_fit(self, session: Session, rows: int, count: int) -> bool:
        """Whether they and the next step have room; those of one that announced nothing need not think of the next."""
        held = (self.bytes_of([session]) - self.documents_of(session)) // self.capacity.slot_bytes
        own = not session.kept_slots or held + rows * (2 + count) <= session.kept_slots
        return own and self.fits(session, self.wanted_by(session, rows * (1 + count)))

    def first(self, client: Client) -> int:
        """Slots that its starts take: one for each token that some of them have in common, on each document."""
        starts, shared = client.session.starts, client.session.shared
        nodes = {(0 if shared else one.document, one.tokens[:n]) for one in starts for n in range(1, len(one.tokens))}
        return client.rows(len(nodes) + len(starts))

    def fits(self, session: Session, wanted: Wanted) -> bool:
        """Whether the others, and what is kept for them, leave room."""
        others = [one for one in self.clients if one is not session]
        rows = wanted.rows + sum(max(one.n_rows, one.kept_rows) for one in others)
        return (
            rows <= self.capacity.max_rows
            and wanted.size + sum(map(self.kept_bytes, others)) <= self.capacity.cache_bytes
        )

    def documents_of(self, session: Session) -> int:
        return sum(map(len, session.contexts)) * self.capacity.document_token_bytes

    def kept_bytes(self, session: Session) -> int:
        kept = self.documents_of(session) + session.kept_slots * self.capacity.slot_bytes
        return max(kept, self.bytes_of([session]))

    def expected(self, client: Client) -> int:
        """Slots of the hypotheses that it says it will have: one stem for each document, and 16 tokens of each."""
        session, longest = client.session, client.session.most_tokens
        hypotheses = max(len(session.starts), session.most_hypotheses)
        stems = 1 if session.shared else min(hypotheses, len(session.contexts))
        apart = longest if session.independent else min(longest, 16)
        return client.rows(hypotheses * apart + stems * (longest - apart)) if longest else 0

    def most_kept(self, documents: int) -> int:
        """Slots: a quarter of what these documents leave."""
        return max(0, self.capacity.cache_bytes - documents) // self.capacity.slot_bytes // 4

    def bytes_of(self, sessions: Sequence[Session]) -> int:
        """Each session's documents, and each slot once however many paths share it."""
        held = {slot for one in sessions for hypothesis in one.hypotheses for slot in hypothesis.slots.flat}
        documents = sum(len(context) for session in sessions for context in session.contexts)
        return documents * self.capacity.document_token_bytes + len(held) * self.capacity.slot_bytes

    @property
    def taken(self) -> tuple[object, ...]:
        return self.scheduler.sessions(), self.scheduler.used_bytes, self.scheduler.slots.used
