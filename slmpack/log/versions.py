"""Versions of a registered model, by tag."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mlflow.entities.model_registry import ModelVersion


def version_of(name: str, number: str | None, alias: str | None) -> "ModelVersion":
    """Return the version with a number, or the one that has an alias.

    Raises:
        MlflowException: there is none, or no server.
    """
    from mlflow import MlflowClient

    if number:
        return MlflowClient().get_model_version(name, number)
    return MlflowClient().get_model_version_by_alias(name, str(alias))


def versions_with(name: str, key: str, value: str) -> list["ModelVersion"]:
    """Return the versions of `name` with that tag, lowest number first."""
    from mlflow import MlflowClient

    client, token, found = MlflowClient(), None, []
    while token != "":
        page = client.search_model_versions(f"name = '{name}' AND tags.`{key}` = '{value}'", page_token=token)
        found += list(page)
        token = page.token or ""
    return sorted(found, key=lambda version: int(version.version))
