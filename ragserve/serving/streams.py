"""Tells the end that a client gave its stream of requests from the end of a stream that broke."""

from __future__ import annotations

import asyncio
from typing import Any


async def require_ended_by_client(context: Any) -> None:
    """Return only if the client itself ended the requests that were just read to their end.

    grpc.aio shows a call that was cancelled, and one whose client died, as the end of its requests too, and cancels the
    handler some time later: what came until then would pass for all. So something is sent: that fails on a broken
    stream.
    A handler may call this once, and may not send initial metadata itself.

    Raises:
        CancelledError: the stream broke.
    """
    try:
        await context.send_initial_metadata(())
    except Exception as error:  # of a class that grpc keeps to itself
        raise asyncio.CancelledError("the client's stream broke") from error
