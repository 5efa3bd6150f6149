"""FAISS factory strings and search parameters in Milvus's words."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from ragserve.errors import InvalidInputError
from retriever_svc.index.parameters import candidates_to_follow, cells_to_visit
from retriever_svc.index.protocol import SearchOptions
from retriever_svc.index.spec import IndexSpec

EF_CONSTRUCTION = 200
DEFAULT_NPROBE = 8
DEFAULT_EF = 64
KINDS = "Flat, HNSW<M>, HNSW<M>,SQ8, IVF<n>,Flat, IVF<n>,SQ8 and IVF<n>,PQ<m>"
PATTERN = re.compile(
    r"(?P<flat>Flat)|HNSW(?P<links>\d+)(?:,(?P<graph>Flat|SQ8))?"
    r"|IVF(?P<cells>\d+),(?:(?P<codes>Flat|SQ8)|PQ(?P<parts>\d+)(?:x(?P<bits>\d+))?)"
)


@dataclass(frozen=True)
class MilvusKind:
    """An index type of Milvus, how to build it, and how far a search looks where a request does not say."""

    index_type: str
    build: Mapping[str, int | str]
    nprobe: int = 0
    ef_search: int = 0

    @property
    def has_cells(self) -> bool:
        """Whether `nprobe` is for it."""
        return self.index_type.startswith("IVF")

    @property
    def has_graph(self) -> bool:
        """Whether `ef_search` is for it."""
        return self.index_type.startswith("HNSW")

    def search_parameters(self, n_candidates: int, options: SearchOptions, spec: IndexSpec) -> dict[str, int]:
        """Milvus's parameters of a search; it wants `ef` to be no less than the candidates asked for."""
        if self.has_cells:
            asked, n_cells = options.nprobe or self.nprobe, int(self.build["nlist"])
            return {"nprobe": cells_to_visit(asked, n_cells, n_candidates, options, spec)}
        if self.has_graph:
            asked = options.ef_search or self.ef_search
            return {"ef": max(candidates_to_follow(asked, n_candidates, options, spec), n_candidates)}
        return {}


def milvus_kind(spec: IndexSpec) -> MilvusKind:
    """The kind of index that a factory string names.

    Raises:
        InvalidInputError: Milvus has no such kind, precision or search parameter.
    """
    found = PATTERN.fullmatch(spec.factory)
    if found is None:
        raise InvalidInputError(
            "index_factory", f"index_factory {spec.factory!r} has no counterpart in Milvus, which has {KINDS}"
        )
    if spec.precision != "float32":
        raise InvalidInputError("index_precision", "index_precision float16 is not for Milvus: use float32, or SQ8")
    index_type, build = _type_of(found)
    parameters = _parse(spec)
    nprobe, ef_search = parameters.pop("nprobe", 0), parameters.pop("efSearch", 0)
    kind = MilvusKind(index_type, build, nprobe or DEFAULT_NPROBE, ef_search or DEFAULT_EF)
    if parameters or (nprobe and not kind.has_cells) or (ef_search and not kind.has_graph):
        raise InvalidInputError(
            "index_search_parameters",
            f"index_search_parameters {spec.search_parameters!r} do not fit index_factory {spec.factory!r} in Milvus, "
            "which takes nprobe=<n> for IVF and efSearch=<n> for HNSW",
        )
    return kind


def _type_of(found: re.Match[str]) -> tuple[str, dict[str, int | str]]:
    part = found.groupdict()
    if part["flat"]:
        return "FLAT", {}
    if part["links"]:
        build: dict[str, int | str] = {"M": int(part["links"]), "efConstruction": EF_CONSTRUCTION}
        return ("HNSW_SQ", {**build, "sq_type": "SQ8"}) if part["graph"] == "SQ8" else ("HNSW", build)
    cells = {"nlist": int(part["cells"])}
    if part["parts"]:
        return "IVF_PQ", {**cells, "m": int(part["parts"]), "nbits": int(part["bits"] or 8)}
    return f"IVF_{part['codes'].upper()}", {**cells}


def _parse(spec: IndexSpec) -> dict[str, int]:
    pairs = [pair.partition("=") for pair in spec.search_parameters.split(",") if pair]
    return {name.strip(): int(value) if value.strip().isdigit() else 0 for name, _, value in pairs}
