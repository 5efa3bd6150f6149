"""Health, reflection, metrics port and drain of a server in this process."""

from __future__ import annotations

import asyncio
import socket
import time
import urllib.request
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from ragserve.errors import InvalidInputError
from ragserve.serving.channel import channel
from ragserve.serving.metrics import Metrics
from ragserve.serving.ports import address
from ragserve.serving.server import Server
from tests.serving.conftest import Running, until
from tests.serving.echo import RETRIEVE, SERVICE_NAMES, Echo, settings

SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING


async def health(running: Running) -> dict[str, int]:
    stub = health_pb2_grpc.HealthStub(running.channel)
    names = ("", *SERVICE_NAMES, "liveness")
    return {name: (await stub.Check(health_pb2.HealthCheckRequest(service=name))).status for name in names}


def scrape(running: Running) -> str:
    with urllib.request.urlopen(f"http://127.0.0.1:{running.server.metrics_port}/metrics") as response:
        return response.read().decode()


async def test_health_follows_the_life_of_the_server(loading: Running) -> None:
    ready = ("", *SERVICE_NAMES)
    assert await health(loading) == {**dict.fromkeys(ready, NOT_SERVING), "liveness": SERVING}
    await loading.server.set_serving()
    assert await health(loading) == {**dict.fromkeys(ready, SERVING), "liveness": SERVING}


async def test_health_of_unknown_services(running: Running) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await health_pb2_grpc.HealthStub(running.channel).Check(health_pb2.HealthCheckRequest(service="other"))
    assert caught.value.code() is grpc.StatusCode.NOT_FOUND


async def test_watchers_see_the_drain_and_do_not_hold_it_up(running: Running) -> None:
    watch = health_pb2_grpc.HealthStub(running.channel).Watch(health_pb2.HealthCheckRequest())
    assert (await watch.read()).status == SERVING
    started = time.monotonic()
    await running.server.drain(30)
    assert time.monotonic() - started < 25
    assert (await watch.read()).status == NOT_SERVING


async def test_watchers_that_leave_are_forgotten(running: Running) -> None:
    watch = health_pb2_grpc.HealthStub(running.channel).Watch(health_pb2.HealthCheckRequest())
    await watch.read()
    watch.cancel()
    await running.server.drain(30)


async def test_streams_that_nobody_reads_do_not_hold_up_the_drain(running: Running) -> None:
    stream = reflection_pb2_grpc.ServerReflectionStub(running.channel).ServerReflectionInfo()
    await stream.write(reflection_pb2.ServerReflectionRequest(list_services=""))
    await stream.read()
    started = time.monotonic()
    await running.server.drain(30)
    assert time.monotonic() - started < 25
    assert await stream.code() in (grpc.StatusCode.CANCELLED, grpc.StatusCode.UNAVAILABLE)


async def reflected(running: Running) -> list[str]:
    async def ask() -> Any:
        yield reflection_pb2.ServerReflectionRequest(list_services="")

    stub = reflection_pb2_grpc.ServerReflectionStub(running.channel)
    responses = [response async for response in stub.ServerReflectionInfo(ask())]
    return [service.name for service in responses[0].list_services_response.service]


async def test_reflection_names_all_services(running: Running) -> None:
    others = ["grpc.health.v1.Health", "grpc.reflection.v1alpha.ServerReflection"]
    assert sorted(await reflected(running)) == sorted([*SERVICE_NAMES, *others])


@pytest.mark.parametrize("loading", [{"reflection": False}], indirect=True)
async def test_reflection_can_be_left_out(running: Running) -> None:
    stream = reflection_pb2_grpc.ServerReflectionStub(running.channel).ServerReflectionInfo()
    # Nothing is written: on a stream that the server has already refused, gRPC calls that an internal error.
    assert await stream.code() is grpc.StatusCode.UNIMPLEMENTED


async def test_metrics_are_scraped_over_http(running: Running) -> None:
    await running.retrieve("hello")
    with running.metrics.clock().measure("search"):
        pass
    text = await asyncio.to_thread(scrape, running)
    labels = 'grpc_method="Retrieve",grpc_service="ragserve.v1.RetrieverService"'
    assert f'grpc_server_handled_total{{grpc_code="OK",{labels}}} 1.0' in text
    assert f"grpc_server_handling_seconds_count{{{labels}}} 1.0" in text
    assert "ragserve_search_seconds_count 1.0" in text
    assert "process_resident_memory_bytes" in text


async def test_a_drain_lets_calls_finish(running: Running) -> None:
    call = asyncio.ensure_future(running.retrieve("sleep 0.5"))
    await running.echo.entered.wait()
    await running.server.drain(30)
    assert (await call).results[0].decoded_query == "sleep 0.5"


async def test_a_drain_ends_calls_after_the_grace(running: Running) -> None:
    call = asyncio.ensure_future(running.retrieve("sleep 60"))
    await running.echo.entered.wait()
    started = time.monotonic()
    await running.server.drain(0.2)
    assert time.monotonic() - started < 25
    with pytest.raises(grpc.aio.AioRpcError):
        await call


async def test_a_rolling_restart_loses_no_call() -> None:
    servers = [await serving() for _ in range(2)]
    addresses = ",".join(f"127.0.0.1:{server.port}" for server in servers)
    async with channel(f"ipv4:{addresses}", retried_methods=[RETRIEVE]) as both:
        running = Running(servers[0], Echo(), Metrics(), both)
        calls = 0

        async def call_on() -> None:
            nonlocal calls
            for _ in range(30):
                await running.retrieve("sleep 0.001", timeout=60)
                calls += 1

        callers = asyncio.gather(*(call_on() for _ in range(4)), return_exceptions=True)
        await until(lambda: calls > 20)
        await servers[0].drain(30)
        failures = [failure for failure in await callers if failure is not None]
    await servers[1].drain(0)
    assert (failures, calls) == ([], 120)


async def serving() -> Server:
    echo = Echo()
    server = Server(settings(), name="echo", service_names=SERVICE_NAMES, register=echo.register, metrics=Metrics())
    await server.listen()
    await server.set_serving()
    return server


async def test_channels_may_avoid_replicas_that_are_not_ready(loading: Running) -> None:
    ready = await serving()
    target = f"ipv4:{loading.target},127.0.0.1:{ready.port}"
    async with channel(target, health_service=SERVICE_NAMES[0]) as both:
        running = Running(loading.server, loading.echo, loading.metrics, both)
        for _ in range(10):
            assert (await running.retrieve("hello")).results
    await ready.drain(0)


@pytest.mark.parametrize(("port", "metrics_port", "field"), [(1, 0, "server.port"), (0, 1, "server.metrics_port")])
async def test_ports_in_use_are_named(port: int, metrics_port: int, field: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        number = taken.getsockname()[1]
        chosen = settings(port=port * number, metrics_port=metrics_port * number)
        server = Server(chosen, name="echo", service_names=[], register=Echo().register, metrics=Metrics())
        with pytest.raises(InvalidInputError, match=f"127.0.0.1:{number}: address already in use") as caught:
            await server.listen()
    assert caught.value.field == field
    await server.drain(0)


async def test_hosts_that_are_not_here_are_named() -> None:
    for host in ("no-such-host.invalid", "x" * 70, "a\0b"):
        chosen = settings(port=50051, host=host)
        server = Server(chosen, name="echo", service_names=[], register=Echo().register, metrics=Metrics())
        with pytest.raises(InvalidInputError, match=f"{host}:50051") as caught:
            await server.listen()
        assert caught.value.field == "server.port"


@pytest.mark.parametrize("loading", [{"host": "::1", "metrics_host": "::1"}], indirect=True)
async def test_ipv6(running: Running) -> None:
    async with channel(address("::1", running.server.port)) as over_ipv6:
        six = Running(running.server, running.echo, running.metrics, over_ipv6)
        assert (await six.retrieve("hello")).results


async def test_in_flight_goes_back_to_zero(running: Running) -> None:
    await asyncio.gather(*(running.retrieve("hello") for _ in range(20)))
    await until(lambda: running.metrics.registry.get_sample_value("ragserve_calls_in_flight") == 0)
