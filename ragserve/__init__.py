"""Serving Retrieval-Augmented Generation: the client and its errors, and what the services share.

with ragserve.Client("localhost:50051") as client:
print(client.generate("who wrote the origin of species").answer)
"""

from __future__ import annotations

import importlib
import os
from typing import TYPE_CHECKING

from ragserve.errors import (
    AbortedError,
    DataLossError,
    DeadlineExceededError,
    FailedPreconditionError,
    InternalError,
    InvalidInputError,
    NotFoundError,
    PermissionDeniedError,
    RagserveError,
    ResourceExhaustedError,
    UnauthenticatedError,
    UnavailableError,
)

if TYPE_CHECKING:
    __version__: str
    from ragserve.client import AsyncClient, Client
    from ragserve.filters import Condition, NoneOf, Range, between, none_of
    from ragserve.knowledge import (
        Compacted,
        Deleted,
        KnowledgeVersion,
        Lookup,
        LookupResult,
        NewPassage,
        QueryPassages,
        RetrieverInfo,
        Split,
        StoredPassage,
        StoredPassages,
        StreamedLookup,
        Upserted,
        VersionDiff,
    )
    from ragserve.knowledge_async import AsyncKnowledgeClient
    from ragserve.knowledge_client import KnowledgeClient
    from ragserve.options import Document, GenerationOptions, RetrieveKeywords, Sampling, SourceKeywords
    from ragserve.results import (
        Answer,
        AnswerScore,
        Hypothesis,
        Passage,
        PassagesEvent,
        Retrieval,
        TokenPosterior,
        TokensEvent,
    )

# gRPC's core otherwise writes lines such as "Got goaway" to stderr whenever a server restarts. It reads this once, when
# `grpc` is imported.
os.environ.setdefault("GRPC_VERBOSITY", "ERROR")
# ONNX Runtime otherwise collects telemetry, and warns where it may not write its identifier. It reads this when
# `onnxruntime` is imported.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

# Loaded when first asked for: engines import `ragserve.errors` and must not load gRPC by that.
_LAZY = {
    **dict.fromkeys(("AsyncClient", "Client"), "ragserve.client"),
    "KnowledgeClient": "ragserve.knowledge_client",
    "AsyncKnowledgeClient": "ragserve.knowledge_async",
    **dict.fromkeys(("Condition", "NoneOf", "Range", "between", "none_of"), "ragserve.filters"),
    **dict.fromkeys(
        (
            *("NewPassage", "StoredPassage", "StoredPassages", "Upserted", "Deleted", "Compacted", "RetrieverInfo"),
            *("KnowledgeVersion", "VersionDiff", "Lookup", "LookupResult", "QueryPassages", "StreamedLookup"),
            "Split",
        ),
        "ragserve.knowledge",
    ),
    **dict.fromkeys(
        ("Document", "GenerationOptions", "RetrieveKeywords", "Sampling", "SourceKeywords"), "ragserve.options"
    ),
    **dict.fromkeys(
        (
            *("Answer", "AnswerScore", "Hypothesis", "Passage"),
            *("PassagesEvent", "Retrieval", "TokenPosterior", "TokensEvent"),
        ),
        "ragserve.results",
    ),
}

__all__ = [
    "AbortedError",
    "Answer",
    "AnswerScore",
    "AsyncClient",
    "AsyncKnowledgeClient",
    "Client",
    "Compacted",
    "Condition",
    "DataLossError",
    "DeadlineExceededError",
    "Deleted",
    "Document",
    "FailedPreconditionError",
    "GenerationOptions",
    "Hypothesis",
    "InternalError",
    "InvalidInputError",
    "KnowledgeClient",
    "KnowledgeVersion",
    "Lookup",
    "LookupResult",
    "NewPassage",
    "NoneOf",
    "NotFoundError",
    "Passage",
    "PassagesEvent",
    "PermissionDeniedError",
    "QueryPassages",
    "RagserveError",
    "Range",
    "ResourceExhaustedError",
    "Retrieval",
    "RetrieveKeywords",
    "RetrieverInfo",
    "Sampling",
    "SourceKeywords",
    "Split",
    "StoredPassage",
    "StoredPassages",
    "StreamedLookup",
    "TokenPosterior",
    "TokensEvent",
    "UnauthenticatedError",
    "UnavailableError",
    "Upserted",
    "VersionDiff",
    "__version__",
    "between",
    "none_of",
]


def __getattr__(name: str) -> object:
    """The client, its results and the version, on first use."""
    if name == "__version__":
        return importlib.import_module("importlib.metadata").version("ragserve")
    if name in _LAZY:
        return getattr(importlib.import_module(_LAZY[name]), name)
    raise AttributeError(f"module 'ragserve' has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
