"""Vector indexes: the protocol the searcher uses, the FAISS implementation and its file cache."""

from retriever_svc.index.cache import IndexCache
from retriever_svc.index.faiss_index import FaissIndex, TrainingError, builds_interrupted
from retriever_svc.index.protocol import Index, SearchOptions, VectorSource
from retriever_svc.index.spec import IndexSpec

__all__ = [
    "FaissIndex",
    "Index",
    "IndexCache",
    "IndexSpec",
    "SearchOptions",
    "TrainingError",
    "VectorSource",
    "builds_interrupted",
]
