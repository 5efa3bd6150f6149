"""Asks the retriever and the generator what they have loaded."""

from __future__ import annotations

from typing import Any

import grpc
from google.protobuf.json_format import MessageToDict

from ragserve.serving.channel import sync_channel
from ragserve.serving.status import error_from_rpc
from ragserve.v1 import generator_pb2, generator_pb2_grpc, retriever_pb2, retriever_pb2_grpc


def read_info(retriever: str, generator: str, timeout: float) -> dict[str, dict[str, Any]]:
    """What both say, by service and field.

    Raises:
        RagserveError: one of them does not answer.
    """
    try:
        with sync_channel(retriever) as channel:
            asked = retriever_pb2.RetrieverServiceGetInfoRequest()
            found = retriever_pb2_grpc.RetrieverServiceStub(channel).GetInfo(asked, timeout=timeout)
        with sync_channel(generator) as channel:
            request = generator_pb2.GeneratorServiceGetInfoRequest()
            info = generator_pb2_grpc.GeneratorServiceStub(channel).GetInfo(request, timeout=timeout)
    except grpc.RpcError as error:
        raise error_from_rpc(error) from None
    return {"retriever": _plain(found), "generator": _plain(info)}


def _plain(message: Any) -> dict[str, Any]:
    return dict(MessageToDict(message, preserving_proto_field_name=True, always_print_fields_with_no_presence=True))
