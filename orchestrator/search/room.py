"""How much of a step one message of the generator has room for."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NoReturn

from ragserve.errors import ResourceExhaustedError

VALUE_BYTES = 4  # ids are int32, all else is float32
# Of what is not rows: framing, names, timings. The generator reckons with as much, and refuses what does not fit.
ENVELOPE_BYTES = 4096


@dataclass(frozen=True)
class Room:
    """In messages of at most `max_bytes`, where a row has `n_docs` documents (1 in sequence mode).

    A row has `n_docs` log-probabilities of each candidate and requested token, and as many normalizers. Beside them
    are the candidates' ids and the mass; requested tokens are counted as if they had ids too.
    """

    max_bytes: int
    n_docs: int

    def rows(self, candidates: int, requested: int = 0) -> int:
        """How many rows of so many candidates and requested tokens fit into one message."""
        return self._values // ((candidates + requested + 1) * (self.n_docs + 1))

    def candidates(self, rows: int, requested: int = 0) -> int:
        """The most candidates for each of `rows` rows in one message. Raises ResourceExhaustedError for none."""
        most = self._values // rows // (self.n_docs + 1) - requested - 1
        return most if most > 0 else self.refuse(1)

    def refuse(self, candidates: int) -> NoReturn:
        """Raises: one message has no room for so many candidates."""
        raise ResourceExhaustedError(
            f"{candidates} x {self.n_docs} log-probabilities of a step do not fit into a message of {self.max_bytes} "
            "bytes; raise it in the orchestrator and the generator, or ask for fewer documents",
            field="server.max_message_bytes",
        )

    @property
    def _values(self) -> int:
        return max(self.max_bytes - ENVELOPE_BYTES, 0) // VALUE_BYTES
