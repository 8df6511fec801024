"""``VariableAwareMixin``: any Python class that reads, writes, watches and binds variables.

It knows nothing of DSPy; ``snakepit_bridge.dspy_modules`` puts it before DSPy's classes. The
session may be near (``SessionContext``) or far (``RemoteSession``): what is used of it is
``Session``.

An object is copied with its session: the copy has the same one. Pickled, it leaves it behind, and
is *detached* until ``attach_session``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol, Self

from snakepit_bridge.errors import (
    BridgeError,
    FailedPrecondition,
    NotFound,
    VariableNotFound,
    quote,
)
from snakepit_bridge.views import BatchResult, Reading, Variable

__all__ = [
    "SOURCE",
    "BoundReading",
    "BoundValue",
    "BoundVariableNotFound",
    "OnChange",
    "OnError",
    "Session",
    "SessionReference",
    "VariableAwareMixin",
]

SOURCE = "dspy_module"
"""Named as the source of what is written, in the log and to watchers."""

OnChange = Callable[[str, Any, Any, Mapping[str, str]], object]
"""Called with name, old value, new value and metadata of a change."""

OnError = Callable[[BridgeError], object]


class Session(Protocol):
    """What is used of a session, near or far; ``SessionContext`` says what each method does."""

    @property
    def session_id(self) -> str: ...

    def get_variable(self, identifier: str) -> Variable | None: ...

    async def get_variable_async(self, identifier: str) -> Variable | None: ...

    def read_variables(self, identifiers: Iterable[str]) -> Reading: ...

    async def read_variables_async(self, identifiers: Iterable[str]) -> Reading: ...

    def set_variable(
        self,
        identifier: str,
        value: object,
        metadata: Mapping[str, str] | None = None,
        *,
        expected_version: int = 0,
    ) -> int: ...

    async def set_variable_async(
        self,
        identifier: str,
        value: object,
        metadata: Mapping[str, str] | None = None,
        *,
        expected_version: int = 0,
    ) -> int: ...

    def set_variables(
        self,
        updates: Mapping[str, object],
        metadata: Mapping[str, str] | None = None,
        *,
        atomic: bool = True,
        expected_versions: Mapping[str, int] | None = None,
    ) -> BatchResult: ...

    async def set_variables_async(
        self,
        updates: Mapping[str, object],
        metadata: Mapping[str, str] | None = None,
        *,
        atomic: bool = True,
        expected_versions: Mapping[str, int] | None = None,
    ) -> BatchResult: ...

    def watch_variable(
        self, identifier: str, callback: OnChange, *, on_error: OnError | None = None
    ) -> str: ...

    async def watch_variable_async(
        self, identifier: str, callback: OnChange, *, on_error: OnError | None = None
    ) -> str: ...

    def unwatch_variable(self, observer_id: str) -> bool: ...

    async def unwatch_variable_async(self, observer_id: str) -> bool: ...


class BoundVariableNotFound(VariableNotFound):
    """A bound variable is not there.

    :param use: what it is bound to, and of which type it has to be.
    """

    def __init__(self, names: Iterable[str], session_id: str, use: str = "") -> None:
        shown = ", ".join(quote(name) for name in names)
        NotFound.__init__(
            self, f"variable {shown}{use and f', {use},'} not found in session {quote(session_id)}"
        )


@dataclass(frozen=True, slots=True)
class BoundValue:
    """A variable as a reading found it. Two are equal if they are the same version of it."""

    name: str
    """The identifier it is bound by."""
    id: str
    type: str
    value: Any = field(compare=False)
    version: int


@dataclass(frozen=True, slots=True)
class BoundReading(Mapping[str, BoundValue]):
    """The bound variables at one moment, by the identifiers they are bound by.

    Immutable, so that a copy is the reading itself; it can be pickled.
    """

    session_id: str
    log_epoch: str
    offset: int
    """The head of the log at that moment: no change lies between any two of the values."""
    entries: tuple[BoundValue, ...]

    @classmethod
    def of(cls, reading: Reading, names: Iterable[str]) -> Self:
        """Keep what there was of these; the others are absent."""
        found = reading.variables
        entries = tuple(
            BoundValue(name, it.id, it.type, it.value, it.version)
            for name in names
            if (it := found.get(name)) is not None
        )
        return cls(reading.session_id, reading.log_epoch, reading.offset, entries)

    def __getitem__(self, name: str) -> BoundValue:
        for entry in self.entries:
            if entry.name == name:
                return entry
        raise KeyError(name)

    def __iter__(self) -> Iterator[str]:
        return (entry.name for entry in self.entries)

    def __len__(self) -> int:
        return len(self.entries)

    def __copy__(self) -> Self:
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        return self


class SessionReference:
    """A session that copies share and that a pickle leaves behind.

    Sessions have locks and threads. What cannot be copied, DSPy shares in silence, with all that
    lies around it.
    """

    __slots__ = ("_session", "session_id")

    def __init__(self, session_id: str, session: Session | None = None) -> None:
        self.session_id = session_id
        self._session = session

    def session(self, owner: object) -> Session:
        """Give the session.

        :raises FailedPrecondition: there is none.
        """
        if self._session is None:
            raise FailedPrecondition(
                f"this {type(owner).__name__} was loaded without its session "
                f"{quote(self.session_id)}: call attach_session(session_context) first"
            )
        return self._session

    def __copy__(self) -> Self:
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        return self

    def __reduce__(self) -> tuple[type[SessionReference], tuple[str]]:
        return SessionReference, (self.session_id,)


class VariableAwareMixin:
    """Variables of a session, for any class: put it first among the bases.

    Each method is safe from any thread and has an asynchronous form with the suffix ``_async``.
    """

    session_reference: SessionReference | None = None
    """Use ``session_context`` instead, and ``attach_session``."""
    _bound_names: tuple[str, ...] = ()

    def __init__(self, session_context: Session, *args: Any, **kwargs: Any) -> None:  # noqa: ANN401 - of the next class
        """Whatever follows the session goes to the next class of the method resolution order."""
        super().__init__(*args, **kwargs)
        self.session_reference = SessionReference(session_context.session_id, session_context)

    @property
    def session_context(self) -> Session:
        """:raises FailedPrecondition: there is none: see ``attach_session``."""
        return self._reference().session(self)

    @property
    def session_id(self) -> str:
        """Known of a detached object as well."""
        return self._reference().session_id

    def attach_session(self, session_context: Session) -> None:
        """Use this session from now on. Copies that were made before keep theirs."""
        self.session_reference = SessionReference(session_context.session_id, session_context)

    def get_variable(self, name: str, default: Any = None) -> Any:  # noqa: ANN401 - any value
        """Give the value that a variable has now, or ``default`` where there is no such variable.

        It is read afresh, also where a call runs on a reading that was taken before.
        """
        variable = self.session_context.get_variable(name)
        return default if variable is None else variable.value

    async def get_variable_async(self, name: str, default: Any = None) -> Any:  # noqa: ANN401
        """``get_variable`` for an event loop."""
        variable = await self.session_context.get_variable_async(name)
        return default if variable is None else variable.value

    def set_variable(
        self,
        name: str,
        value: object,
        metadata: Mapping[str, str] | None = None,
        *,
        expected_version: int = 0,
    ) -> int:
        """Give a variable a new value; gives its new version once that is durable.

        :param metadata: with ``source`` ``dspy_module`` unless they name another.
        :param expected_version: the version it must have now; 0 = any.
        :raises VariableNotFound: there is no such variable.
        :raises InvalidValue: the value does not fit type or constraints.
        :raises VersionConflict: it has another version.
        """
        return self.session_context.set_variable(
            name, value, _sourced(metadata), expected_version=expected_version
        )

    async def set_variable_async(
        self,
        name: str,
        value: object,
        metadata: Mapping[str, str] | None = None,
        *,
        expected_version: int = 0,
    ) -> int:
        """``set_variable`` for an event loop."""
        return await self.session_context.set_variable_async(
            name, value, _sourced(metadata), expected_version=expected_version
        )

    def watch_variable(
        self, name: str, callback: OnChange, *, on_error: OnError | None = None
    ) -> str:
        """Have ``callback(name, old, new, metadata)`` called for each new value from now on.

        On a thread of the session's; see ``SessionContext.watch_variable``.

        :returns: the observer's id.
        """
        return self.session_context.watch_variable(name, callback, on_error=on_error)

    async def watch_variable_async(
        self, name: str, callback: OnChange, *, on_error: OnError | None = None
    ) -> str:
        """``watch_variable`` for an event loop."""
        return await self.session_context.watch_variable_async(name, callback, on_error=on_error)

    def unwatch_variable(self, observer_id: str) -> bool:
        """Have an observer called no more; gives whether there was one."""
        return self.session_context.unwatch_variable(observer_id)

    async def unwatch_variable_async(self, observer_id: str) -> bool:
        """``unwatch_variable`` for an event loop."""
        return await self.session_context.unwatch_variable_async(observer_id)

    def bind_variable(self, name: str) -> None:
        """Have a variable read by ``read_bound``, together with all that are bound."""
        if name not in self._bound_names:
            self._bound_names = (*self._bound_names, name)

    def unbind_variable(self, name: str) -> bool:
        """Undo ``bind_variable``; gives whether it was bound."""
        kept = tuple(bound for bound in self._bound_names if bound != name)
        was_bound = kept != self._bound_names
        self._bound_names = kept
        return was_bound

    @property
    def bound_variables(self) -> tuple[str, ...]:
        """The identifiers that ``read_bound`` reads."""
        return self._bound_names

    def read_bound(self) -> BoundReading:
        """Read all bound variables at one moment.

        :raises BoundVariableNotFound: one of them does not exist.
        """
        names = self.bound_variables
        return _complete(self.session_context.read_variables(names), names)

    async def read_bound_async(self) -> BoundReading:
        """``read_bound`` for an event loop."""
        names = self.bound_variables
        return _complete(await self.session_context.read_variables_async(names), names)

    def _reference(self) -> SessionReference:
        if self.session_reference is None:
            name = type(self).__name__
            raise FailedPrecondition(
                f"this {name} has no session: {name}.__init__ has to call "
                "super().__init__(session_context, ...)"
            )
        return self.session_reference


def _complete(reading: Reading, names: tuple[str, ...]) -> BoundReading:
    if missing := [name for name in names if name not in reading.variables]:
        raise BoundVariableNotFound(missing, reading.session_id)
    return BoundReading.of(reading, names)


def _sourced(metadata: Mapping[str, str] | None) -> dict[str, str]:
    return {"source": SOURCE, **(metadata or {})}
