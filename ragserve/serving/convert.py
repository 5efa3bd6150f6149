"""Stage timings as protobuf messages and back."""

from __future__ import annotations

from collections.abc import Iterable

from ragserve.serving.metrics import StageTiming
from ragserve.v1 import common_pb2


def timings_to_proto(timings: Iterable[StageTiming]) -> list[common_pb2.StageTiming]:
    """Messages in the order of the timings."""
    return [common_pb2.StageTiming(stage=t.stage, seconds=t.seconds, count=t.count) for t in timings]


def timings_from_proto(messages: Iterable[common_pb2.StageTiming]) -> tuple[StageTiming, ...]:
    """Timings in the order of the messages."""
    return tuple(StageTiming(m.stage, m.seconds, m.count) for m in messages)
