"""Answers the requests of a stream as they finish. Knows no transport."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import TypeVar

from ragserve.serving.tasks import together

In = TypeVar("In")
Out = TypeVar("Out")


async def pipelined(
    requests: AsyncIterator[In], answer: Callable[[In], Awaitable[Out]], at_most: int
) -> AsyncIterator[Out]:
    """The answers to requests, as they finish, in any order; no more than `at_most` are at work or not yet taken.

    Beyond that no request is read, which holds the sender up. What is at work is cancelled when the caller stops. Where
    reading a request fails, the requests before it are answered, and then the error is raised. Where an answer fails,
    the others are cancelled.
    """
    free = asyncio.Semaphore(at_most)
    answers: asyncio.Queue[Out | None] = asyncio.Queue()

    async def work(request: In) -> None:
        answers.put_nowait(await answer(request))

    async def read() -> None:
        failure: Exception | None = None
        try:
            async with together() as group:
                await free.acquire()
                try:
                    async for request in requests:
                        group.create_task(work(request))
                        await free.acquire()
                except Exception as error:
                    failure = error
        finally:
            answers.put_nowait(None)
        if failure is not None:
            raise failure

    reader = asyncio.create_task(read())
    try:
        while (response := await answers.get()) is not None:
            yield response
            free.release()
        await reader
    finally:
        reader.cancel()
