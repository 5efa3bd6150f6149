"""Makes knowledge bases: readers of passage files, the 100-word split, embedding and the commit."""

from retriever_svc.build.builder import Progress, build_knowledge_base
from retriever_svc.build.sources import FORMATS

__all__ = ["FORMATS", "Progress", "build_knowledge_base"]
