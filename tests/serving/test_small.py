"""Logs, deadlines and channel options."""

from __future__ import annotations

import io
import json
import logging
import shlex

import pytest

from ragserve.errors import ResourceExhaustedError, UnavailableError
from ragserve.serving.admission import Admission, Phase
from ragserve.serving.channel import RETRIED_CODES, channel_options, service_config
from ragserve.serving.deadlines import remaining_seconds
from ragserve.serving.logs import KeyValueFormatter, fields
from ragserve.serving.metrics import Metrics


def logged(message: str, **values: object) -> str:
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    handler.setFormatter(KeyValueFormatter("echo"))
    logger = logging.Logger("test")
    logger.addHandler(handler)
    try:
        _ = 1 / 0
    except ZeroDivisionError:
        logger.exception(message, extra=fields(**values))
    return stream.getvalue()


def test_a_log_is_one_line_of_pairs() -> None:
    line = logged('said "no"\n', port=7, text="a=b", empty="")
    assert line.count("\n") == 1
    pairs = dict(part.split("=", 1) for part in shlex.split(line))
    assert (pairs["level"], pairs["service"], pairs["port"], pairs["text"], pairs["empty"]) == (
        *("error", "echo", "7", "a=b", ""),
    )
    assert json.loads(line.partition(" msg=")[2].partition(" port=")[0]) == 'said "no"\n'
    assert "ZeroDivisionError" in pairs["traceback"]
    assert pairs["time"].endswith("Z")


class Context:
    def __init__(self, seconds: float | None) -> None:
        self._seconds = seconds

    def time_remaining(self) -> float | None:
        return self._seconds


@pytest.mark.parametrize(("seconds", "expected"), [(None, None), (2.5, 2.5), (-0.1, 0.0)])
def test_remaining_seconds(seconds: float | None, expected: float | None) -> None:
    assert remaining_seconds(Context(seconds)) == expected


def test_only_the_named_methods_are_tried_again() -> None:
    config = service_config(["/ragserve.v1.RagService/Score"], 3)
    assert config["loadBalancingConfig"] == [{"round_robin": {}}]
    (method,) = config["methodConfig"]
    assert method["name"] == [{"service": "ragserve.v1.RagService", "method": "Score"}]
    assert (method["retryPolicy"]["maxAttempts"], method["retryPolicy"]["retryableStatusCodes"]) == (3, RETRIED_CODES)
    for without in (service_config([], 3), service_config(["/a/b"], 1)):
        assert "methodConfig" not in without


def test_options_of_channels() -> None:
    options = dict(channel_options(max_message_bytes=4096, health_service="x"))
    assert options["grpc.max_send_message_length"] == options["grpc.max_receive_message_length"] == 4096
    assert json.loads(options["grpc.service_config"])["healthCheckConfig"] == {"serviceName": "x"}


async def test_admission_by_phase_and_number() -> None:
    metrics = Metrics()
    admission = Admission("echo", 1, metrics.in_flight)
    with pytest.raises(UnavailableError, match="the echo is loading"):
        admission.admit()
    admission.phase = Phase.SERVING
    admission.admit()
    with pytest.raises(ResourceExhaustedError):
        admission.admit()
    assert metrics.registry.get_sample_value("ragserve_calls_in_flight") == 1
    admission.release()
    await admission.wait_idle()
    admission.phase = Phase.DRAINING
    with pytest.raises(UnavailableError, match="shutting down"):
        admission.admit()
