"""What a watcher wants to see: variables by name, id or pattern, and kinds of change."""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Callable, Iterable

from snakepit_bridge.errors import InvalidRequest, ResourceExhausted
from snakepit_bridge.events.projection import Definition

__all__ = ["Selection", "name_filter"]

MAX_PATTERN = 1_024
"""Characters of a pattern: four times the longest name."""

MAX_IDENTIFIERS = 1_000
"""Names, ids and patterns of one watch: they stay in memory as long as it does."""

MAX_PATTERNS = 16
"""Of these that may be patterns: each is tried on each name that changes."""

MAX_CHARACTERS = 65_536
"""Of all identifiers of one watch together."""

REMEMBERED_NAMES = 1_000
"""Names of which it is remembered whether a pattern matches."""


def name_filter(pattern: str) -> Callable[[str], object] | None:
    """A test for names: ``*`` is anything, ``?`` one character, all else itself.

    ``None`` when every name passes.

    :raises InvalidRequest: the pattern is too long.
    """
    if not pattern:
        return None
    if len(pattern) > MAX_PATTERN:
        raise InvalidRequest(
            f"pattern has {len(pattern)} characters, more than {MAX_PATTERN}", field="pattern"
        )
    # fnmatch makes an atomic group of each *, so that no pattern can make matching slow.
    return re.compile(fnmatch.translate(pattern.replace("[", "[[]"))).match


class Selection:
    """Which changes are wanted. Equal selections are one object where they are shared."""

    __slots__ = ("__weakref__", "_known", "_tests", "all_names", "identifiers", "kinds")

    def __init__(self, identifiers: Iterable[str], kinds: frozenset[str]) -> None:
        """Prepare the tests.

        :param identifiers: names, ids or patterns; none = every variable.
        :param kinds: of events, as in ``Fact``.
        :raises ResourceExhausted: there are too many.
        :raises InvalidRequest: one is empty or too long.
        """
        wanted = frozenset(identifiers)
        for one in wanted:
            if not 0 < len(one) <= MAX_PATTERN:
                raise InvalidRequest(
                    f"variable_identifiers holds one of {len(one)} characters: a name, id or "
                    f"pattern has 1 to {MAX_PATTERN} (to watch all variables send none)",
                    field="variable_identifiers",
                )
        patterns = {one for one in wanted if "*" in one or "?" in one}
        if len(wanted) > MAX_IDENTIFIERS or len(patterns) > MAX_PATTERNS:
            raise ResourceExhausted(
                f"{len(wanted)} identifiers with {len(patterns)} patterns among them are more than "
                f"the limits of {MAX_IDENTIFIERS} and {MAX_PATTERNS}: watch all (no identifiers), "
                "or in several calls",
                field="variable_identifiers",
            )
        characters = sum(map(len, wanted))
        if characters > MAX_CHARACTERS:
            raise ResourceExhausted(
                f"variable_identifiers has {characters} characters in all, more than "
                f"{MAX_CHARACTERS}: watch all (no identifiers), or in several calls",
                field="variable_identifiers",
            )
        self.kinds = kinds
        self.identifiers = wanted - patterns
        self._tests = [test for test in map(name_filter, patterns) if test is not None]
        self._known: dict[str, bool] = {}
        self.all_names = not wanted or "*" in patterns

    @property
    def looks_at_names(self) -> bool:
        """Whether names that are not among the identifiers may be wanted."""
        return self.all_names or bool(self._tests)

    def takes(self, definition: Definition) -> bool:
        """Whether a variable is wanted."""
        if self.all_names:
            return True
        identifiers = self.identifiers
        if definition.name in identifiers or definition.id in identifiers:
            return True
        return bool(self._tests) and self._matches(definition.name)

    def _matches(self, name: str) -> bool:
        known = self._known.get(name)
        if known is None:
            if len(self._known) >= REMEMBERED_NAMES:
                self._known.clear()
            known = self._known[name] = any(test(name) for test in self._tests)
        return known
