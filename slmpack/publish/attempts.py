"""Attempts: which recipe is tried next, when a waiver counts, and what a run says that publishes nothing.

recipes to try, cheapest first -> built? no: the next one -> within the policy? no: the next one
    -> none passed: a waiver counts for the last one that was built -> else an error that names every attempt
"""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

from slmpack.errors import NetworkError, PublishError, QualityError, RecipeError, SlmpackError
from slmpack.publish.page.attempt import Attempt
from slmpack.publish.page.log_page import Proofs
from slmpack.publish.request import Request
from slmpack.records import Package, Recipe, Record
from slmpack.reports import Quality, QualityReport, SmokeReport, Speed, ValidationReport

logger = logging.getLogger(__name__)


class NoRecipePassedError(QualityError):
    """No recipe that was tried passes the policy; `attempts` has what each of them gave."""

    attempts: tuple[Attempt, ...] = ()


@dataclass
class Trial:
    """One recipe while it is tried.

    Attributes:
        request: the policy, the waiver and the texts to judge it by.
        earlier: the attempts before it.
        package: None until it is built.
        smoke: None until it has answered.
    """

    recipe: Recipe | None
    request: Request
    earlier: tuple[Attempt, ...] = ()
    package: Package | None = None
    smoke: SmokeReport | None = None

    def proofs(self, quality: QualityReport, validation: ValidationReport) -> Proofs:
        """Return all that was proved of the package, with the attempts before it."""
        assert self.package is not None
        assert self.smoke is not None
        passed = attempt_of(self.package, "published", self.smoke.own_speed, quality.quality)
        return Proofs(validation=validation, quality=quality, smoke=self.smoke, attempts=(*self.earlier, passed))


class Attempts:
    """Yields the recipes to try, one after the other, until the caller leaves the loop.

    Attributes:
        ended: the attempts that published nothing, in the order in which they were tried.
    """

    def __init__(self, request: Request) -> None:
        self._request = request
        self.ended: tuple[Attempt, ...] = ()

    def __iter__(self) -> Iterator[Trial]:
        for recipe in self._request.recipes_to_try:
            yield Trial(recipe, self._request, self.ended)
        refused = last_refused(self.ended)
        if self._request.waiver is not None and refused is not None and refused is not self.ended[-1]:
            # The waiver was for the last recipe, which could not be built: it counts for the last one that was.
            self.ended = tuple(attempt for attempt in self.ended if attempt is not refused)
            recipe = Recipe(refused.recipe)
            waived = self._request.model_copy(update={"recipes_to_try": (recipe,)})
            yield Trial(recipe, waived, self.ended)

    @contextmanager
    def trying(self, trial: Trial) -> Iterator[None]:
        """Note a recipe that cannot be built, or that the policy refuses, so that the next one is tried.

        Raises:
            RecipeError: there is no choice of recipes.
            SlmpackError: any other failure, which the next recipe would meet as well.
        """
        try:
            yield
        except RecipeError as error:
            if trial.recipe is None or trial.package is not None or len(trial.request.recipes_to_try) == 1:
                raise
            self.ended = (*self.ended, unbuilt_attempt(trial.recipe, error))
        except QualityError as refusal:
            if trial.package is None or trial.smoke is None:
                raise
            speed = trial.smoke.own_speed
            refused = attempt_of(trial.package, "refused", speed, refusal.quality, str(refusal))
            self.ended = (*self.ended, refused)

    def error(self) -> NoRecipePassedError | RecipeError:
        """Return the error of a run in which no recipe passed."""
        return error_of(self.ended)


def error_of(attempts: tuple[Attempt, ...]) -> NoRecipePassedError | RecipeError:
    """Return the error of attempts of which none passed: the reason of the last one, then those of the others.

    Where no recipe could be built, the policy refused nothing, and the error is the build's.
    """
    *others, last = attempts
    reasons = [f"{attempt.recipe}: {_reason(attempt).partition(';')[0]}" for attempt in others]
    parts = f"{last.recipe}: {_reason(last)}", "", f"also tried: {', '.join(reasons)}" if reasons else ""
    refused = last_refused(attempts)
    if refused is None:
        return RecipeError(*parts)
    error = NoRecipePassedError(*parts)
    error.quality, error.attempts = refused.quality, attempts
    return error


def last_refused(attempts: tuple[Attempt, ...]) -> Attempt | None:
    """Return the dearest recipe that was built, and refused by the policy."""
    return next((attempt for attempt in reversed(attempts) if attempt.status == "refused"), None)


def _reason(attempt: Attempt) -> str:
    reason = attempt.reason or ""
    return f"not built: {reason}" if attempt.status == "not built" else reason


def unbuilt_attempt(recipe: Recipe, error: RecipeError) -> Attempt:
    """Describe a recipe that cannot take the model, or not on this machine, and say so in the log."""
    logger.warning("recipe %s is not built: %s", recipe, error)
    return Attempt(recipe=recipe, size_bytes=None, quality=None, speed=None, status="not built", reason=str(error))


def attempt_of(
    package: Package,
    status: Literal["published", "refused"],
    speed: Speed | None,
    quality: Quality | None,
    reason: str | None = None,
) -> Attempt:
    """Describe a recipe that was built and measured."""
    recipe = str(package.recipe or "none")
    return Attempt(
        recipe=recipe, size_bytes=package.size_bytes, quality=quality, speed=speed, status=status, reason=reason
    )


class RefusalMark(Record):
    """What a logged model that is not published keeps: the reason, and what was measured until then.

    Attributes:
        status: how its MLflow run ends.
    """

    reason: str
    speed: Speed | None = None
    quality: Quality | None = None
    status: Literal["FAILED", "KILLED"] = "FAILED"


def refusal_mark(error: BaseException, smoke: SmokeReport | None) -> RefusalMark | None:
    """Return what a proof that ended with `error` leaves on the logged model.

    Returns:
        None where the error says nothing of the model: the registry refused it, or a network is away.
    """
    if isinstance(error, (PublishError, NetworkError)):
        return None
    if not isinstance(error, SlmpackError):
        return RefusalMark(reason="interrupted", status="KILLED")
    quality = error.quality if isinstance(error, QualityError) else None
    return RefusalMark(reason=str(error), speed=smoke and smoke.own_speed, quality=quality)
