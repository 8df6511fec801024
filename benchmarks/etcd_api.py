"""Puts into etcd: the two messages of its gRPC API that the benchmark needs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

from benchmarks.errors import BenchmarkError

__all__ = ["Put"]


def _response_class() -> Any:  # noqa: ANN401 - the class is made here
    """Return a message class that reads an etcdserverpb.PutResponse as far as needed."""
    file = descriptor_pb2.FileDescriptorProto(name="etcd.proto", package="etcdserverpb")
    file.syntax = "proto3"
    header = file.message_type.add(name="ResponseHeader")
    kinds = descriptor_pb2.FieldDescriptorProto
    header.field.add(name="revision", number=3, type=kinds.TYPE_INT64, label=kinds.LABEL_OPTIONAL)
    response = file.message_type.add(name="PutResponse")
    response.field.add(
        name="header",
        number=1,
        type=kinds.TYPE_MESSAGE,
        type_name=".etcdserverpb.ResponseHeader",
        label=kinds.LABEL_OPTIONAL,
    )
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("etcdserverpb.PutResponse"))


class Put:
    """KV/Put, round robin over ``keys`` keys, with values of ``size`` bytes."""

    method = "/etcdserverpb.KV/Put"

    def __init__(self, *, keys: int, size: int) -> None:
        self._keys = [b"bench/learning_rate_%03d" % number for number in range(keys)]
        self._size = size

    def messages(self, first: int, count: int) -> list[bytes]:
        """Return PutRequests {key = 1, value = 2}."""
        made = []
        for call in range(first, first + count):
            key = self._keys[call % len(self._keys)]
            value = (b"%010d" % call).ljust(self._size, b".")
            made.append(b"\x0a%c%b\x12%c%b" % (len(key), key, len(value), value))
        return made

    def check(
        self, _first: int, replies: Sequence[bytes], _versions: Mapping[str, int]
    ) -> tuple[dict[str, int], dict[str, float]]:
        """See that the store's revision has risen by one with each put.

        :raises BenchmarkError: it has not.
        """
        response = _response_class()
        revisions = {response.FromString(reply).header.revision for reply in replies}
        if len(revisions) != len(replies) or max(revisions) - min(revisions) + 1 != len(replies):
            raise BenchmarkError("etcd's revision did not rise by exactly one with each put")
        return {}, {}
