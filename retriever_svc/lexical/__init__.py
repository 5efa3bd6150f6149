"""Search by the words of question and passage: BM25, and its fusion with dense scores."""

from retriever_svc.lexical.bm25 import Bm25Index, Bm25Parameters, indexed_text
from retriever_svc.lexical.protocol import Allowed, TextIndex

__all__ = ["Allowed", "Bm25Index", "Bm25Parameters", "TextIndex", "indexed_text"]
