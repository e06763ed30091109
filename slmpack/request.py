"""What a run is asked for, checked before anything is started."""

from pathlib import Path

from slmpack.errors import UsageError
from slmpack.records import Interface, Recipe, Record, Target
from slmpack.registry import check_name
from slmpack.targets import recipe_for


class Request(Record):
    """A request that makes sense: the recipe and the workspace are filled in."""

    recipe: Recipe | None
    name: str | None
    workspace: Path


def default_workspace() -> Path:
    """Return the folder for work files in the user's cache."""
    return Path.home() / ".cache" / "slmpack"


def check_request(
    target: Target, recipe: Recipe | None, interface: Interface, name: str | None, workspace: Path | None
) -> Request:
    """Fill in what was left out.

    Raises:
        UsageError: the parts do not fit each other, or MLflow would refuse the name.
    """
    if target is Target.TRANSFORMERS and interface is not Interface.CHAT:
        raise UsageError(f"interface {interface} for target {target}", "chat", "leave --interface out")
    if name is not None:
        check_name(name)
    place = (workspace or default_workspace()).expanduser().absolute()
    return Request(recipe=recipe_for(target, recipe), name=name, workspace=place)
