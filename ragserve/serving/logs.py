"""Logs on stderr: one line each, key=value."""

from __future__ import annotations

import logging
import sys
from datetime import UTC, datetime

from ragserve.printable import to_json


class KeyValueFormatter(logging.Formatter):
    """`time=... level=info service=retriever msg="..."`, then the record's `fields` and its traceback."""

    def __init__(self, service: str) -> None:
        super().__init__()
        self._service = service

    def format(self, record: logging.LogRecord) -> str:
        """One line; values with spaces, quotes or line breaks are quoted as JSON strings."""
        moment = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")
        pairs: dict[str, object] = {
            "time": moment.replace("+00:00", "Z"),
            "level": record.levelname.lower(),
            "service": self._service,
            "msg": record.getMessage(),
            **getattr(record, "fields", {}),
        }
        if record.exc_info:
            pairs["traceback"] = self.formatException(record.exc_info)
        return " ".join(f"{key}={_quoted(value)}" for key, value in pairs.items())


def configure(service: str, level: str = "info") -> None:
    """Sends the logs of this process to stderr, marked with the service's name."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(KeyValueFormatter(service))
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)


def fields(**values: object) -> dict[str, dict[str, object]]:
    """Key-value pairs for `extra=` of a logging call."""
    return {"fields": values}


def _quoted(value: object) -> str:
    text = str(value)
    plain = text and text.isprintable() and not any(character in text for character in ' "=')
    return text if plain else to_json(text)
