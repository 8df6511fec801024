"""``VariableAwareModule``: a DSPy program that is driven by variables, and DSPy's own ones as such.

A call of the outermost program reads everything that is bound in it at one moment. The modules in
it run with that reading, and so does what they start through DSPy: threads, tasks, ``batch``.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any
from uuid import uuid4

import dspy

from snakepit_bridge.dspy_modules.bindings import Binding, LMs
from snakepit_bridge.dspy_modules.calls import (
    Pin,
    call_under_way,
    pinned,
    pins,
    under_way,
)
from snakepit_bridge.dspy_modules.leaves import SteeredPredict
from snakepit_bridge.dspy_modules.plans import Plan, names_in, plan_of
from snakepit_bridge.dspy_modules.resolving import places
from snakepit_bridge.dspy_modules.tree import Tree, grow
from snakepit_bridge.errors import FailedPrecondition, InvalidRequest, InvalidValue, quote
from snakepit_bridge.variable_aware_mixin import (
    SOURCE,
    BoundReading,
    Session,
    VariableAwareMixin,
)
from snakepit_bridge.views import BatchResult

__all__ = [
    "VariableAwareChainOfThought",
    "VariableAwareModule",
    "VariableAwarePredict",
    "VariableAwareReAct",
]


class VariableAwareModule(VariableAwareMixin, dspy.Module):
    """A DSPy program with a session: put it first among the bases, or alone.

    ::

        class Program(VariableAwareModule):
            def __init__(self, session):
                super().__init__(session)
                self.answer = dspy.ChainOfThought("question -> answer")
                self.bind_variable("temperature", "temperature")

    Its predictions have ``variables``, the reading that they were made with.
    """

    bindings: tuple[Binding, ...] = ()
    """What is bound here, without what the modules inside have bound."""
    last_plan: Plan | None = None
    """Of the last call; see ``plan_of``."""
    _compiled_from: BoundReading | None = None

    def __init__(self, session_context: Session, *args: Any, **kwargs: Any) -> None:
        super().__init__(session_context, *args, **kwargs)
        self._snakepit_lineage = uuid4().hex

    def __getstate__(self) -> dict[str, Any]:
        # A copy has other parts.
        state: dict[str, Any] = super().__getstate__()
        state.pop("last_plan", None)
        return state

    def attach_session(self, session_context: Session) -> None:
        """Use this session from now on, here and in the modules inside."""
        for member in grow(self).members.values():
            VariableAwareMixin.attach_session(member, session_context)

    def bind_variable(
        self, name: str, to: str = "", *, at: str = "", lms: Mapping[str, Any] | None = None
    ) -> None:
        """Drive something with a variable, from the next call on.

        ========================== ======================= =====================================
        ``to``                     type of the variable    at
        ========================== ======================= =====================================
        ``temperature``, ``top_p`` float, integer          predictors
        ``max_tokens``, ``n``, ... integer                 predictors
        ``config.NAME``            whatever the LM takes   predictors
        ``lm``                     choice, module          predictors; ``lms`` = those allowed
        ``instructions``           string                  one predictor
        ``demos``                  string: a JSON list     one predictor
        ``arm``                    choice, module          ``Arms``
        nothing                    any                     only read: ``current_reading()``
        ========================== ======================= =====================================

        The variable may be registered later, and the predictor be made later: what is missing or
        of the wrong type is an error of the call. What was bound to the same before is not any
        more; a binding with ``at`` comes before one without.

        :param at: the path of a predictor or ``Arms``, as in ``named_predictors()``, or of a
            module around it; empty = all.
        :param lms: the LMs that the variable chooses from, by the names that are its values.
        :raises InvalidRequest: there is nothing of the name ``to``, or ``lms`` do not fit.
        """
        binding = Binding(name, to, at, None if lms is None else LMs(lms))
        kept = [old for old in self.bindings if _place(old) != _place(binding)]
        self.bindings = (*kept, binding)

    def unbind_variable(self, name: str) -> bool:
        """Undo all bindings of a variable made here; gives whether there were any."""
        kept = tuple(binding for binding in self.bindings if binding.name != name)
        was_bound = kept != self.bindings
        self.bindings = kept
        return was_bound

    @property
    def bound_variables(self) -> tuple[str, ...]:
        """What a call reads: the variables bound here and in the modules inside.

        :raises FailedPrecondition: a module inside has another session.
        """
        return names_in(grow(self))

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run with the variables as they are now, or as they were for the call around this.

        :raises BoundVariableNotFound: a bound variable does not exist.
        :raises InvalidValue: one cannot be used for what it is bound to.
        :raises InvalidRequest: one is bound to what is not there.
        :raises FailedPrecondition: the program has no session.
        """
        if self._is_called_from_within():
            return super().__call__(*args, **kwargs)
        plan = plan_of(self)
        pin = self._pin(plan.tree)
        if pin is None:
            names = plan.names
            read = self.session_context.read_variables(names)
            pin = Pin(BoundReading.of(read, names))
        with under_way(plan.call(pin)):
            return _stamped(super().__call__(*args, **kwargs), pin.reading)

    async def acall(self, *args: Any, **kwargs: Any) -> Any:
        """``__call__`` for an event loop."""
        if self._is_called_from_within():
            return await super().acall(*args, **kwargs)
        plan = plan_of(self)
        pin = self._pin(plan.tree)
        if pin is None:
            names = plan.names
            read = await self.session_context.read_variables_async(names)
            pin = Pin(BoundReading.of(read, names))
        with under_way(plan.call(pin)):
            return _stamped(await super().acall(*args, **kwargs), pin.reading)

    @contextmanager
    def pinned(self, reading: BoundReading) -> Iterator[None]:
        """Have this program and its copies run with a reading, whatever the variables are now.

        With that of a prediction (``prediction.variables``) its requests are made again as they
        were; no session is needed. With one of now (``read_bound()``) a whole evaluation runs with
        one set of values. It reaches as far as ``dspy.context``.
        """
        with pinned(self._snakepit_lineage, Pin(reading)):
            yield

    def publish(self, compiled: Any, *, overwrite: bool = False) -> BatchResult:
        """Write instructions and demos of a compiled copy to the variables that they are bound to.

        As one transaction: whoever calls the program from then on gets all of it. What is not bound
        is not written; it can be had with ``load_state(compiled.dump_state())``.

        :param compiled: a program with the same predictors, such as an optimizer's result.
        :param overwrite: also variables that were changed since ``compiling`` began.
        :raises BatchRefused: they were, or a value is refused; nothing is changed.
        :raises InvalidValue: a demonstration holds what JSON has no form for, such as a date.
        :raises InvalidRequest: nothing is bound to instructions or demos, or the program lacks the
            predictor.
        """
        updates, versions = self._publication(compiled, overwrite=overwrite)
        return self.session_context.set_variables(
            updates, {"source": SOURCE}, atomic=True, expected_versions=versions
        )

    async def publish_async(self, compiled: Any, *, overwrite: bool = False) -> BatchResult:
        """``publish`` for an event loop."""
        updates, versions = self._publication(compiled, overwrite=overwrite)
        return await self.session_context.set_variables_async(
            updates, {"source": SOURCE}, atomic=True, expected_versions=versions
        )

    def _is_called_from_within(self) -> bool:
        call = call_under_way()
        return call is not None and call.members.get(self) is not None

    def _pin(self, tree: Tree) -> Pin | None:
        held = pins()
        pin = held.get(self._snakepit_lineage)
        if pin is None and held:
            for path, member in tree.members.items():
                if member._snakepit_lineage in held:  # noqa: SLF001 - of this class
                    raise FailedPrecondition(
                        f"{quote(path)} is pinned, but the call is of the {type(self).__name__} "
                        "around it, which reads all variables at once: pin that"
                    )
        return pin

    def _publication(
        self,
        compiled: Any,
        *,
        overwrite: bool,
    ) -> tuple[dict[str, object], dict[str, int] | None]:
        """Give the updates, and the versions that the variables must have."""
        results = dict(grow(compiled).predictors)
        updates: dict[str, object] = {}
        for binding, paths, _ in places(grow(self)):
            kind = binding.target.kind
            if kind not in ("instructions", "demos"):
                continue
            (path,) = paths
            if path not in results:
                raise InvalidRequest(
                    f"variable {quote(binding.name)} is {binding.use}, but what was compiled has "
                    f"no predictor {quote(path)}: {', '.join(results) or 'it has none'}"
                )
            try:
                new = _part(results[path], kind)
            except TypeError as error:
                raise InvalidValue(
                    f"variable {quote(binding.name)} is {binding.use}, and what was compiled has "
                    f"no JSON form: {error}",
                    field=binding.name,
                ) from None
            if updates.setdefault(binding.name, new) != new:
                raise InvalidRequest(
                    f"variable {quote(binding.name)} is bound to {kind} of several predictors, "
                    "which differ now: bind a variable for each",
                    field=binding.name,
                )
        if not updates:
            raise InvalidRequest(
                "nothing to publish: no variable is bound to 'instructions' or 'demos'"
            )
        began: BoundReading | None = getattr(compiled, "_compiled_from", None)
        if overwrite or began is None:
            return updates, None
        return updates, {name: began[name].version for name in updates if name in began}


class VariableAwarePredict(VariableAwareModule, SteeredPredict):
    """``dspy.Predict`` with a session: ``VariableAwarePredict(session, "question -> answer")``."""


class VariableAwareChainOfThought(VariableAwareModule, dspy.ChainOfThought):
    """``dspy.ChainOfThought`` with a session before its own arguments."""


class VariableAwareReAct(VariableAwareModule, dspy.ReAct):
    """``dspy.ReAct`` with a session before its own arguments.

    The instructions of its predictor ``react`` list the tools: bind others to it only if they do.
    """


def _place(binding: Binding) -> tuple[str, str]:
    """Give what only one variable can be bound to; to be read, any number can."""
    return (binding.to, binding.at) if binding.to else ("", binding.name)


def _stamped(output: Any, reading: BoundReading) -> Any:
    """Give a prediction with its reading, as an attribute that is none of its fields.

    A copy, with the same fields: the program may keep what it returned, and return it again.
    """
    if not isinstance(output, dspy.Prediction):
        return output
    # As copy.copy, in a tenth of the time.
    stamped = output.__new__(type(output))
    stamped.__dict__.update(output.__dict__, variables=reading)
    return stamped


def _part(predictor: Any, kind: str) -> str:
    if kind == "instructions":
        instructions: str = predictor.signature.instructions
        return instructions
    return json.dumps(predictor.dump_state()["demos"], ensure_ascii=False)
