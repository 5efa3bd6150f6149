"""Where a service listens: reads targets such as HOST:PORT, once and with errors that say what to write."""

from __future__ import annotations

import ipaddress
import re

from ragserve.arguments import refused, shown
from ragserve.errors import InvalidInputError

EXAMPLE = "write HOST:PORT, such as localhost:50051"
LARGEST_PORT = 65535
# Schemes of gRPC whose rest is no HOST:PORT: paths of sockets, and names that a control plane resolves.
OTHER_SCHEMES = ("unix", "unix-abstract", "vsock", "xds")
WEB_SCHEMES = ("http", "https", "grpc", "grpcs", "tcp")


def parse_target(value: object, field: str = "target") -> str:
    """The target as gRPC takes it; `field` names it in errors.

    HOST:PORT, [IPv6]:PORT, dns:///HOST:PORT, ipv4:HOST:PORT[,...], ipv6:[HOST]:PORT[,...], unix:PATH,
    unix-abstract:NAME, vsock:CID:PORT, xds:///NAME.

    Raises:
        InvalidInputError: it is none of these.
    """
    if not isinstance(value, str):
        raise refused(field, field, value, f"a text: {EXAMPLE}")
    if not value.isascii() or not value.isprintable() or re.search(r"\s", value):
        raise InvalidInputError(field, f"{field} is {shown(value)}, which has white space or other characters that no "
                                f"address has; {EXAMPLE}")  # fmt: skip
    if not value:
        raise InvalidInputError(field, f"{field} is empty; {EXAMPLE}")
    scheme, colon, rest = value.partition(":")
    if scheme.lower() in WEB_SCHEMES and rest.startswith("//"):
        place = rest.lstrip("/").partition("/")[0] or "HOST:PORT"
        raise InvalidInputError(
            field, f"{field} is {shown(value)}; write HOST:PORT without {scheme}://, such as {place}"
        )
    if colon and scheme in OTHER_SCHEMES:
        if not rest.strip("/"):
            raise InvalidInputError(field, f"{field} is {shown(value)}, which says nothing after {scheme}:; {EXAMPLE}")
        return value
    if scheme in ("ipv4", "ipv6") and colon:
        for part in rest.lstrip("/").split(","):
            _check_place(field, value, part)
    elif scheme == "dns" and colon and not rest.isdigit():
        _check_place(field, value, re.sub(r"^//[^/]*/", "", rest))
    elif "://" in value:
        raise InvalidInputError(field, f"{field} is {shown(value)}, and gRPC knows no {scheme}://; {EXAMPLE}")
    else:
        _check_place(field, value, value)
    return value


def _check_place(field: str, value: str, place: str) -> None:
    """Raises InvalidInputError unless the place is HOST:PORT."""
    bracketed = re.fullmatch(r"\[([^\]]*)\](.*)", place)
    host, rest = (bracketed[1], bracketed[2]) if bracketed else (place.partition(":")[0], place[place.find(":") :])
    if not bracketed and place.count(":") > 1:
        raise InvalidInputError(
            field, f"{field} is {shown(value)}, which has more than one colon; write IPv6 addresses as [ADDRESS]:PORT"
        )
    if bracketed and not _is_ipv6(host):
        raise InvalidInputError(field, f"{field} is {shown(value)}, and {shown(host)} is no IPv6 address; {EXAMPLE}")
    if not host:
        raise InvalidInputError(field, f"{field} is {shown(value)}, which has no host; {EXAMPLE}")
    if not bracketed and not re.fullmatch(r"[\w.-]+", host):
        raise InvalidInputError(field, f"{field} is {shown(value)}, and {shown(host)} is no name of a host; {EXAMPLE}")
    port = rest.removeprefix(":")
    if not rest.startswith(":") or not port:
        raise InvalidInputError(field, f"{field} is {shown(value)}, which has no port; {EXAMPLE}")
    if not re.fullmatch(r"\d{1,5}", port) or not 1 <= int(port) <= LARGEST_PORT:
        raise InvalidInputError(
            field, f"{field} is {shown(value)}, and {shown(port)} is no port from 1 to {LARGEST_PORT}; {EXAMPLE}"
        )


def _is_ipv6(host: str) -> bool:
    try:
        ipaddress.IPv6Address(host)
    except ValueError:
        return False
    return True
