"""Fixtures of the tests that speak to a bridge over a socket."""

from __future__ import annotations

import os
import signal
import tempfile
from collections.abc import Iterator

import pytest

from tests.bridge_process import BridgeProcess
from tests.wire_session import Session

# Read when DSPy is imported, here and in what the tests start. It would cache in the home
# directory, and older LiteLLM would look for its prices in the network.
_CACHE = tempfile.TemporaryDirectory(prefix="dspy-cache-")
os.environ["DSPY_CACHEDIR"] = _CACHE.name
os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"

# In the background of a shell Ctrl-C is ignored, and what tests start would inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="module")
def bridge(tmp_path_factory: pytest.TempPathFactory) -> Iterator[BridgeProcess]:
    with BridgeProcess(tmp_path_factory.mktemp("bridge") / "bridge.db") as process:
        yield process
        assert process.stop() == 0


@pytest.fixture
def session(bridge: BridgeProcess, request: pytest.FixtureRequest) -> Session:
    return Session(bridge, request.node.name)
