"""Channels to our services, with the options that all of them share."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import grpc
import grpc.aio

MAX_MESSAGE_BYTES = 64 * 2**20
MAX_ATTEMPTS = 4  # gRPC caps it at 5
# A server that stops answers a call that arrives in that very moment with CANCELLED. A caller's own cancellation
# is never tried again.
RETRIED_CODES = ["UNAVAILABLE", "CANCELLED"]
KEEPALIVE_MS = 30_000
KEEPALIVE_TIMEOUT_MS = 10_000
# A restarted replica is found soon: the first reconnects come quickly and names are resolved again.
FIRST_RECONNECT_MS = 100
SLOWEST_RECONNECT_MS = 3_000
RESOLVE_AGAIN_MS = 5_000

Options = list[tuple[str, Any]]


def channel(
    target: str,
    *,
    max_message_bytes: int = MAX_MESSAGE_BYTES,
    retried_methods: Sequence[str] = (),
    max_attempts: int = MAX_ATTEMPTS,
    health_service: str | None = None,
) -> grpc.aio.Channel:
    """An asyncio channel; see `channel_options`."""
    options = channel_options(
        max_message_bytes=max_message_bytes,
        retried_methods=retried_methods,
        max_attempts=max_attempts,
        health_service=health_service,
    )
    return grpc.aio.insecure_channel(target, options=options)


def sync_channel(
    target: str,
    *,
    max_message_bytes: int = MAX_MESSAGE_BYTES,
    retried_methods: Sequence[str] = (),
    max_attempts: int = MAX_ATTEMPTS,
) -> grpc.Channel:
    """A blocking channel; see `channel_options`."""
    options = channel_options(
        max_message_bytes=max_message_bytes, retried_methods=retried_methods, max_attempts=max_attempts
    )
    return grpc.insecure_channel(target, options=options)


def channel_options(
    *,
    max_message_bytes: int = MAX_MESSAGE_BYTES,
    retried_methods: Sequence[str] = (),
    max_attempts: int = MAX_ATTEMPTS,
    health_service: str | None = None,
) -> Options:
    """Round robin over all addresses of the target; `retried_methods` are tried again when a replica goes away.

    `retried_methods` are full names, such as "/ragserve.v1.RagService/Generate". With `health_service` the channel
    watches grpc.health.v1 and avoids replicas that are not SERVING under that name.
    """
    return [
        ("grpc.max_receive_message_length", max_message_bytes),
        ("grpc.max_send_message_length", max_message_bytes),
        ("grpc.keepalive_time_ms", KEEPALIVE_MS),
        ("grpc.keepalive_timeout_ms", KEEPALIVE_TIMEOUT_MS),
        ("grpc.initial_reconnect_backoff_ms", FIRST_RECONNECT_MS),
        ("grpc.max_reconnect_backoff_ms", SLOWEST_RECONNECT_MS),
        ("grpc.dns_min_time_between_resolutions_ms", RESOLVE_AGAIN_MS),
        ("grpc.use_local_subchannel_pool", 1),
        ("grpc.enable_http_proxy", 0),
        ("grpc.service_config", json.dumps(service_config(retried_methods, max_attempts, health_service))),
    ]


def service_config(
    retried_methods: Sequence[str], max_attempts: int, health_service: str | None = None
) -> dict[str, Any]:
    """The gRPC service config of a channel."""
    config: dict[str, Any] = {"loadBalancingConfig": [{"round_robin": {}}]}
    if retried_methods and max_attempts > 1:
        names = [dict(zip(("service", "method"), name.lstrip("/").split("/"), strict=True)) for name in retried_methods]
        policy = {
            "maxAttempts": max_attempts,
            "initialBackoff": "0.1s",
            "maxBackoff": "2s",
            "backoffMultiplier": 2,
            "retryableStatusCodes": RETRIED_CODES,
        }
        config["methodConfig"] = [{"name": names, "retryPolicy": policy}]
    if health_service is not None:
        config["healthCheckConfig"] = {"serviceName": health_service}
    return config
