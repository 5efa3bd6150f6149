"""A toy model for the scheduler, its clients, and a server that does what `Worker` does.

It keeps, for each slot, the document and the token whose keys and values would be there. A next token is a hash of what
is read through the slots of a path, so a slot that is given to another path too early changes a token.
"""

from __future__ import annotations

import random
import zlib
from collections.abc import Sequence
from itertools import count

import numpy as np
import numpy.typing as npt

from generator_svc.budget import Capacity
from generator_svc.documents import DocumentEntry, TokenIds
from generator_svc.scheduler import Plan, Scheduler
from generator_svc.sessions import Hypothesis, Session, Start, Work

Cells = npt.NDArray[np.int64]
Path = tuple[int, tuple[int, ...]]  # of a hypothesis: its document and its tokens
numbers = count(1)
POPULAR = [tuple(range(n, n + length)) for n, length in enumerate((1, 3, 7, 12, 20, 30))]  # contexts


def state_of(token_ids: TokenIds) -> int:
    """What the toy encoder makes of a context."""
    return zlib.crc32(np.array(token_ids).tobytes()) >> 2 << 32


class Client:
    """One session, what its cache must hold, and what the model answered. Its steps are drawn from its number."""

    def __init__(self, number: int, deadline: float | None = None) -> None:
        self.number, self._rng = number, random.Random(number)
        contexts = tuple(self._context() for _ in range(self._rng.choice((1, 1, 2, 3, 4))))
        shared = self._rng.random() < 0.5
        starts = []
        for i in range(self._rng.choice((0, 1, 1, 2, 3))):
            prefix = [self._rng.randint(3, 5) for _ in range(self._rng.choice((0, 0, 1, 2, 6)))]
            starts.append(Start((2, *prefix), 0 if shared else 2 * i % len(contexts)))
        self.session = Session(contexts, shared, tuple(starts), deadline)
        self.n_steps = self._rng.randint(1, 8)
        self.states = np.array([state_of(context) for context in contexts], dtype=np.int64)
        self.owners = (8 * next(numbers) + np.arange(len(contexts), dtype=np.int64)) << 32  # of slots, per document
        self.paths: list[Path] = [(start.document, start.tokens) for start in starts]
        self.n_own = len(starts)  # of the paths; others are guesses, of which none is chosen
        self.seen: list[list[int]] = []  # for each step, the toy logits of each of its own hypotheses
        self._choices: list[tuple[int, int]] = []
        self.silent = False
        self.patience = 4  # refusals
        self.plans_left = 0  # until it must have started
        self.chunks = 0  # left to score
        self.passed: set[Session | None] = set()  # had a turn to score while this one waited

    def _context(self) -> TokenIds:
        """One that others have too, or one of its own."""
        if self._rng.random() < 0.5:
            return self._rng.choice(POPULAR)
        return (self.number, *range(self._rng.randrange(30)))

    @property
    def ready(self) -> bool:
        return self.session.work is Work.NOTHING and not self.session.closed

    def rows(self, n_hypotheses: int) -> int:
        return n_hypotheses * (len(self.states) if self.session.shared else 1)

    def rows_of(self, each: Cells, document: int) -> Cells:
        """[n_rows, 1]: those of the documents that a hypothesis has rows for."""
        return (each if self.session.shared else each[document : document + 1])[:, None]

    def hypotheses(self) -> list[tuple[Hypothesis, Path]]:
        """None after an eviction."""
        return list(zip(self.session.hypotheses, self.paths, strict=True)) if self.session.hypotheses else []

    def choices(self) -> list[tuple[int, int]]:
        """Of the next step: parents in any order, some twice, some not at all; the same until `advanced`."""
        if not self._choices:
            parents = [self._rng.randrange(self.n_own) for _ in range(self._rng.choice((1, 1, 2, 3, 4, 8)))]
            logits = self.seen[-1]
            self._choices = [(p, zlib.crc32(bytes([self._rng.randrange(3)]), logits[p])) for p in parents]
        return self._choices

    def advanced(self, drafted: Sequence[int] = ()) -> None:
        children = [(*self.paths[parent], token) for parent, token in self._choices]
        self.paths = [(document, (*tokens, token)) for document, tokens, token in children]
        self._choices, self.n_own = [], len(self.paths)
        for token in drafted:
            document, tokens = self.paths[-1]
            self.paths.append((document, (*tokens, token)))


class Server:
    """Does what `Worker` does, on a toy model. Clients may act whenever it calls `between`."""

    def __init__(self, capacity: Capacity) -> None:
        self.scheduler = Scheduler(capacity)
        self.clients: dict[Session, Client] = {}
        self.cells = np.full(self.scheduler.slots.size, -1, dtype=np.int64)
        self.now = 0.0

    def between(self) -> None:
        """Between two critical sections of the worker."""

    def run(self, plan: Plan) -> None:
        more = np.full(max(0, plan.n_slots - len(self.cells)), -1, dtype=np.int64)
        self.cells = np.concatenate([self.cells, more])
        self.between()
        fed = [session for session in plan.start if session.prefix_trees][:1]
        for session in plan.start:
            if session in fed or not session.prefix_trees:
                self._start(session)
                self.between()
        self.encode(plan)
        self.between()
        for session in plan.widen:
            client = self.clients[session]
            assert self._logits(client)[: client.n_own] == client.seen[-1]
            self.scheduler.finished(session, self.now)
            self.between()
        self._step([self.clients[session] for session in plan.step if session.work is Work.STEP])
        if plan.score is not None:
            self.clients[plan.score].chunks -= 1
            if not self.clients[plan.score].chunks:
                self.scheduler.finished(plan.score, self.now)
            self.between()

    def encode(self, plan: Plan) -> None:
        """One pass of the encoder."""
        for document in plan.encode:
            document.state = state_of(document.token_ids)
        self.scheduler.encoded(plan.encode)

    def _start(self, session: Session) -> None:
        states, left = states_in(session.documents), self.scheduler.capacity.prefill_tokens
        while session.prefix_trees and left > 0:
            tree = session.prefix_trees.pop(0)
            self.cells[tree.slots] = states[tree.document] + tree.trie.tokens
            left -= tree.trie.size
        if session.prefix_trees:
            return
        self.scheduler.started(session)
        if not session.starts:
            self.scheduler.finished(session, self.now)

    def _step(self, clients: Sequence[Client]) -> None:
        for client in clients:
            states = states_in(client.session.documents)
            for hypothesis, (document, tokens) in client.hypotheses():
                assert (hypothesis.document, hypothesis.token) == (document, tokens[-1])
                self.cells[hypothesis.slots[:, -1:]] = client.rows_of(states, document) + hypothesis.token
        for client, logits in [(client, self._logits(client)) for client in clients]:
            client.seen.append(logits[: client.n_own])
            self.scheduler.finished(client.session, self.now)
            self.between()

    def _logits(self, client: Client) -> list[int]:
        """A hash of all that each hypothesis reads, which must be its own documents and tokens."""
        logits = []
        for hypothesis, (document, tokens) in client.hypotheses():
            read = self.cells[hypothesis.slots]
            own = client.rows_of(client.states, document)
            assert np.array_equal(read, own + np.array(tokens)), "not what its path wrote"
            logits.append(zlib.crc32(read.tobytes()))
        return logits


def states_in(documents: Sequence[DocumentEntry]) -> Cells:
    """What the scheduler's documents hold, [n_docs]."""
    assert all(document.encoded for document in documents)
    return np.array([document.state for document in documents], dtype=np.int64)


def alone(number: int, n_steps: int) -> list[list[int]]:
    """What a client sees when nobody else is there."""
    server, client = Server(Capacity()), Client(number)
    server.clients[client.session] = client
    server.scheduler.admit(client.session, 0.0)
    while len(client.seen) < n_steps:
        if client.ready:
            server.scheduler.advance(client.session, client.choices(), 0.0)
            client.advanced()
        server.run(server.scheduler.plan(0.0))
    return client.seen


def session(*context_tokens: int, shared: bool = True, starts: int = 1, deadline: float | None = None) -> Session:
    tokens = tuple(Start((2,), 0 if shared else i % len(context_tokens)) for i in range(starts))
    contexts = tuple((next(numbers), *range(length - 1)) for length in context_tokens)
    return Session(contexts, shared, tokens, deadline)


def run(scheduler: Scheduler, plan: Plan, now: float) -> None:
    """A model that takes no time."""
    scheduler.encoded(plan.encode)
    for one in plan.start:
        scheduler.started(one)
        if not one.starts:
            scheduler.finished(one, now)
    for one in (*plan.step, *plan.widen, *([plan.score] if plan.score else [])):
        scheduler.finished(one, now)


def open_ready(scheduler: Scheduler, one: Session, now: float = 0.0) -> None:
    scheduler.admit(one, now)
    while one.work is not Work.NOTHING:
        run(scheduler, scheduler.plan(now), now)
