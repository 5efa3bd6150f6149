"""What the scheduler knows of a session: its hypotheses, their cache slots, and what it waits for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import Enum
from functools import cached_property
from typing import Any

from generator_svc.documents import DocumentEntry, TokenIds
from generator_svc.slots import PathNode, SlotArray
from generator_svc.trie import Trie, build_trie, in_groups


class Work(Enum):
    """What a session waits for."""

    NOTHING = "nothing"
    ENCODE = "encode"
    STEP = "step"
    WIDEN = "widen"
    SCORE = "score"


@dataclass(frozen=True)
class Hypothesis:
    """One hypothesis: its last token, and the slots of its path.

    `slots` is [n_rows, length]: a row for each document in token mode, one row in sequence mode, where `document`
    says which. The last column belongs to `token`; `path` ends with it too, and is held for the hypothesis.
    """

    token: int
    document: int
    slots: SlotArray
    path: PathNode

    @property
    def length(self) -> int:
        """Tokens of the path, the decoder start token included."""
        return len(self.slots[0])


@dataclass(frozen=True)
class PrefixTree:
    """Prefixes of one document to be fed before the first step, and the slot of each node."""

    document: int
    trie: Trie
    slots: SlotArray


@dataclass(frozen=True)
class Start:
    """A hypothesis to begin with: the decoder's input so far, start token included."""

    tokens: tuple[int, ...]
    document: int = 0


@dataclass(frozen=True)
class Beginning:
    """Some starts of a session (their indices) with rows for the same documents, and the tree of their prefixes."""

    documents: Sequence[int]
    starts: Sequence[int]
    trie: Trie


@dataclass(eq=False)
class Session:
    """One decode session. `state` is the engine's own and means nothing here."""

    contexts: tuple[TokenIds, ...]  # one for each document
    shared: bool  # token mode: every hypothesis has a row for each document
    starts: tuple[Start, ...]  # none: encode only
    deadline: float | None = None  # monotonic seconds
    most_hypotheses: int = 0  # that a step of it will have, as its client says; 0: it does not say
    most_tokens: int = 0  # of the longest of them, start token included
    independent: bool = False  # they have nothing in common, as samples do
    state: Any = None
    documents: list[DocumentEntry] = field(default_factory=list)  # from its admission to its end
    hypotheses: list[Hypothesis] = field(default_factory=list)
    prefix_trees: list[PrefixTree] = field(default_factory=list)
    work: Work = Work.NOTHING
    active: float = 0.0  # monotonic seconds of the last sign of life
    closed: bool = False
    kept_rows: int = 0  # its own, whether it uses them or not: see `Budget`
    kept_slots: int = 0
    n_slots: int = 0  # in use
    rows_run: int = 0  # in step passes; what `turns` shares them by
    steps_run: int = 0  # how many passes these were: few while it is young

    @property
    def context_tokens(self) -> int:
        """Context tokens of all documents."""
        return sum(map(len, self.contexts))

    @property
    def docs_of_each(self) -> int:
        """Documents that a hypothesis has a row for."""
        return len(self.contexts) if self.shared else 1

    @cached_property
    def beginnings(self) -> tuple[Beginning, ...]:
        """Of all its starts: in token mode prefixes are those of every document, in sequence mode of one."""
        own: list[tuple[Sequence[int], list[int]]] = [(range(len(self.contexts)), list(range(len(self.starts))))]
        if not self.shared:
            documents = sorted({start.document for start in self.starts})
            own = [([one], [i for i, start in enumerate(self.starts) if start.document == one]) for one in documents]
        begun = []
        for read, chosen in own:
            prefixes = [self.starts[i].tokens[:-1] for i in chosen]
            for group in in_groups(prefixes):
                trie = build_trie([prefixes[i] for i in group])
                begun.append(Beginning(read, [chosen[i] for i in group], trie))
        return tuple(begun)

    @property
    def first_slots(self) -> int:
        """Slots that it begins with."""
        return sum(len(one.documents) * (one.trie.size + len(one.starts)) for one in self.beginnings)

    @property
    def is_encoded(self) -> bool:
        """Whether all documents are."""
        return all(document.encoded for document in self.documents)

    @property
    def steps_at_once(self) -> bool:
        """Whether its first step needs nothing but its documents: no prefixes, and it is not encode only."""
        return bool(self.starts) and not self.prefix_trees

    @property
    def n_rows(self) -> int:
        """Rows of one step."""
        return sum(hypothesis.slots.shape[0] for hypothesis in self.hypotheses)
