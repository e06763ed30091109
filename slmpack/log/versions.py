"""Versions of a registered model, by tag."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mlflow.entities.model_registry import ModelVersion

PAGE_SIZE = 1000  # the most that MLflow takes for registered models


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
    return _found(f"name = '{name}' AND tags.`{key}` = '{value}'")


def versions_with_tag(key: str, name: str | None = None, page_size: int = PAGE_SIZE) -> list["ModelVersion"]:
    """Return the versions that have that tag, whatever it says; by name, the lowest number first.

    Args:
        name: of the registered model; None: those of all.
        page_size: how many are asked for at a time.
    """
    of_name = "" if name is None else f"name = '{name}' AND "
    return _found(f"{of_name}tags.`{key}` LIKE '%'", page_size)


def _found(query: str, page_size: int = PAGE_SIZE) -> list["ModelVersion"]:
    from mlflow import MlflowClient

    client, token, found = MlflowClient(), None, []
    while token != "":
        page = client.search_model_versions(
            query, max_results=page_size, order_by=["name ASC", "version_number ASC"], page_token=token
        )  # in an order that a version which comes meanwhile does not change
        found += list(page)
        token = page.token or ""
    return sorted(found, key=lambda version: (version.name, int(version.version)))


def aliases_by_name(page_size: int = PAGE_SIZE) -> dict[str, dict[str, str]]:
    """Return the aliases of every registered model that has some, each with its version's number."""
    from mlflow import MlflowClient

    found: dict[str, dict[str, str]] = {}
    client, token = MlflowClient(), None
    while token != "":
        page = client.search_registered_models(max_results=page_size, page_token=token)
        found |= {model.name: {alias: str(number) for alias, number in model.aliases.items()} for model in page}
        token = page.token or ""
    return {name: aliases for name, aliases in found.items() if aliases}
