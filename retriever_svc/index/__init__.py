"""Vector indexes: the protocol the searcher uses, the FAISS implementation and its file cache."""

from retriever_svc.index.cache import IndexCache
from retriever_svc.index.faiss_index import FaissIndex, IndexSpec
from retriever_svc.index.protocol import Index

__all__ = ["FaissIndex", "Index", "IndexCache", "IndexSpec"]
