"""Says why a call failed where gRPC's own words do not: nobody there, another service there, too little time."""

from __future__ import annotations

import re
from dataclasses import dataclass

import grpc

from ragserve.errors import DeadlineExceededError, FailedPreconditionError, RagserveError, UnavailableError
from ragserve.serving.status import error_from_rpc, is_from_service


@dataclass(frozen=True)
class Service:
    """A service as its callers know it: what it is called, its full gRPC name, its usual port."""

    role: str
    name: str
    port: int


ORCHESTRATOR = Service("orchestrator", "ragserve.v1.RagService", 50051)
RETRIEVER = Service("retriever", "ragserve.v1.RetrieverService", 50061)
GENERATOR = Service("generator", "ragserve.v1.GeneratorService", 50062)
SERVICES = (ORCHESTRATOR, RETRIEVER, GENERATOR)

# What gRPC says of a connection that could not be made, and what that means. The first that is found counts.
REASONS = (
    (r"errors? resolving|resolution failed|lookup", "the host of {target} is not known: its name was not resolved"),
    (r"Connection refused", "nothing listens at {target} (connection refused): is the {role} running?"),
    (
        r"backend unhealthy",
        "what listens at {target} is not ready as the {role}: it is starting or stopping, or it is another service",
    ),
    (r"No such file", "there is no socket at {target}: is the {role} running?"),
    (
        r"parsing HTTP/2|SETTINGS frame",
        "what listens at {target} does not speak gRPC: it may be a port of metrics, or a web server",
    ),
    (
        r"all backends failing.*(Socket closed|reset by peer|handshak|EOF)",
        "{target} closed the connection at once: it may expect TLS, and this client speaks gRPC without TLS",
    ),
    (
        r"imed out|imeout|unreachable|No route",
        "{target} cannot be reached: no host answers there, or a firewall is between",
    ),
)


# What gRPC says where no connection was there, so that nothing was sent.
NOT_SENT = re.compile(
    r"failed to connect to all addresses|connections? to all backends failing|resolution failed|errors? resolving"
)
# Statuses that gRPC itself gives a call, whether or not the service has done what it was asked for.
BROKEN = (
    grpc.StatusCode.UNAVAILABLE,
    grpc.StatusCode.DEADLINE_EXCEEDED,
    grpc.StatusCode.CANCELLED,
    grpc.StatusCode.INTERNAL,
    grpc.StatusCode.UNKNOWN,
)


@dataclass(frozen=True)
class Called:
    """The service and the target of a call, its time limit, and whether that is over."""

    service: Service
    target: str
    timeout_seconds: float | None = None
    late: bool = False


def outcome_unknown(error: grpc.RpcError) -> bool:
    """Whether the service may have done what it was asked for, although the call failed."""
    code = error.code()
    if is_from_service(error):
        return code is grpc.StatusCode.INTERNAL  # a bug, at any point of its work
    if code is grpc.StatusCode.UNAVAILABLE:
        return not NOT_SENT.search(error.details() or "")
    return code in BROKEN


def explained(error: grpc.RpcError, called: Called, found: Service | None = None) -> RagserveError:
    """The error that a failed call stands for. `found`: the service that answers there, if that is known."""
    ours = error_from_rpc(error)
    code = error.code()
    if code is grpc.StatusCode.DEADLINE_EXCEEDED:
        return _too_slow(ours if is_from_service(error) else None, called)
    if is_from_service(error):
        return ours
    if called.late and code is grpc.StatusCode.UNAVAILABLE:  # the server ended the call, and an old connection with it
        return _too_slow(None, called)
    if code is grpc.StatusCode.UNIMPLEMENTED:
        return FailedPreconditionError(_wrong_service(called, found), field="target")
    if code is grpc.StatusCode.UNAVAILABLE:
        return UnavailableError(_unreachable(error.details() or "", called))
    return ours


def _too_slow(ours: RagserveError | None, called: Called) -> DeadlineExceededError:
    """Names the deadline that the caller set."""
    if called.timeout_seconds is None:
        return DeadlineExceededError(ours.message if ours else f"the {called.service.role} was too slow")
    what = ours.message if ours else f"no answer from the {called.service.role} at {called.target}"
    return DeadlineExceededError(
        f"{what}: timeout_seconds was {called.timeout_seconds:g}; raise it, or ask for less",
        field=ours.field if ours else "",
    )


def _wrong_service(called: Called, found: Service | None) -> str:
    wanted = called.service
    if found == wanted:
        return f"the {wanted.role} at {called.target} does not have this method: it is older than this client"
    ports = ", ".join(f"the {service.role}'s is {service.port}" for service in SERVICES)
    if found is None:
        return f"{called.target} is not the {wanted.role}: it does not serve {wanted.name}. Usual ports: {ports}"
    return f"{called.target} is the {found.role}, not the {wanted.role}. Usual ports: {ports}"


def _unreachable(details: str, called: Called) -> str:
    for pattern, meaning in REASONS:
        if re.search(pattern, details):
            return meaning.format(target=called.target, role=called.service.role)
    return f"the connection to the {called.service.role} at {called.target} was lost: {details or 'no reason is known'}"
