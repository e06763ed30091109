"""Links: where MLflow's own pages show a version and its page, as addresses and as Markdown.

A store that no server shows, such as a SQLite file, has no addresses: there a link is its text alone. Names that MLflow
takes and `check_name` lets through have no character that ends a link's text.
"""

from urllib.parse import quote, urlsplit

from slmpack.log.mlflow_server import without_password


def version_address(name: str, version: int) -> str | None:
    """Return where MLflow's own pages show the version; None with a store that no server shows."""
    import mlflow

    return _address(mlflow.get_registry_uri(), f"models/{quote(name)}/versions/{version}")


def page_address(page_uri: str) -> str | None:
    """Return where MLflow shows an artifact, `runs:/<run>/<path>`, beside the run's other artifacts."""
    import mlflow
    from mlflow import MlflowClient

    run_id, _, path = page_uri.removeprefix("runs:/").partition("/")
    if _address(mlflow.get_tracking_uri(), "") is None:
        return None
    experiment = MlflowClient().get_run(run_id).info.experiment_id
    return _address(mlflow.get_tracking_uri(), f"experiments/{experiment}/runs/{run_id}/artifacts/{quote(path)}")


def version_link(name: str, version: int) -> str:
    """Return `NAME version N` as Markdown that links to the version in MLflow."""
    return markdown_link(f"{name} version {version}", version_address(name, version))


def markdown_link(text: str, address: str | None) -> str:
    """Return the text as a link in Markdown; without an address the text alone."""
    return text if address is None else f"[{text}]({address})"


def linked(line: str, name: str | None, version: int | None) -> str:
    """Return the line `line` with its first `NAME version N` linked to the version in MLflow."""
    if name is None or version is None:
        return line
    return line.replace(f"{name} version {version}", version_link(name, version), 1)


def _address(server: str, place: str) -> str | None:
    if urlsplit(server).scheme not in {"http", "https"}:
        return None
    return f"{without_password(server).rstrip('/')}/#/{place}"
