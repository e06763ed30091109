"""Absence: why a registered model's URI names nothing, and what there is instead.

models:/NAME@ALIAS, models:/NAME/VERSION  -> no such model | no such alias | no such version
"""

from typing import NamedTuple

from slmpack.source.model_uris import registered_form
from slmpack.suggest import did_you_mean, listed

MOST_NAMES = 1000
_CHECK = "check MLFLOW_TRACKING_URI and the name"


class Absence(NamedTuple):
    """The three parts of an error's message."""

    found: str
    known: str
    advice: str


def absence_of(uri: str) -> Absence | None:
    """Return what is missing; None where all of it is there, or `uri` has another form."""
    match = registered_form(uri)
    if match is None:
        return None
    name = match["name"]
    if (missing := missing_model(name)) is not None:
        return missing
    return _missing_alias(name, match["alias"]) if match["alias"] else _missing_version(name, match["version"])


def missing_model(name: str) -> Absence | None:
    """Return the absence of a registered model; None if there is one of the name."""
    from mlflow import MlflowClient

    names = [model.name for model in MlflowClient().search_registered_models(max_results=MOST_NAMES)]
    if name in names:
        return None
    return Absence(
        f"no model {name}", f"MLflow has {listed(names, 'no registered model')}", did_you_mean(name, names, _CHECK)
    )


def missing_alias(name: str, alias: str) -> Absence:
    """Return the absence of an alias of a model that there is."""
    aliases = sorted(aliases_of(name))
    return Absence(
        f"no alias {alias}",
        f"{name} has {listed(aliases, 'no alias')}",
        did_you_mean(alias, aliases, "take one of these" if aliases else _CHECK),
    )


def aliases_of(name: str) -> dict[str, str]:
    """Return the aliases of a registered model, each with its version."""
    from mlflow import MlflowClient

    return dict(MlflowClient().get_registered_model(name).aliases)


def _missing_alias(name: str, alias: str) -> Absence | None:
    return None if alias in aliases_of(name) else missing_alias(name, alias)


def _missing_version(name: str, number: str) -> Absence | None:
    from mlflow import MlflowClient

    versions = sorted({int(each.version) for each in MlflowClient().search_model_versions(f"name = '{name}'")})
    if int(number) in versions:
        return None
    return Absence(
        f"no version {number}",
        f"{name} has {listed(map(str, versions), 'no version')}",
        "take one of these" if versions else _CHECK,
    )
