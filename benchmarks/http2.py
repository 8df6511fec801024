"""The part of HTTP/2 (RFC 9113) that a gRPC client under benchmark needs: bytes, no I/O.

A client that only drives load may choose its side of every option, and chooses what is
cheapest to read: no server push, no dynamic header table in the replies, windows so
large that a reply never waits for the client.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence

from hpack import Decoder, Encoder, NeverIndexedHeaderTuple

from benchmarks.errors import BenchmarkError

__all__ = [
    "ACK",
    "CONTINUATION",
    "DATA",
    "END_HEADERS",
    "END_STREAM",
    "FRAME_HEADER",
    "GOAWAY",
    "HEADERS",
    "INITIAL_WINDOW",
    "PADDED",
    "PING",
    "PRIORITY",
    "RECEIVE_WINDOW",
    "RST_STREAM",
    "SETTINGS",
    "SETTINGS_ACK",
    "WINDOW_UPDATE",
    "call_frames",
    "decode_headers",
    "frame",
    "opening",
    "parse_settings",
    "request_block",
    "window_update",
]

DATA, HEADERS, RST_STREAM, SETTINGS = 0, 1, 3, 4
PING, GOAWAY, WINDOW_UPDATE, CONTINUATION = 6, 7, 8, 9
END_STREAM, END_HEADERS, PADDED, PRIORITY, ACK = 0x1, 0x4, 0x8, 0x20, 0x1

# Length (24 bits, as 16 + 8), type, flags, stream id (the reserved bit is always 0 here).
FRAME_HEADER = struct.Struct(">HBBBI")

# RFC 9113, section 6.9.2 and 4.2: what a server offers until it says otherwise.
INITIAL_WINDOW = 65_535
MAX_FRAME = 16_384

# What we offer, per stream and for the connection; renewed at half.
RECEIVE_WINDOW = 1 << 30

_HEADER_TABLE_SIZE, _ENABLE_PUSH, _INITIAL_WINDOW_SIZE = 1, 2, 4


def frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
    """Return one frame."""
    size = len(payload)
    return FRAME_HEADER.pack(size >> 8, size & 0xFF, kind, flags, stream) + payload


SETTINGS_ACK = frame(SETTINGS, ACK, 0, b"")


def window_update(stream: int, increment: int) -> bytes:
    """Return a frame that lets the server send ``increment`` more bytes."""
    return frame(WINDOW_UPDATE, 0, stream, struct.pack(">I", increment))


def opening() -> bytes:
    """Return what a client sends first: the preface, its settings, a large window."""
    settings = struct.pack(
        ">HIHIHI",
        _HEADER_TABLE_SIZE, 0,
        _ENABLE_PUSH, 0,
        _INITIAL_WINDOW_SIZE, RECEIVE_WINDOW,
    )  # fmt: skip
    return b"".join(
        (
            b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
            frame(SETTINGS, 0, 0, settings),
            window_update(0, RECEIVE_WINDOW - INITIAL_WINDOW),
        )
    )


def parse_settings(payload: bytes) -> dict[int, int]:
    """Return the settings of one SETTINGS frame by number; 4 is the stream window."""
    return dict(struct.iter_unpack(">HI", payload))


def request_block(method: str, authority: str, metadata: Sequence[tuple[str, str]] = ()) -> bytes:
    """Return the header block of a call to ``method`` ("/package.Service/Method").

    Each field is a literal that is never indexed, so the block means the same at every
    place of every connection: one byte string serves all calls.
    """
    fields = [
        (":method", "POST"),
        (":scheme", "http"),
        (":path", method),
        (":authority", authority),
        ("te", "trailers"),
        ("content-type", "application/grpc"),
        ("user-agent", "benchmarks"),
        *metadata,
    ]
    return bytes(Encoder().encode([NeverIndexedHeaderTuple(*field) for field in fields]))


def decode_headers(block: bytes) -> dict[str, str]:
    """Return the fields of a reply's header block.

    Without a dynamic table blocks do not depend on each other, so each is decoded alone.

    :raises BenchmarkError: the block refers to a dynamic table, or is not HPACK.
    """
    decoder = Decoder()
    decoder.max_allowed_table_size = 0
    # The decoder insists that a shrunk table is announced; only a connection's first
    # block does so.
    decoder.header_table_size = 0
    try:
        return {str(name): str(value) for name, value in decoder.decode(block)}
    except Exception as error:
        raise BenchmarkError(f"the server sent a header block that is no HPACK: {error}") from error


def call_frames(block: bytes, message: bytes) -> tuple[tuple[bytes, ...], int]:
    """Prepare one unary call, all but its stream id.

    Return the pieces between which the four bytes of the stream id stand, so that
    ``stream_id.join(pieces)`` is the whole call (HEADERS, then DATA), and how many bytes
    of it count against the server's windows.
    """
    body = b"\x00" + struct.pack(">I", len(message)) + message
    pieces = [_head(len(block), HEADERS, END_HEADERS)]
    rest = block
    for start in range(0, len(body), MAX_FRAME):
        part = body[start : start + MAX_FRAME]
        flags = END_STREAM if start + MAX_FRAME >= len(body) else 0
        pieces.append(rest + _head(len(part), DATA, flags))
        rest = part
    pieces.append(rest)
    return tuple(pieces), len(body)


def _head(size: int, kind: int, flags: int) -> bytes:
    """Return the first five bytes of a frame: all of its header but the stream id."""
    return struct.pack(">HBBB", size >> 8, size & 0xFF, kind, flags)
