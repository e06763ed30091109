"""What a run is asked for, checked before anything is started."""

import re
from pathlib import Path

from slmpack.chats.dataset import read_good_chats
from slmpack.errors import UsageError
from slmpack.log.chat_artifacts import is_artifact
from slmpack.log.mlflow_server import check_name
from slmpack.machine.private import require_private
from slmpack.machine.surroundings import cache_folder, require_writable, typed_path
from slmpack.prove.measure import CheckedTexts
from slmpack.prove.quality.text import checked_waiver, read_text
from slmpack.records import Interface, ModelSource, QualityPolicy, Recipe, Record, Target, digest_of
from slmpack.source.names import is_generic
from slmpack.targets import ladder_for, options_for

_PINNED = re.compile(r"runs:/|models:/[^/@]+/\d+/")
_REGISTERED = re.compile(r"models:/(?!m-)")


class Request(Record):
    """A request that makes sense.

    Attributes:
        recipe: as it was asked for.
        ladder: the recipes to try, cheapest first.
        name: the registered model's; None if the source is to give it.
        quality_text: what to measure the quality on; None for the built-in text.
        quality_chats: whose answers a package has to keep as well, a path or an artifact in MLflow; None for none.
        calibration_text: what the source reads before its weights are quantised; None for what is built in.
        checked: what was read of the text and the chats, so that they are found to be others later.
        waiver: why to publish below the policy; None if that is not allowed.
        asked: the recipe with the policy and the texts, as a version's tag remembers it.
        wanted: see `wanted`; None until the source is resolved.
    """

    target: Target
    recipe: Recipe
    ladder: tuple[Recipe | None, ...]
    name: str | None
    workspace: Path
    policy: QualityPolicy
    quality_text: Path | None
    quality_chats: str | None
    calibration_text: str | None
    checked: CheckedTexts
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
    """Return the folder for work files in the user's cache.

    Raises:
        WorkspaceError: there is no such cache.
    """
    return cache_folder() / "slmpack"


def workspace_of(asked: Path | None) -> Path:
    """Return the absolute path of the workspace that was asked for, the default one with None.

    Raises:
        WorkspaceError: it cannot be written or made, or others may write it.
    """
    folder = typed_path(asked or default_workspace())
    require_writable(folder)
    require_private(folder, is_default=asked is None)
    return folder


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
    quality_chats: str | None = None,
) -> Request:
    """Fill in what was left out.

    Raises:
        UsageError: the parts do not fit each other, a text cannot be read, or MLflow would refuse the name.
        DataError: a line of the chats is none.
    """
    if target is Target.TRANSFORMERS and interface is not Interface.CHAT:
        raise UsageError(f"interface {interface} for target {target}", "chat", "leave --interface out")
    if name is not None:
        check_name(name)
    ladder = ladder_for(target, recipe, on_chats=quality_chats is not None)
    options = [options_for(target, rung) for rung in ladder]
    if calibration_text is not None and not any(each and each.weighted for each in options):
        raise UsageError(f"a calibration text for target {target}, recipe {recipe}", "a recipe that calibrates",
                         "leave --calibration-text out")  # fmt: skip
    text = read_text(quality_text)
    calibration = None if calibration_text is None else read_text(calibration_text, "--calibration-text")
    chats = None if quality_chats is None else checked_chats(quality_chats)
    return Request(
        target=target,
        recipe=recipe,
        ladder=ladder,
        name=name,
        workspace=workspace_of(workspace),
        policy=policy,
        quality_text=quality_text and typed_path(quality_text),
        quality_chats=chats and chats.text,
        calibration_text=calibration,
        checked=_checked(text, chats),
        waiver=None if waive_quality is None else checked_waiver(waive_quality),
        asked=_asked(recipe, policy, text, calibration, chats),
    )


def registered_name(given: str | None, source: ModelSource) -> str:
    """Return the registered model's name: the user's, else the source's if that says which model it is.

    Raises:
        UsageError: MLflow would refuse the name, or any model could have it.
    """
    name = source.name if given is None else given
    check_name(name)
    if given is None and is_generic(name) and not _REGISTERED.match(source.text):  # somebody chose a registered one
        raise UsageError(f"{source.text} gives the name {name!r}, which any model could have",
                         "a name that says which model it is", "give one with --name")  # fmt: skip
    return name


def on_chats(request: Request, text: str) -> Request:
    """Return the request, measured on chats that the source itself names as well.

    Raises:
        UsageError: the text names no chats, or some that may be others tomorrow.
        DataError: there are none, or a line is none.
    """
    chats, read = checked_chats(text), read_text(request.quality_text)
    return request.model_copy(update={
        "ladder": ladder_for(request.target, request.recipe, on_chats=True), "quality_chats": chats.text,
        "asked": _asked(request.recipe, request.policy, read, request.calibration_text, chats),
        "checked": _checked(read, chats),
    })  # fmt: skip


def _asked(
    recipe: Recipe, policy: QualityPolicy, text: str, calibration: str | None, chats: "CheckedChats | None"
) -> str:
    """Return what a version's tag remembers; without chats their limit does not count, as before there was one."""
    counted = policy.model_dump(exclude=set() if chats else {"max_chat_perplexity_ratio"})
    told = [counted, text, *filter(None, [calibration]), *([] if chats is None else [{"chats": chats.digest}])]
    return f"{recipe} {digest_of(told)[:12]}"


def _checked(text: str, chats: "CheckedChats | None") -> CheckedTexts:
    digest = None if chats is None or is_artifact(chats.text) else chats.digest
    return CheckedTexts(text=digest_of(text), chats=digest)


class CheckedChats(Record):
    """Chats that a run is asked to measure on: where they are, and what tells them from others."""

    text: str
    digest: str


def checked_chats(text: str) -> CheckedChats:
    """Look at every line of the chats that `text` names; those in MLflow are read when they are needed.

    Raises:
        UsageError: it names no chats, or in MLflow some that may be others tomorrow.
        DataError: there are none, or a line is none.
    """
    if is_artifact(text):
        if not _PINNED.match(text):
            raise UsageError(f"the chats {text}, which may be others tomorrow",
                             "runs:/ID/PATH or models:/NAME/VERSION/PATH", "name the run or the version")  # fmt: skip
        return CheckedChats(text=text, digest=text)
    path = typed_path(text)
    return CheckedChats(text=str(path), digest=digest_of(sorted(chat.digest for chat in read_good_chats(path))))
