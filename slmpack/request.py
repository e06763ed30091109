"""What a run is asked for, checked before anything is started."""

from pathlib import Path

from slmpack.errors import UsageError
from slmpack.measure import checked_waiver, read_text
from slmpack.records import Interface, QualityPolicy, Recipe, Record, Target, digest_of
from slmpack.registry import check_name
from slmpack.targets import ladder_for, options_for


class Request(Record):
    """A request that makes sense.

    Attributes:
        ladder: the recipes to try, cheapest first.
        name: the registered model's; None if the source is to give it.
        quality_text: what to measure the quality on; None for the built-in text.
        calibration_text: what the source reads before its weights are quantised; None for what is built in.
        waiver: why to publish below the policy; None if that is not allowed.
        asked: the recipe with the policy and the texts, as a version's tag remembers it.
        wanted: see `wanted`; None until the source is resolved.
    """

    ladder: tuple[Recipe | None, ...]
    name: str | None
    workspace: Path
    policy: QualityPolicy
    quality_text: Path | None
    calibration_text: str | None
    waiver: str | None
    asked: str
    wanted: str | None = None

    def waiver_for(self, recipe: Recipe | None) -> str | None:
        """Return the waiver where it counts: with `auto` only when no recipe passes, so for the last."""
        return self.waiver if recipe == self.ladder[-1] else None

    def advice_for(self, recipe: Recipe | None) -> str:
        """Say what to do when the policy refuses `recipe`."""
        if recipe != self.ladder[-1]:
            return "the next recipe is tried"
        other = "use --target cpu-int8 or transformers" if len(self.ladder) > 1 else "use --recipe auto"
        return f"{other}, or give a reason: --waive-quality REASON"


def default_workspace() -> Path:
    """Return the folder for work files in the user's cache."""
    return Path.home() / ".cache" / "slmpack"


def workspace_of(asked: Path | None) -> Path:
    """Return the absolute path of the workspace that was asked for, the default one with None."""
    return (asked or default_workspace()).expanduser().absolute()


def check_request(
    target: Target,
    recipe: Recipe,
    interface: Interface,
    name: str | None,
    workspace: Path | None,
    *,
    policy: QualityPolicy,
    quality_text: Path | None,
    waive_quality: str | None,
    calibration_text: Path | None = None,
) -> Request:
    """Fill in what was left out.

    Raises:
        UsageError: the parts do not fit each other, a text cannot be read, or MLflow would refuse the name.
    """
    if target is Target.TRANSFORMERS and interface is not Interface.CHAT:
        raise UsageError(f"interface {interface} for target {target}", "chat", "leave --interface out")
    if name is not None:
        check_name(name)
    ladder = ladder_for(target, recipe)
    options = [options_for(target, rung) for rung in ladder]
    if calibration_text is not None and not any(each and each.weighted for each in options):
        raise UsageError(f"a calibration text for target {target}, recipe {recipe}", "a recipe that calibrates",
                         "leave --calibration-text out")  # fmt: skip
    text = read_text(quality_text)
    calibration = None if calibration_text is None else read_text(calibration_text, "--calibration-text")
    told = [policy.model_dump(), text] if calibration is None else [policy.model_dump(), text, calibration]
    return Request(
        ladder=ladder,
        name=name,
        workspace=workspace_of(workspace),
        policy=policy,
        quality_text=quality_text and quality_text.expanduser().absolute(),
        calibration_text=calibration,
        waiver=None if waive_quality is None else checked_waiver(waive_quality),
        asked=f"{recipe} {digest_of(told)[:12]}",
    )
