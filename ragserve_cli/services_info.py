"""Asks the retriever and the generator what they have loaded."""

from __future__ import annotations

from contextlib import closing
from typing import Any

from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.json_format import MessageToDict

from ragserve.calls import TimeLeft
from ragserve.connection import Connection, MakeStub
from ragserve.failures import GENERATOR, RETRIEVER, Service
from ragserve.targets import parse_target
from ragserve.v1 import generator_pb2, generator_pb2_grpc, retriever_pb2, retriever_pb2_grpc

# JSON of protobuf writes these as texts, since JavaScript has no whole numbers of 64 bits.
INT64 = (FieldDescriptor.CPPTYPE_INT64, FieldDescriptor.CPPTYPE_UINT64)


def read_info(retriever: str, generator: str, timeout: float) -> dict[str, dict[str, Any]]:
    """What both say, by service and field.

    Raises:
        RagserveError: one of them does not answer, or is another service.
    """
    parse_target(retriever, "--retriever")
    parse_target(generator, "--generator")
    stub, request = retriever_pb2_grpc.RetrieverServiceStub, retriever_pb2.RetrieverServiceGetInfoRequest()
    found = {"retriever": _info(stub, RETRIEVER, retriever, request, timeout)}
    other, asked = generator_pb2_grpc.GeneratorServiceStub, generator_pb2.GeneratorServiceGetInfoRequest()
    return {**found, "generator": _info(other, GENERATOR, generator, asked, timeout)}


def _info(make_stub: MakeStub, service: Service, target: str, request: Any, timeout: float) -> dict[str, Any]:
    with closing(Connection(make_stub, service, target, (), 1)) as connection:
        message = connection.call("GetInfo", request, TimeLeft.of(timeout))
    values = MessageToDict(message, preserving_proto_field_name=True, always_print_fields_with_no_presence=True)
    return {name: _plain(message.DESCRIPTOR.fields_by_name[name], value) for name, value in values.items()}


def _plain(field: FieldDescriptor, value: Any) -> Any:
    """A value with its numbers as numbers, and `token` for MODE_TOKEN."""
    if isinstance(value, list):
        return [_plain(field, one) for one in value]
    if field.message_type is not None:
        fields = field.message_type.fields_by_name
        return {name: _plain(fields[name], one) for name, one in value.items()}
    if field.enum_type is not None:
        prefix = field.enum_type.values_by_number[0].name.removesuffix("UNSPECIFIED")
        return str(value).removeprefix(prefix).lower()
    return int(value) if field.cpp_type in INT64 else value
