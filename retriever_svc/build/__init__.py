"""Makes knowledge bases: readers of passage sources, splits, shards that are embedded alone, and one commit."""

from retriever_svc.build.builder import Progress, build_knowledge_base
from retriever_svc.build.options import BuildOptions
from retriever_svc.build.reading import ReadOptions
from retriever_svc.build.sources import FORMATS
from retriever_svc.build.target import is_free

__all__ = ["FORMATS", "BuildOptions", "Progress", "ReadOptions", "build_knowledge_base", "is_free"]
