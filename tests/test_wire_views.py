"""wire_views.proto says the same about the wire as bridge_service.proto.

Compared field by field from the descriptors, and by sending a filled message of each
type through its view and back.
"""

from __future__ import annotations

from typing import cast

import pytest
from google.protobuf import any_pb2, message_factory, timestamp_pb2
from google.protobuf.descriptor import Descriptor
from google.protobuf.descriptor_pb2 import DescriptorProto, FieldDescriptorProto
from google.protobuf.message import Message
from google.protobuf.unknown_fields import UnknownFieldSet

from snakepit_bridge import bridge_service_pb2, wire_views_pb2

ORIGINALS = bridge_service_pb2.DESCRIPTOR.message_types_by_name
VIEWS = {
    name: descriptor
    for name, descriptor in wire_views_pb2.DESCRIPTOR.message_types_by_name.items()
    if name.endswith("View")
}
ENTRIES = {"VariableEntry", "ValueEntry", "ToolEntry"}
NOT_WRITTEN = {"InitializeSessionResponseView": {"error_message"}}

# What a view may declare in place of the original's type: the same wire type, and every
# encoding of the one is an encoding of the other.
STAND_INS = {
    (FieldDescriptorProto.TYPE_BYTES, FieldDescriptorProto.TYPE_MESSAGE),
    (FieldDescriptorProto.TYPE_INT32, FieldDescriptorProto.TYPE_ENUM),
}


def original_of(view: str) -> Descriptor:
    return ORIGINALS[view.removesuffix("View")]


def fields_of(message: Descriptor) -> dict[str, FieldDescriptorProto]:
    """Fields by name, as the compiler described them: the same on every runtime."""
    proto = DescriptorProto()
    message.CopyToProto(proto)
    return {field.name: field for field in proto.field}


def assert_compatible(view: Descriptor, original: Descriptor, name: str) -> None:
    ours, theirs = fields_of(view)[name], fields_of(original)[name]
    assert ours.number == theirs.number
    assert ours.label == theirs.label
    assert ours.proto3_optional == theirs.proto3_optional
    assert ours.HasField("oneof_index") == theirs.HasField("oneof_index")
    assert ours.options == theirs.options
    ours_type = view.fields_by_name[name].message_type
    theirs_type = original.fields_by_name[name].message_type
    if ours.type != theirs.type:
        assert (ours.type, theirs.type) in STAND_INS
        assert theirs_type is None or not theirs_type.GetOptions().map_entry
    elif theirs_type is not None and ours.type_name != theirs.type_name:
        assert ours_type is not None
        assert theirs_type.GetOptions().map_entry
        assert list(fields_of(ours_type)) == ["key", "value"]
        for part in ("key", "value"):
            assert_compatible(ours_type, theirs_type, part)


def scalar(field: FieldDescriptorProto, n: int) -> object:
    """Make a value that is not the default, other for each field and each n."""
    n += 10 * field.number
    values: dict[FieldDescriptorProto.Type.ValueType, object] = {
        FieldDescriptorProto.TYPE_STRING: f"{field.name} \N{SNAKE} {n}",
        FieldDescriptorProto.TYPE_BYTES: b"\x00\xff\x80%d" % n,
        FieldDescriptorProto.TYPE_BOOL: True,
        FieldDescriptorProto.TYPE_ENUM: 1,
        FieldDescriptorProto.TYPE_INT32: -n,
        FieldDescriptorProto.TYPE_INT64: -n,
        FieldDescriptorProto.TYPE_UINT64: 2**63 + n,
        FieldDescriptorProto.TYPE_FIXED64: 2**63 + n,
    }
    return values[field.type]


def fill(message: Message, n: int = 1) -> None:
    """Set every field of a message, and two elements of every list and map."""
    if isinstance(message, any_pb2.Any):
        message.type_url, message.value = "dspex.variables/integer", b"%d" % n
    elif isinstance(message, timestamp_pb2.Timestamp):
        message.seconds, message.nanos = 1_700_000_000 + n, n
    else:
        for field in fields_of(cast(Descriptor, message.DESCRIPTOR)).values():
            fill_field(message, field, n)


def fill_field(message: Message, field: FieldDescriptorProto, n: int) -> None:
    content = getattr(message, field.name)
    if hasattr(content, "GetEntryClass"):
        key, value = fields_of(content.GetEntryClass().DESCRIPTOR).values()
        for i in (n, n + 1):
            if value.type == FieldDescriptorProto.TYPE_MESSAGE:
                fill(content[scalar(key, i)], i)
            else:
                content[scalar(key, i)] = scalar(value, i)
    elif field.label == FieldDescriptorProto.LABEL_REPEATED:
        for i in (n, n + 1):
            if field.type == FieldDescriptorProto.TYPE_MESSAGE:
                fill(content.add(), i)
            else:
                content.append(scalar(field, i))
    elif field.type == FieldDescriptorProto.TYPE_MESSAGE:
        fill(content, n + field.number)
    else:
        setattr(message, field.name, scalar(field, n))


def test_every_message_here_is_a_view_or_an_entry() -> None:
    assert set(wire_views_pb2.DESCRIPTOR.message_types_by_name) == set(VIEWS) | ENTRIES
    assert {view.removesuffix("View") for view in VIEWS} <= set(ORIGINALS)


@pytest.mark.parametrize("view", VIEWS)
def test_no_field_is_missing(view: str) -> None:
    missing = set(fields_of(original_of(view))) - set(fields_of(VIEWS[view]))
    assert missing == NOT_WRITTEN.get(view, set())


@pytest.mark.parametrize(
    ("view", "field"), [(view, field) for view in VIEWS for field in fields_of(VIEWS[view])]
)
def test_field_is_the_same_on_the_wire(view: str, field: str) -> None:
    assert_compatible(VIEWS[view], original_of(view), field)


@pytest.mark.parametrize("view", VIEWS)
def test_round_trip(view: str) -> None:
    original = message_factory.GetMessageClass(original_of(view))()
    fill(original)
    for name in NOT_WRITTEN.get(view, ()):
        original.ClearField(name)

    viewed = message_factory.GetMessageClass(VIEWS[view]).FromString(original.SerializeToString())

    assert len(UnknownFieldSet(viewed)) == 0
    assert {field.name for field, _ in viewed.ListFields()} == set(fields_of(VIEWS[view]))
    assert type(original).FromString(viewed.SerializeToString()) == original


def test_encoded_bytes_pass_through_untouched() -> None:
    value = any_pb2.Any(type_url="dspex.variables/float", value=b"0.7")
    # Encoded as no library would: the fields in the other order, type_url twice.
    stored = b"\x12\x030.7\x0a\x01x" + value.SerializeToString()
    variable = wire_views_pb2.VariableView(name="t", value=stored).SerializeToString()
    sent = wire_views_pb2.GetVariableResponseView(variable=variable).SerializeToString()

    assert stored in sent
    response = bridge_service_pb2.GetVariableResponse.FromString(sent)
    assert response.variable == bridge_service_pb2.Variable(name="t", value=value)
