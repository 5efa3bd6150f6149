"""Runs what the scheduler chose on the model: encode, feed prefixes, step, score. The only user of the cache."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from generator_svc.candidates import normalizers
from generator_svc.kv_cache import CachedAttention, KVCache, TreeAttention
from generator_svc.models.base import DocumentState, EncodePass, GroupedDocuments, Rows, Seq2SeqModel
from generator_svc.sessions import Hypothesis, PrefixTree
from generator_svc.slots import INITIAL_SLOTS, SlotArray
from generator_svc.trie import Trie

LOGITS_ROWS = 256  # rows whose logits exist at once while scoring


@dataclass(frozen=True)
class StepRows:
    """One session in a step pass."""

    documents: tuple[DocumentState, ...]
    hypotheses: tuple[Hypothesis, ...]
    shared: bool  # token mode: each hypothesis has a row for each document

    def in_document_order(self) -> list[tuple[int, list[int]]]:
        """Each document with rows, and the indices of its hypotheses."""
        if self.shared:
            everyone = list(range(len(self.hypotheses)))
            return [(document, everyone) for document in range(len(self.documents))]
        by_document: dict[int, list[int]] = {}
        for i, hypothesis in enumerate(self.hypotheses):
            by_document.setdefault(hypothesis.document, []).append(i)
        return sorted(by_document.items())


class Runner:
    """The model, its cache and the passes over them. Not thread-safe: one thread runs it."""

    def __init__(self, model: Seq2SeqModel, device: torch.device, n_slots: int = INITIAL_SLOTS) -> None:
        self._model = model
        self._device = device
        self.cache = KVCache(model.shape, device, n_slots)

    def encode(self, contexts: Sequence[Sequence[int]]) -> EncodePass:
        """Encode documents of any sessions in one packed pass."""
        return self._model.encode(contexts)

    def step(self, sessions: Sequence[StepRows]) -> list[torch.Tensor]:
        """One pass for all rows of all sessions.

        Returns, for each session, logits [n_docs, n_hypotheses, vocab]; n_docs is 1 in sequence mode.
        """
        tokens: list[int] = []
        paths: list[SlotArray] = []
        groups: list[tuple[DocumentState, int]] = []
        orders: list[list[int]] = []
        for session in sessions:
            order = []
            for document, indices in session.in_document_order():
                chosen = [session.hypotheses[i] for i in indices]
                tokens += [hypothesis.token for hypothesis in chosen]
                paths += [hypothesis.slots[document if session.shared else 0] for hypothesis in chosen]
                groups.append((session.documents[document], len(chosen)))
                order += indices
            orders.append(order)
        positions = torch.tensor([len(path) - 1 for path in paths], device=self._device)
        documents = GroupedDocuments(tuple(groups), self._model.shape.scale)
        rows = Rows(torch.tensor(tokens, device=self._device), positions, documents)
        attention = CachedAttention(self.cache, self._model.shape, paths)
        logits = self._model.logits(self._model.decode(rows, attention))
        return self._by_session(logits, sessions, orders)

    def prime(self, documents: Sequence[DocumentState], trees: Sequence[PrefixTree], max_rows: int) -> int:
        """Feed prefixes teacher-forced and keep their keys and values in the cache: as many trees as fit one pass.

        Returns:
            How many trees these were: the first one, whatever its size, and those after it within `max_rows` nodes.
        """
        sizes = itertools.accumulate(tree.trie.size for tree in trees)
        count = max(1, sum(size <= max_rows for size in sizes))
        tries, slots = [tree.trie for tree in trees[:count]], [tree.slots for tree in trees[:count]]
        rows = self._tree_rows([documents[tree.document] for tree in trees[:count]], tries)
        self._model.decode(rows, TreeAttention(self.cache, self._model.shape, tries, slots))
        return count

    def score(
        self, documents: Sequence[DocumentState], trie: Trie, wanted: npt.NDArray[np.int64]
    ) -> npt.NDArray[np.float32]:
        """Log-probabilities of some tokens after each node of a tree, under each document.

        wanted [n_nodes, n_wanted] -> [n_docs, n_nodes, n_wanted].
        """
        tries = [trie] * len(documents)
        attention = TreeAttention(self.cache, self._model.shape, tries, None)
        hidden = self._model.decode(self._tree_rows(documents, tries), attention)
        columns = torch.from_numpy(np.tile(wanted, (len(documents), 1))).to(self._device)
        parts = []
        for states, ids in zip(torch.split(hidden, LOGITS_ROWS), torch.split(columns, LOGITS_ROWS), strict=True):
            logits = self._model.logits(states)
            parts.append(logits.gather(1, ids) - normalizers(logits)[:, None])
        result: npt.NDArray[np.float32] = torch.cat(parts).view(len(documents), *wanted.shape).cpu().numpy()
        return result

    def _tree_rows(self, documents: Sequence[DocumentState], tries: Sequence[Trie]) -> Rows:
        tokens = torch.from_numpy(np.concatenate([trie.tokens for trie in tries])).to(self._device)
        positions = torch.from_numpy(np.concatenate([trie.depths for trie in tries])).to(self._device)
        groups = tuple((state, trie.size) for state, trie in zip(documents, tries, strict=True))
        return Rows(tokens, positions, GroupedDocuments(groups, self._model.shape.scale))

    @staticmethod
    def _by_session(
        logits: torch.Tensor, sessions: Sequence[StepRows], orders: Sequence[list[int]]
    ) -> list[torch.Tensor]:
        """Each session's own logits: copied when rows of others are in the same tensor, so that none is kept alive."""
        parts = torch.split(logits, [len(order) for order in orders])
        results = []
        for session, order, part in zip(sessions, orders, parts, strict=True):
            if session.shared:
                own = part.view(len(session.documents), len(session.hypotheses), -1)
                results.append(own if len(sessions) == 1 else own.clone())
            else:
                inverse = np.argsort(np.array(order)).tolist()
                results.append(part[torch.tensor(inverse, device=part.device)][None])
        return results
