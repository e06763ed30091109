"""Model URIs: which of MLflow's `models:/` forms names what, read in one place.

    models:/m-ID                                a logged model
    models:/NAME/VERSION, models:/NAME@ALIAS    a version of a registered model
    models:/NAME/latest                         whichever is the newest, for those who load
    models:/NAME/VERSION/PATH                   a file or a folder of a version

MLflow cuts a URI at `#` and `?`: a name with one of them would be checked as one model and loaded as another.
"""

import re

_NAME = r"(?P<name>[^/@#?]+)"
_VERSION = rf"{_NAME}(?:/(?P<version>\d+)|@(?P<alias>[\w-]+))"
_ONE = re.compile(rf"models:/(?:(?P<id>m-[0-9a-f]{{32}})|{_VERSION})")
_BY_WORD = re.compile(rf"models:/{_NAME}/[\w-]+")  # `latest`, and the stages of older registries
_WITH_PATH = re.compile(rf"models:/(?!m-){_VERSION}/[^/].*")


def model_form(uri: str) -> "re.Match[str] | None":
    """Return the `id`, or the `name` and the `version` or `alias`, of a URI that names a single model."""
    return _ONE.fullmatch(uri)


def registered_form(uri: str) -> "re.Match[str] | None":
    """Return the `name` and the `version` or the `alias` that a URI has; None where it has another form."""
    form = _ONE.fullmatch(uri)
    return form if form and form["name"] else None


def name_in_uri(uri: str) -> str | None:
    """Return the registered model that a URI of one model asks for, `models:/NAME/latest` included."""
    form = registered_form(uri) or _BY_WORD.fullmatch(uri)
    return form and form["name"]


def names_one_model(uri: str) -> bool:
    """Say whether MLflow loads a single model by a `models:/` URI."""
    return _ONE.fullmatch(uri) is not None or _BY_WORD.fullmatch(uri) is not None


def artifact_form(uri: str) -> "re.Match[str] | None":
    """Return the `name` and the `version` or the `alias` of a URI that names a file or a folder of a version."""
    return _WITH_PATH.fullmatch(uri)
