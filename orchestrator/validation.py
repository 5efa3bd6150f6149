"""What is refused before any work is done. Every error names the field of the request."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from orchestrator.options import Resolved
from orchestrator.requests import ContextOptions, GeneratorInfo, Mode, QuestionForm, Sources
from orchestrator.settings import OrchestratorSettings
from ragserve.arguments import check_range
from ragserve.errors import InvalidInputError
from ragserve.filters import SearchOptions
from ragserve.passage_rules import CONTEXT_LIMIT, MIN_CONTEXT_TOKENS, PassageLimits, document_problem
from ragserve.printable import counted

NOT_RETRIEVED = "documents are given, so nothing is retrieved; leave one of them out"
# Priors are float32: one farther below the largest than this is -inf once they are normalized.
LARGEST_FLOAT32 = float(np.finfo(np.float32).max)


@dataclass(frozen=True)
class DocCount:
    """How many documents a request uses, whether the caller said so, and what the caller should know of it."""

    count: int
    chosen: bool
    warnings: tuple[str, ...] = ()

    def at_most(self, most: int, limit: str) -> DocCount:
        """Lowers the count to a limit. The warning begins with `limit`, a clause that names it."""
        if self.count <= most:
            return self
        warning = f"{limit}; this request uses {most} instead of {self.count}."
        return replace(self, count=most, warnings=(*self.warnings, warning))


def check_sources(sources: Sources, settings: OrchestratorSettings) -> None:
    """Question, n_docs and documents, as far as they can be judged without the other services."""
    check_text("question", sources.question, settings.max_question_characters)
    limit = f"the limit of the service (max_n_docs) is {settings.max_n_docs}"
    if sources.n_docs is not None:
        why = limit if sources.n_docs else "leave n_docs out for the checkpoint's number"
        check_range("n_docs", sources.n_docs, 1, settings.max_n_docs, why=why)
    if sources.documents:
        _check_documents(sources, settings, limit)


def _check_documents(sources: Sources, settings: OrchestratorSettings, limit: str) -> None:
    given, version = len(sources.documents), sources.knowledge_version
    if given > settings.max_n_docs:
        raise InvalidInputError("documents", f"documents has {given} entries; {limit}")
    if sources.n_docs not in (None, given):
        raise InvalidInputError("n_docs", f"n_docs is {sources.n_docs}, and documents has {given}; leave n_docs out")
    if version:
        raise InvalidInputError("knowledge_version", f"knowledge_version is {version}, but {NOT_RETRIEVED}")
    if sources.search != SearchOptions():
        raise InvalidInputError("search", f"search options are given, but {NOT_RETRIEVED}")
    for index, document in enumerate(sources.documents):
        check_range(f"documents[{index}].log_prior", document.log_prior)
        problem = document_problem(document.title, document.text, PassageLimits(settings.max_passage_bytes))
        if problem is not None:
            field = f"documents[{index}].{problem.column}"
            raise InvalidInputError(field, f"{field} {problem.reason}")
    _check_spread([document.log_prior for document in sources.documents])


def _check_spread(log_priors: Sequence[float]) -> None:
    """Finite log-priors that stay finite when they are normalized."""
    largest = max(log_priors)
    for index, log_prior in enumerate(log_priors):
        if largest - log_prior > LARGEST_FLOAT32:
            field = f"documents[{index}].log_prior"
            why = f"too far below the largest, {largest:g}: float32 does not reach that far"
            raise InvalidInputError(field, f"{field} is {log_prior:g}, {why}")


def check_text(field: str, text: str, longest: int) -> None:
    """Text that must say something."""
    if not text.strip():
        raise InvalidInputError(field, f"{field} is empty")
    if len(text) > longest:
        raise InvalidInputError(field, f"{field} has {len(text)} characters; the service takes at most {longest}")


def check_context(context: ContextOptions, sources: Sources, info: GeneratorInfo, prefix: str) -> None:
    """Context options; `prefix` is where they stand in the request: "options." or ""."""
    if context.question_form is QuestionForm.DECODED and sources.documents:
        raise InvalidInputError(
            f"{prefix}question_form",
            f"{prefix}question_form is decoded, which comes from the retriever, but {NOT_RETRIEVED}",
        )
    if context.max_tokens:
        field, most = f"{prefix}max_context_tokens", info.max_context_tokens or None
        check_range(field, context.max_tokens, MIN_CONTEXT_TOKENS, most, why=CONTEXT_LIMIT)


def resolve_n_docs(sources: Sources, info: GeneratorInfo, settings: OrchestratorSettings) -> DocCount:
    """Number of documents: as given, else asked for, else the checkpoint's or the service's, within the limits."""
    if sources.documents:
        found, field = DocCount(len(sources.documents), chosen=True), "documents"
    elif sources.n_docs:
        found, field = DocCount(sources.n_docs, chosen=True), "n_docs"
    else:
        found = DocCount(info.default_n_docs or settings.default_n_docs, chosen=False)
        found = found.at_most(
            settings.max_n_docs, f"A request has at most {counted(settings.max_n_docs, 'document')} (max_n_docs)"
        )
        most = info.max_documents or found.count
        return found.at_most(most, f"The generator takes at most {counted(most, 'document')}")
    if info.max_documents and found.count > info.max_documents:
        given = f"{field} {'is' if field == 'n_docs' else 'has'} {found.count}"
        raise InvalidInputError(
            field, f"{given}; the generator takes at most {counted(info.max_documents, 'document')}"
        )
    return found


def fit_hypotheses(docs: DocCount, options: Resolved, info: GeneratorInfo) -> DocCount:
    """Lowers a default number of documents to what the generator's hypotheses and rows suffice for."""
    if docs.chosen:
        return docs
    width = options.hypotheses(1)
    if info.max_hypotheses and options.mode is Mode.SEQUENCE:
        most = max(1, info.max_hypotheses // width)
        hypotheses = counted(info.max_hypotheses, "hypothesis", "hypotheses")
        enough = f"enough for {counted(most, 'document')} in sequence mode"
        docs = docs.at_most(most, f"The generator has at most {hypotheses} in a session, {enough}")
    if info.max_rows:
        most = max(1, info.max_rows // width)
        enough = f"enough for {counted(most, 'document')} with {counted(width, 'hypothesis', 'hypotheses')} each"
        docs = docs.at_most(most, f"The generator has at most {counted(info.max_rows, 'row')} (max_rows), {enough}")
    return docs
