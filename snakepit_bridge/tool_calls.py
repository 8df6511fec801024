"""One call of a tool: start, run, finish.

::

    ToolStarted ─▶ run ─▶ ToolFinished ─▶ answer

With a request id the start is durable before the tool runs, so that it can never run twice; without
one it is on its way. The end is durable before the answer. A call is *left* when nobody waits for
it any more: its client is gone, its time is over, its session was cleaned up by force, the bridge
stops. The log is told so at once; ``tools.runner`` says what becomes of the tool.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from typing import Any

from snakepit_bridge.commands import FinishTool, StartTool, ToolArgument, ToolRun
from snakepit_bridge.errors import (
    BridgeError,
    Cancelled,
    DeadlineExceeded,
    FailedPrecondition,
    Unavailable,
    quote,
)
from snakepit_bridge.events.gate import Gate
from snakepit_bridge.events.model import Envelope, Origin, Value
from snakepit_bridge.events.tasks import CommandTask, Outcome
from snakepit_bridge.telemetry.stream import TelemetryStream
from snakepit_bridge.telemetry.tool_calls import ToolObserver
from snakepit_bridge.tool_session import CallState, FarToolSession, ToolServices, ToolSession
from snakepit_bridge.tool_wire import ToolAnswer, ToolRequest
from snakepit_bridge.tools.chunks import Chunk
from snakepit_bridge.tools.context import ToolCancelled
from snakepit_bridge.tools.definition import ToolDefinition
from snakepit_bridge.tools.failures import Failure
from snakepit_bridge.tools.pipe import Pipe
from snakepit_bridge.tools.processes import Job
from snakepit_bridge.tools.runner import Invocation, Result, Runner, Send

__all__ = ["RECORDINGS", "Call", "Calls"]

logger = logging.getLogger(__name__)

RECORDINGS = ("full", "digest", "off")
"""What is kept of arguments and results: all, their SHA-256, nothing."""

CLOSE_TO_DEADLINE = 0.05
"""Seconds before its deadline in which a call that is cancelled counts as late: gRPC cancels what
its client no longer waits for."""

FOREVER = 10 * 365 * 86_400.0
"""Seconds from which a deadline is none: gRPC's own reach to centuries."""

LONG_SECRET = 256
"""Characters of a sensitive argument from which a shortened message may hold a part of it."""

MAX_UNWRITTEN = 1_000
"""Ends of calls that wait until the log takes them; their results stay in memory."""

RETRY = 1.0
"""Seconds until an end that could not be written is tried again."""


class Calls:
    """What all calls share, and those that run; belongs to one event loop."""

    def __init__(  # noqa: PLR0913 - what every call needs
        self,
        services: ToolServices,
        runner: Runner,
        gate: Gate,
        telemetry: TelemetryStream,
        *,
        record: str,
        observer: ToolObserver,
    ) -> None:
        """:param record: one of ``RECORDINGS``."""
        self.observer = observer
        self.services = services
        self.runner = runner
        self.gate = gate
        self.telemetry = telemetry
        self.record = record
        self.running: dict[str, Call] = {}
        """By call id."""
        self.stopping: BridgeError | None = None
        """Why no call is run any more."""
        self._number = 0
        self._unwritten: set[asyncio.Task[None]] = set()

    def next_id(self) -> str:
        """An id that no other call has, of this bridge or another."""
        self._number += 1
        return f"{self.services.committer.instance}-{self._number:x}"

    def stop(self, why: BridgeError) -> list[Call]:
        """Leave all calls, those that come as well; gives those that run."""
        self.stopping = why
        running = list(self.running.values())
        for call in running:
            call.leave(why)
        return running

    def of_session(self, session_id: str) -> list[Call]:
        """The calls of a session that run."""
        running = self.running.values()
        return [call for call in running if call.request.envelope.session_id == session_id]

    async def asking(self, session_id: str, origin: Origin) -> Call | None:
        """The call that a request says it comes from, if that is open in the log.

        Waits until its start is durable: what it does elsewhere must not come before that.
        """
        call = self.running.get(origin.tool_call_id)
        if (
            call is None
            or call.request.envelope.session_id != session_id
            or origin.source != f"tool:{call.request.tool}"
        ):
            return None
        return call if await call.opened() else None

    def submit(self, command: StartTool | FinishTool) -> asyncio.Future[Any]:
        return self.gate.submit(CommandTask(command))

    async def flush(self) -> None:
        """Have all that waits on its way to the committer."""
        self.gate.flush()

    def finish_later(self, command: FinishTool) -> None:
        """Write the end of a call whose log does not take it now.

        Beyond so many it is left to the next start of the bridge, as ``interrupted``.
        """
        if len(self._unwritten) >= MAX_UNWRITTEN:
            logger.warning("the end of call %s is not written", command.call_id)
            return
        task = self.services.loop.create_task(self._finish(command))
        self._unwritten.add(task)
        task.add_done_callback(self._unwritten.discard)

    async def _finish(self, command: FinishTool) -> None:
        while True:
            await asyncio.sleep(RETRY)
            try:
                await self.submit(command)
            except BridgeError as error:
                logger.debug("the end of call %s waits: %s", command.call_id, error.message)
            else:
                return

    def give_up(self) -> None:
        """Try no longer to write what could not be written."""
        for task in self._unwritten:
            task.cancel()


class Call:
    """One call, from its request on."""

    def __init__(
        self,
        calls: Calls,
        definition: ToolDefinition,
        request: ToolRequest,
        remaining: float | None,
        send: Send | None,
    ) -> None:
        """Prepare it.

        :param remaining: seconds until the client stops waiting; ``None`` = never.
        :param send: where chunks go; ``None`` = the client wants one result.
        """
        self._calls = calls
        self._definition = definition
        self.request = request
        self._send = send
        self._chunks = 0
        self._pipe = None if send is None else Pipe(calls.services.loop)
        about = request.envelope
        observation = calls.observer.observe(request.tool, about.session_id, about.origin)
        self._state = CallState(calls.next_id(), request.tool, observation, self._hand_over)
        limits = [limit for limit in (remaining, definition.timeout) if limit is not None]
        limit = min(limits, default=FOREVER)
        self._limit = limit if limit < FOREVER else None
        self._began = time.monotonic_ns()
        self._session: ToolSession | FarToolSession | None = None
        self._start: asyncio.Future[Outcome] | None = None
        self._end: asyncio.Future[Outcome] | None = None
        self.task: asyncio.Task[Any] | None = None
        self._left: BridgeError | None = None
        """Why the bridge itself left it."""
        self._refused: BridgeError | None = None
        """Why its start was not written, nor will its end be."""
        self.late = False
        """Whether those who waited were left no time; else they are gone."""

    async def run(self) -> ToolAnswer:
        """Start it, run it, and give its answer; the start is not waited for if need not be."""
        calls, about = self._calls, self.request.envelope
        log = calls.services.committer.loaded(about.session_id)
        # Where the start may well be refused, it is waited for before the tool runs.
        if log is None or not log.committed.live or about.log_epoch or about.origin.tool_call_id:
            await self.start()
        else:
            self._start = calls.submit(self._start_command())
            self._start.add_done_callback(self._started)
            if self._definition.adapter is not None or self._definition.context_parameter:
                self._hand_over()
        return await self.go_on()

    async def start(self) -> Outcome:
        """Have the start written; gives what the log says, which may be that it was before."""
        self._start = self._calls.submit(self._start_command())
        try:
            outcome = await asyncio.shield(self._start)
        except asyncio.CancelledError:
            self._start.add_done_callback(self._never_ran)
            raise
        self._state.handed_over = True
        return outcome

    def _started(self, start: asyncio.Future[Outcome]) -> None:
        """A start that is refused while the tool runs already: whoever waits is told so."""
        if not start.cancelled() and isinstance(refused := start.exception(), BridgeError):
            self._refused = refused
            self.leave(refused)

    @property
    def _is_open(self) -> bool:
        """Whether the log has this call open, once its start is durable."""
        log = self._calls.services.committer.peek(self.request.envelope.session_id)
        return log is not None and self._state.call_id in log.committed.calls

    async def opened(self) -> bool:
        """Wait until its start is durable, or refused; gives whether it is open."""
        if self._start is not None and not self._start.done():
            self._calls.gate.flush()
            await asyncio.wait((self._start,))
        return self._is_open and not self._state.over

    @property
    def is_closed(self) -> bool:
        """Whether the log closed it while it runs: its session ended."""
        start = self._start
        return start is not None and start.done() and not self._is_open

    def leave(self, why: BridgeError) -> None:
        """Wait for it no longer; who does so hears ``why``."""
        self._left = why
        if self.task is not None:
            self.task.cancel()

    async def go_on(self) -> ToolAnswer:
        """Run what was started."""
        calls = self._calls
        if calls.stopping is not None:
            self._abandon("interrupted", calls.stopping.message)
            raise calls.stopping
        if self.is_closed:
            raise Cancelled("the session ended before the tool could run")
        self.task = asyncio.current_task()
        calls.running[self._state.call_id] = self
        self._state.observation.begin()
        self._tell("python.call.start", count=1, system_time=time.time_ns())
        self._tell("tool.execution.start", count=1, system_time=time.time_ns())
        try:
            return await self._finish(await self._result())
        except asyncio.CancelledError:
            if self._left is None:
                raise
            # This bridge cancelled it, to have whoever waits told why.
            if self.task is not None:
                self.task.uncancel()
            await self._end_written()
            raise self._left from None
        finally:
            self._state.over = True
            self._state.observation.end("error")  # unless it was said how it ended
            self._state.hand_over = _nothing  # else this and that would hold each other
            del calls.running[self._state.call_id]
            if self._session is not None:
                self._session.forget_observers()

    async def _result(self) -> Result:
        """Wait for the tool, as long as anybody waits for this."""
        with self._state.observation.current():
            work = self._calls.runner.run(self._invocation())
        try:
            await asyncio.wait((work,), timeout=self._limit)
        except asyncio.CancelledError:
            work.cancel()
            if self._left is not None:
                stopped = isinstance(self._left, Unavailable)
                self._abandon("interrupted" if stopped else "cancelled", self._left.message)
            elif self.late or self._is_late():
                self._abandon("timeout", "its client's time was over")
            else:
                self._abandon("cancelled", "its client was gone")
            raise
        if not work.done():
            work.cancel()
            self._abandon("timeout", "it took too long")
            await self._end_written()
            raise DeadlineExceeded(
                f"tool {quote(self.request.tool)} took longer than the {self._limit:.3g} s that it "
                "had"
            )
        if work.cancelled():
            return Result(failure=Failure("CancelledError", "the tool cancelled itself", ""))
        error = work.exception()
        if isinstance(error, _ClientGone):
            self._abandon("cancelled", "its client was gone")  # who takes no chunk
            raise asyncio.CancelledError from error
        if error is not None:
            self._abandon("error", str(error))
            raise error
        return work.result()

    def _invocation(self) -> Invocation:
        definition, request = self._definition, self.request
        return Invocation(
            definition,
            request.tool,
            self.request.arguments,
            self._its_session,
            self._job,
            None if self._send is None else self._counted,
            self._pipe,
            _is_true(request.envelope.metadata.get("thread_sensitive", "")),
        )

    async def _finish(self, result: Result) -> ToolAnswer:
        failure = result.failure
        duration = time.monotonic_ns() - self._began
        self._state.observation.end("ok" if failure is None else "error")
        error = ("", "", "") if failure is None else tuple(failure)
        command = self._finish_command("ok" if failure is None else "error", error, result.value)
        command = command._replace(duration_nanos=duration)
        outcome: Outcome = await asyncio.shield(self._write_end(command))
        if self._refused is not None:
            raise self._refused
        if not outcome.answer.offset:
            raise FailedPrecondition(
                "the session ended while the tool ran: the log says that it was interrupted, and "
                "its result is not kept",
                outcome="interrupted",
            )
        self._tell_end(result, duration)
        offset, epoch = outcome.answer.offset, outcome.log_epoch
        return ToolAnswer(command.call_id, result.value, failure, duration, offset, epoch)

    def _abandon(self, outcome: str, why: str) -> None:
        """Have the log told that nobody waits any more; nobody waits for that, either."""
        self._state.over = True
        self._state.observation.end(outcome)
        command = self._finish_command(outcome, ("", why, ""), None)
        command = command._replace(duration_nanos=time.monotonic_ns() - self._began)
        self._write_end(command)
        self._tell("tool.execution.exception", count=1, duration=command.duration_nanos)
        self._tell("python.call.exception", count=1, duration=command.duration_nanos)

    def _write_end(self, command: FinishTool) -> asyncio.Future[Outcome]:
        """Have the end written, later if it cannot be now, whether or not anybody waits."""
        calls = self._calls
        try:
            end = calls.submit(command)
        except BridgeError as error:  # too much waits for the log
            end = calls.services.loop.create_future()
            end.set_exception(error)

        def written(end: asyncio.Future[Outcome]) -> None:
            failed = not end.cancelled() and isinstance(end.exception(), BridgeError)
            if failed and self._refused is None:
                calls.finish_later(command)

        end.add_done_callback(written)
        self._end = end
        return end

    async def _end_written(self) -> None:
        """Wait until the end is durable, or is going to be written later."""
        if self._end is not None:
            await asyncio.wait((self._end,))

    def _never_ran(self, start: asyncio.Future[Outcome]) -> None:
        """Close a call whose client went before its start was written."""
        if start.cancelled() or start.exception() is not None or start.result().answer.duplicate:
            return
        self.close_unless_run()

    def close_unless_run(self) -> None:
        """Close a call that was started and left before it ran."""
        if self.task is None and not self._state.over:
            self._abandon("cancelled", "its client was gone before it ran")

    def _is_late(self) -> bool:
        spent = (time.monotonic_ns() - self._began) / 1e9
        return self._limit is not None and spent > self._limit - CLOSE_TO_DEADLINE

    async def _counted(self, chunk: Chunk) -> None:
        if self._send is None or self._state.over:
            raise ToolCancelled("nobody reads this stream any more")
        self._chunks += 1
        try:
            await self._send(chunk)
        except Exception as error:
            raise _ClientGone from error

    def _its_session(self) -> ToolSession | FarToolSession:
        if self._session is None:
            about = self.request.envelope
            self._session = self._calls.services.session(
                about.session_id,
                self._state,
                about.metadata,
                send=None if self._send is None else self._counted,
                pipe=self._pipe,
                deadline=self._deadline(),
            )
        return self._session

    def _hand_over(self) -> None:
        """Have the start on its way to the committer before anything that the tool does."""
        if not self._state.handed_over:
            services = self._calls.services
            if threading.get_ident() == services.loop_thread:
                self._calls.gate.flush()
            else:
                asyncio.run_coroutine_threadsafe(self._calls.flush(), services.loop).result()
            self._state.handed_over = True

    def _deadline(self) -> int:
        """Unix nanoseconds; 0 = none. Of a call that begins now."""
        return 0 if self._limit is None else time.time_ns() + int(self._limit * 1e9)

    def _start_command(self) -> StartTool:
        run = ToolRun(self._state.call_id, self._deadline())
        arguments = self._recorded_arguments()
        streaming = self._send is not None
        return StartTool(self.request.envelope, self.request.tool, arguments, streaming, run)

    def _recorded_arguments(self) -> tuple[ToolArgument, ...]:
        sensitive = self._definition.sensitive
        record = self._calls.record
        return tuple(
            ToolArgument(
                name,
                value.digest,
                value if record == "full" and name not in sensitive else None,
                record != "off",
            )
            for name, value in self.request.values
        )

    def _finish_command(
        self, outcome: str, error: tuple[str, ...], value: Value | None
    ) -> FinishTool:
        state, record = self._state, self._calls.record
        # Of whichever log is the newest: if that does not have the call, it is closed already.
        origin = state.source._replace(tool_call_id="")
        about = Envelope(self.request.envelope.session_id, origin=origin)
        kept = value if record == "full" else None
        digest = value.digest if value is not None and record == "digest" else b""
        kind, message, trace = error
        if kind:  # what the tool said; else it is what the bridge says
            message = self._without_secrets(message) if record == "full" else ""
            trace = self._without_secrets(trace) if record == "full" else ""
        return FinishTool(
            about, state.call_id, outcome, 0, kept, digest, (kind, message, trace), self._chunks
        )

    def _without_secrets(self, text: str) -> str:
        """A message or traceback as it is recorded: it may quote what the tool was given.

        What is long, or has parts, may be quoted in part: then nothing is kept.
        """
        arguments = self.request.arguments
        quoted = {}
        for name in self._definition.sensitive & arguments.keys():
            secret = arguments[name]
            if not isinstance(secret, str | int | float | None) or len(str(secret)) > LONG_SECRET:
                return f"(left out, as it may quote {name})"
            if secret not in (None, ""):
                quoted[str(secret)] = quoted[repr(secret)] = f"<{name}>"
        for secret in sorted(quoted, key=len, reverse=True):
            text = text.replace(secret, quoted[secret])
        return text

    def _job(self) -> Job:
        request, state = self.request, self._state
        return Job(
            state.call_id,
            request.envelope.session_id,
            "",  # what comes from a call that is not open is refused in any case
            request.tool,
            self._definition.source,
            tuple(request.parameters),
            request.envelope.metadata,
            state.origin.traceparent,
            state.origin.tracestate,
            state.origin.correlation_id,
            self._send is not None,
            self._deadline(),
        )

    def _tell_end(self, result: Result, duration: int) -> None:
        telemetry = self._calls.telemetry
        if not telemetry.open:
            return
        whole = time.monotonic_ns() - self._began
        if result.failure is not None:
            self._tell("tool.execution.exception", count=1, duration=duration)
            self._tell("python.error.occurred", count=1)
            self._tell("python.call.exception", count=1, duration=whole)
            return
        self._tell("tool.execution.stop", count=1, duration=duration)
        if result.value is not None:
            size = len(result.value.any) + len(result.value.binary)
            self._tell("tool.result_size", bytes=size)
        self._tell("python.call.stop", count=1, duration=whole)

    def _tell(self, event: str, **measurements: int) -> None:
        telemetry = self._calls.telemetry
        if telemetry.open:
            about = {"tool": self.request.tool, "session_id": self.request.envelope.session_id}
            correlation_id = self._state.origin.correlation_id
            telemetry.emit(event, measurements, about, correlation_id)


class _ClientGone(Exception):
    """A chunk could not be sent."""


def _nothing() -> None:
    """What is left to do before a call's end is known."""


def _is_true(text: str) -> bool:
    return text.strip().lower() in {"1", "true", "t", "yes", "y", "on"}
