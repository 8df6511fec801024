"""What clients do to gRPC is no error of the bridge's, and is not told as one."""

import logging
from collections.abc import Iterator

import pytest

from snakepit_bridge.telemetry.logs import of_bridge

GRPC = logging.getLogger("grpc._cython.cygrpc")


@pytest.fixture(autouse=True)
def filtered() -> Iterator[None]:
    GRPC.addFilter(of_bridge)
    yield
    GRPC.removeFilter(of_bridge)


def log(message: str) -> None:
    """As gRPC does it, where it catches the error."""
    try:
        raise OSError
    except OSError:
        GRPC.exception(message, "/snakepit.bridge.BridgeService/Ping")


@pytest.mark.parametrize(
    "message",
    ["ExecuteBatchError raised in core by servicer method [%s]", "Invalid encoding on %s"],
)
def test_what_clients_do_is_debug_and_without_a_traceback(
    caplog: pytest.LogCaptureFixture, message: str
) -> None:
    log(message)
    assert not caplog.records
    logging.getLogger("snakepit_bridge.telemetry.logs").setLevel(logging.DEBUG)
    try:
        log(message)
    finally:
        logging.getLogger("snakepit_bridge.telemetry.logs").setLevel(logging.NOTSET)
    [record] = caplog.records
    assert (record.levelname, record.exc_info) == ("DEBUG", None)


def test_what_fails_in_the_bridge_keeps_its_traceback(caplog: pytest.LogCaptureFixture) -> None:
    log("Unexpected [OSError] raised by servicer method [%s]")
    [record] = caplog.records
    assert record.levelname == "ERROR"
    assert record.exc_info is not None
