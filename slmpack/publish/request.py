"""Request: the options of a run for one target, checked before anything is started."""

from collections.abc import Iterable
from pathlib import Path

from slmpack.chats.lines import read_good_chats
from slmpack.errors import UsageError
from slmpack.log.chat_artifacts import is_artifact
from slmpack.log.mlflow_server import check_name
from slmpack.log.provenance import Provenance
from slmpack.machine.private import workspace_of
from slmpack.machine.surroundings import typed_path
from slmpack.prove.measure import CheckedTexts
from slmpack.prove.quality.text import checked_waiver, read_text
from slmpack.publish.options import PackageOptions, ProofOptions
from slmpack.records import Interface, ModelSource, Recipe, Record, Target, digest_of
from slmpack.reports import LicencePolicy, QualityPolicy
from slmpack.signing.keys import checked_reference
from slmpack.source.licences import check_policy
from slmpack.source.model_uris import artifact_form, registered_form
from slmpack.source.names import is_generic
from slmpack.targets import options_for, recipes_to_try


class Request(Record):
    """The options of a run for one target, checked.

    Attributes:
        options: the user's, with absolute paths and the waiver in one line.
        name: the registered model's; None if the source is to give it, and it is not resolved yet.
        recipes_to_try: cheapest first; None stands for a target that is not quantised.
        calibration: the words of `options.calibration_text`; None for the built-in text.
        checked: digests of the text and the chats, by which a later change of them is noticed.
        fingerprint: the recipe with a digest of policy and texts; a version's tag has it.
        request_key: see `request_key`; None until the source is resolved.
    """

    target: Target
    options: PackageOptions
    name: str | None
    workspace: Path
    recipes_to_try: tuple[Recipe | None, ...]
    calibration: str | None
    checked: CheckedTexts
    fingerprint: str
    request_key: str | None = None

    @property
    def registered(self) -> str:
        """The registered model's name, once the source is resolved."""
        assert self.name is not None
        return self.name

    @property
    def licence_terms(self) -> tuple[object, ...]:
        """What the licence policy adds to a key: nothing where it is the default, as before there was one."""
        policy = self.options.licences
        return () if policy == LicencePolicy() else (policy.model_dump(mode="json"),)

    @property
    def waiver(self) -> str | None:
        """The reason for publishing below the policy; None if that is not allowed."""
        return self.options.waive_quality

    def waiver_for(self, recipe: Recipe | None) -> str | None:
        """Return the waiver where it counts: with `auto` only when no recipe passes, so for the last."""
        return self.waiver if recipe == self.recipes_to_try[-1] else None

    def advice_for(self, recipe: Recipe | None) -> str:
        """Say what to do when the policy refuses `recipe`."""
        if recipe != self.recipes_to_try[-1]:
            return "the next recipe is tried"
        other = "use --target cpu-int8 or transformers" if len(self.recipes_to_try) > 1 else "use --recipe auto"
        return f"{other}, or give a reason: --waive-quality REASON"


def check_request(target: Target, options: PackageOptions, name: str | None, workspace: Path | None) -> Request:
    """Check the options of a run for one target, and fill in what was left out.

    Raises:
        UsageError: the parts do not fit each other, a text cannot be read, no licence has a name of the licence policy,
            or MLflow would refuse the name.
        DataError: a line of the chats is none.
    """
    recipe, interface = options.recipe, options.interface
    if target is Target.TRANSFORMERS and interface is not Interface.CHAT:
        raise UsageError(f"interface {interface} for target {target}", "chat", "leave --interface out")
    if name is not None:
        check_name(name)
    check_policy(options.licences)
    recipes = recipes_to_try(target, recipe, with_quality_chats=options.quality_chats is not None)
    calibrates = any(each and each.weighted for each in (options_for(target, recipe) for recipe in recipes))
    if options.calibration_text is not None and not calibrates:
        raise UsageError(
            f"a calibration text for target {target}, recipe {recipe}",
            "a recipe that calibrates",
            "leave --calibration-text out",
        )
    text = read_text(options.quality_text)
    path = options.calibration_text
    calibration = None if path is None else read_text(path, "--calibration-text")
    chats = None if options.quality_chats is None else checked_chats(options.quality_chats)
    return Request(
        target=target,
        options=_filled_in(options, chats),
        name=name,
        workspace=workspace_of(workspace),
        recipes_to_try=recipes,
        calibration=calibration,
        checked=_checked(text, chats),
        fingerprint=_fingerprint(recipe, options.policy, text, calibration, chats),
    )


def check_requests(
    targets: Iterable[Target], options: PackageOptions, name: str | None, workspace: Path | None
) -> list[Request]:
    """Check the options of a run for several targets, a request each.

    Raises:
        UsageError: as `check_request`, for one of the targets.
        DataError: as `check_request`.
    """
    return [check_request(target, options.for_target(target), name, workspace) for target in targets]


def verify_request(model: Provenance, options: ProofOptions, workspace: Path | None) -> Request:
    """Check the options of a verification of `model`, whose recipe and interface are given.

    Raises:
        UsageError: as `check_request`.
        DataError: as `check_request`.
    """
    made = {"recipe": model.package.recipe or Recipe.AUTO, "interface": model.interface}
    whole = PackageOptions(**made, **dict(options))
    return check_request(model.package.target, whole, model.name, workspace)


def _filled_in(options: PackageOptions, chats: "CheckedChats | None") -> PackageOptions:
    return options.model_copy(
        update={
            "waive_quality": None if options.waive_quality is None else checked_waiver(options.waive_quality),
            "signing_key": None if options.signing_key is None else checked_reference(options.signing_key),
            "waive_template": None if options.waive_template is None else checked_waiver(options.waive_template),
            "quality_text": options.quality_text and typed_path(options.quality_text),
            "quality_chats": chats and chats.text,
        }
    )


def registered_name(given: str | None, source: ModelSource) -> str:
    """Return the registered model's name: the user's, else the source's if that says which model it is.

    Raises:
        UsageError: MLflow would refuse the name, or any model could have it.
    """
    name = source.name if given is None else given
    check_name(name)
    if given is None and is_generic(name) and registered_form(source.text) is None:  # somebody chose a registered one
        raise UsageError(
            f"{source.text} gives the name {name!r}, which any model could have",
            "a name that says which model it is",
            "give one with --name",
        )
    return name


def with_quality_chats(request: Request, chats: str | None) -> Request:
    """Return the request, measured as well on the chats that its source names, unless the user named others.

    Raises:
        UsageError: the text names no chats, or some that may be others tomorrow.
        DataError: there are none, or a line is none.
    """
    options = request.options.with_quality_chats(chats)
    if options == request.options:
        return request
    return check_request(request.target, options, request.name, request.workspace)


def _fingerprint(
    recipe: Recipe, policy: QualityPolicy, text: str, calibration: str | None, chats: "CheckedChats | None"
) -> str:
    """Return what a version's tag remembers; without chats their limit does not count, as before there was one."""
    counted = policy.model_dump(exclude=set() if chats else {"max_chat_perplexity_ratio"})
    parts = [counted, text, *filter(None, [calibration]), *([] if chats is None else [{"chats": chats.digest}])]
    return f"{recipe} {digest_of(parts)[:12]}"


def _checked(text: str, chats: "CheckedChats | None") -> CheckedTexts:
    digest = None if chats is None or is_artifact(chats.text) else chats.digest
    return CheckedTexts(text=digest_of(text), chats=digest)


def _is_pinned(text: str) -> bool:
    form = artifact_form(text)
    return text.startswith("runs:/") or (form is not None and form["version"] is not None)


class CheckedChats(Record):
    """Chats that a run measures on: where they are, and the digest that tells them from others."""

    text: str
    digest: str


def checked_chats(text: str) -> CheckedChats:
    """Look at every line of the chats that `text` names; those in MLflow are read when they are needed.

    Raises:
        UsageError: it names no chats, or in MLflow some that may be others tomorrow.
        DataError: there are none, or a line is none.
    """
    if is_artifact(text):
        if not _is_pinned(text):
            raise UsageError(
                f"the chats {text}, which may be others tomorrow",
                "runs:/ID/PATH or models:/NAME/VERSION/PATH",
                "name the run or the version",
            )
        return CheckedChats(text=text, digest=text)
    path = typed_path(text)
    return CheckedChats(text=str(path), digest=digest_of(sorted(chat.digest for chat in read_good_chats(path))))
