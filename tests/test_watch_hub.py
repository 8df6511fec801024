"""What the hub keeps of watches that come and go."""

from __future__ import annotations

import asyncio

from snakepit_bridge.commands import RegisterVariable
from snakepit_bridge.events.cursor import Cursor, Place
from snakepit_bridge.events.memory import MemoryLog
from snakepit_bridge.events.model import Envelope
from snakepit_bridge.limits import DEFAULTS
from snakepit_bridge.watch_hub import MOST_STALE, Hub, Watch
from tests.direct import Direct, integer

CHANGES = frozenset({"variable_set"})


async def test_watches_that_were_closed_leave_nothing_behind() -> None:
    loop = asyncio.get_running_loop()
    with Direct(MemoryLog()) as direct:
        direct.ask(RegisterVariable(Envelope("s"), "x", "integer", integer(0)))
        log = direct.loaded("s")
        hub = Hub(direct.committer, loop, DEFAULTS)
        place = Place(log.committed.head, log.committed.digest, inside=False)

        def watch(name: str) -> Watch:
            selection = hub.selection([name], CHANGES)
            return Watch(Cursor(log, selection, place), loop.time() + 3_600)

        stays = watch("stays")
        with hub.joined(stays):
            for number in range(10 * MOST_STALE):
                with hub.admitted("s", "c"), hub.joined(watch(f"x{number % 7}")):
                    assert len(hub._alarms) <= 2 * MOST_STALE + 2
            assert [alarm[2] for alarm in hub._alarms].count(stays) == 1
            (channel,) = hub._channels.values()
            assert [group.selection for group in channel.groups.values()] == [
                stays.cursor.selection
            ]
            assert not hub._in_session
            assert not hub._on_connection
        assert not hub._channels
        await hub.close()
