"""Search by the words of question and passage: BM25, and its fusion with dense scores."""

from retriever_svc.lexical.bm25 import Bm25Index, Bm25Parameters, indexed_text
from retriever_svc.lexical.fusion import (
    BM25_SCALE,
    RECIPROCAL_RANK_SCALE,
    WEIGHT,
    Candidates,
    reciprocal_rank_fusion,
    weighted_sum,
)
from retriever_svc.lexical.protocol import Allowed, TextIndex

__all__ = [
    "BM25_SCALE",
    "RECIPROCAL_RANK_SCALE",
    "WEIGHT",
    "Allowed",
    "Bm25Index",
    "Bm25Parameters",
    "Candidates",
    "TextIndex",
    "indexed_text",
    "reciprocal_rank_fusion",
    "weighted_sum",
]
