"""Flows that take their options as one record, and refuse by name what was a parameter of its own before.

A schedule, an automation or a script that was written for an earlier version gives `recipe`, not `options.recipe`.
Prefect would list the parameters that the flow has; this says what to write instead.
"""

from collections.abc import Callable, Mapping
from inspect import signature
from typing import Any, ParamSpec, TypeVar

from prefect import Flow

from slmpack.errors import UsageError
from slmpack.records import Record
from tasks.run_name import unless_given

OPTIONS = "options"

P = ParamSpec("P")
R = TypeVar("R")


class OptionsFlow(Flow[P, R]):
    """A flow whose parameter `options` is a record."""

    def validate_parameters(self, parameters: dict[str, Any]) -> dict[str, Any]:
        """Check the parameters of a run, as Prefect does for every flow.

        Raises:
            UsageError: an option stands beside `options`.
        """
        refuse_moved(self.fn, parameters)
        return super().validate_parameters(parameters)


def options_flow(name: str, run_name: Callable[[dict[str, Any]], str]) -> Callable[[Callable[P, R]], OptionsFlow[P, R]]:
    """Return the decorator of a flow that takes `options`.

    Args:
        run_name: makes the name of a run of its parameters.
    """

    def decorate(function: Callable[P, R]) -> OptionsFlow[P, R]:
        return OptionsFlow(function, name=name, flow_run_name=unless_given(run_name))

    return decorate


def refuse_moved(function: Callable[..., Any], parameters: Mapping[str, Any]) -> None:
    """Refuse options that stand beside `options`, as they did in earlier versions.

    Raises:
        UsageError: there are some.
    """
    own = signature(function).parameters
    record: type[Record] = type(own[OPTIONS].default)
    moved = [name for name in parameters if name not in own and name in record.model_fields]
    if moved:
        raise UsageError(
            f"the parameter {', '.join(moved)}",
            ", ".join(f"{OPTIONS}.{name}" for name in moved),
            f"put it into the group {OPTIONS}, where it stands since this version",
        )
