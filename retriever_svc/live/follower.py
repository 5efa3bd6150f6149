"""Follows the versions of a knowledge base: loads new ones beside those that answer, and swaps one pointer.

Searches never wait. Commits and refreshes take turns; a rebuild of the index runs in the background, when what changed
since the last one has grown past a threshold.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from types import MappingProxyType

import pyarrow as pa

from ragserve.errors import RagserveError
from ragserve.serving.logs import fields
from ragserve.serving.memory import trim
from retriever_svc.index import builds_interrupted
from retriever_svc.knowledge import reading
from retriever_svc.live.changes import linear_changes
from retriever_svc.live.lineage import Lineage
from retriever_svc.live.priority import LancePriority, be_nice
from retriever_svc.live.snapshot import Snapshot
from retriever_svc.loading import KnowledgeSource
from retriever_svc.rows import MemoryRows

# A version that was removed by a compaction, is another encoder's, is damaged, or cannot be indexed.
UNREADABLE = (RagserveError, OSError, RuntimeError, ValueError)
ATTEMPTS = 3  # to load the newest version, each of a newer one than before

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class FollowOptions:
    """How versions are kept; each is documented in `RetrieverSettings`."""

    keep_versions: int = 2
    rebuild_min_rows: int = 1_000
    rebuild_fraction: float = 0.1

    def limit(self, base_rows: int) -> int:
        """Changed rows from which on the index is built anew."""
        return max(self.rebuild_min_rows, int(self.rebuild_fraction * base_rows))


@dataclass(frozen=True)
class FollowEvents:
    """Who is told what happens; called from any thread."""

    swapped: Callable[[float], None] = lambda _seconds: None  # a rebuilt index took this long to put in place
    failed: Callable[[], None] = lambda: None  # a version could not be loaded, or its index not built


class Follower:
    """The loaded versions of a knowledge base. Reading `snapshots` is free; the other methods may block."""

    def __init__(self, source: KnowledgeSource, options: FollowOptions, events: FollowEvents | None = None) -> None:
        self._source = source
        self._options = options
        self._events = events or FollowEvents()
        self._lock = threading.Lock()
        self._snapshots: Mapping[int, Snapshot] = {}
        self._lineage = Lineage(source.path, 0, None, None)  # of the newest version loaded
        self._background = ThreadPoolExecutor(1, thread_name_prefix="index-build", initializer=be_nice)
        self._rebuild: Future[None] | None = None
        self._failed_at: int | None = None  # the version whose index could not be built
        self._lance = LancePriority()
        self._closed = False

    @property
    def snapshots(self) -> Mapping[int, Snapshot]:
        """The loaded versions; a new mapping each time one comes or goes."""
        return self._snapshots

    @property
    def newest(self) -> Snapshot:
        """The newest version loaded."""
        snapshots = self._snapshots
        return snapshots[max(snapshots)]

    def load(self) -> None:
        """Load the newest versions for the first time. Raises what `KnowledgeSource` raises."""
        with self._lock, reading(self._source.path):
            knowledge = self._source.open(self._source.newest())
            base = Snapshot.of_base(self._source.first_base(knowledge))
            self._load_up_to(knowledge.version, {base.version: base})

    def behind(self) -> int:
        """By how many versions the newest loaded one is behind the newest committed one. Raises as `refresh`."""
        with reading(self._source.path):
            return max(0, self._source.newest() - self.newest.version)

    def check_history(self) -> None:
        """Check that what is committed next follows from what is loaded. Raises as `refresh`."""
        with reading(self._source.path):
            self._lineage.check(self._source.newest())

    def refresh(self) -> Snapshot:
        """Load what was committed meanwhile; the newest version then.

        Raises what `KnowledgeSource` raises, and FailedPreconditionError when the folder was replaced by another one.
        """
        with self._lock:
            for left in reversed(range(ATTEMPTS)):
                if self._try_refresh(last=not left):
                    break
            self._rebuild_if_due()
            return self.newest

    def _try_refresh(self, *, last: bool) -> bool:
        """Load the newest version; False where it cannot be read and a newer one came: it may have been removed."""
        with reading(self._source.path):
            newest = self._source.newest()
            self._lineage.check(newest)
            try:
                if newest > self.newest.version and not self._closed:
                    self._load_up_to(newest, dict(self._snapshots))
            except UNREADABLE:
                if last or self._source.newest() == newest:
                    raise
                return False
        return True

    def wait(self) -> None:
        """Wait until no rebuild is at work."""
        with self._lock:
            rebuild = self._rebuild
        if rebuild is not None:
            rebuild.result()

    def close(self) -> None:
        """Stop following. An index that is being built is given up, so that nobody waits minutes for it."""
        self._closed = True
        with builds_interrupted():
            self._background.shutdown(cancel_futures=True)
            with self._lock:  # a refresh at work may be building one as well
                pass

    def _load_up_to(self, newest: int, known: dict[int, Snapshot]) -> None:
        """Put the newest versions in place: those that are known, and the others made from their neighbours."""
        wanted: dict[int, Snapshot] = {}
        for version in range(newest, max(newest - self._options.keep_versions, 0), -1):
            if version in known:
                wanted[version] = known[version]
                continue
            try:
                wanted[version] = known[version] = self._snapshot(version, known)
            except UNREADABLE as error:  # no reason not to go on to the newest
                if version == newest:
                    raise
                log.warning("an older version is not loaded", extra=fields(version=version, reason=error))
        self._snapshots = MappingProxyType(wanted)
        self._lineage = Lineage.of(self._source.path, newest)
        if all(isinstance(snapshot.base.rows, MemoryRows) for snapshot in wanted.values()):
            self._lance.lower()

    def _snapshot(self, version: int, known: Mapping[int, Snapshot]) -> Snapshot:
        """A version from the nearest one before it, from any base that it shares enough rows with, or from scratch."""
        knowledge = self._source.open(version)
        for earlier in sorted((v for v in known if v < version), reverse=True)[:1]:
            changes = linear_changes(earlier, knowledge.dataset)
            if changes is not None:
                return known[earlier].advanced(knowledge.dataset, changes)
        for neighbour in sorted(known.values(), key=lambda snapshot: abs(snapshot.version - version)):
            limit = self._options.limit(neighbour.base.index.size)
            if (derived := neighbour.derived(knowledge.dataset, limit)) is not None:
                return derived
        log.info("another content, indexed from scratch", extra=fields(version=version, passages=knowledge.passages))
        return Snapshot.of_base(self._source.base(knowledge, or_exact=True))

    def _rebuild_if_due(self) -> None:
        newest = self.newest
        if self._closed or (self._rebuild is not None and not self._rebuild.done()):
            return
        if newest.changed > self._options.limit(newest.base.index.size) and newest.version != self._failed_at:
            self._rebuild = self._background.submit(self._build, newest.version)

    def _build(self, version: int) -> None:
        """Build the index of a version, and put all loaded versions on it."""
        started = time.monotonic()
        log.info("rebuilding the index", extra=fields(version=version))
        try:
            base = Snapshot.of_base(self._source.base(self._source.open(version), self._snapshots.get(version)))
            if self.newest.base.filtered:
                base.base.metadata.load()
            built = time.monotonic()
            with self._lock, reading(self._source.path):
                self._lineage.check(self._source.newest())
                self._snapshots = MappingProxyType(self._moved(base))
        except Exception as error:
            if self._closed:
                log.info("rebuild given up", extra=fields(version=version))
                return
            self._failed_at = version
            self._events.failed()
            log.exception("index not rebuilt, the old one stays", extra=fields(version=version, reason=error))
            return
        swapped = time.monotonic() - built
        self._events.swapped(swapped)
        log.info("index rebuilt", extra=fields(version=version, build_seconds=built - started, swap_seconds=swapped))
        pa.default_memory_pool().release_unused()
        trim()

    def _moved(self, base: Snapshot) -> dict[int, Snapshot]:
        """The loaded versions over a new base; one that has too little in common with it keeps its own."""
        moved: dict[int, Snapshot] = {base.version: base} if base.version in self._snapshots else {}
        previous = base
        for version, snapshot in sorted(self._snapshots.items()):
            if version == base.version:
                continue
            try:
                dataset = self._source.open(version).dataset
                changes = linear_changes(previous.version, dataset) if version > base.version else None
                if changes is not None:
                    moved[version] = previous = previous.advanced(dataset, changes)
                else:
                    limit = self._options.limit(base.base.index.size)
                    moved[version] = base.derived(dataset, limit) or snapshot
            except UNREADABLE:  # what is loaded of it goes on
                if version > base.version:
                    raise
                moved[version] = snapshot
        return moved
