"""Package small language models for a piece of hardware, prove them, and publish them.

A folder a chapter, in the order of a model's way: `source`, `quantise`, `build`, `log`, `prove`, `publish`; `retrain`
makes a source; `checkpoint`, `chats`, `signing` and `machine` are used by all. pyproject.toml says which may import
which. Nothing here imports Prefect, `flows` or `tasks`.

The names in `__all__` are the public API, see docs/python.md; each is imported on its first use, since the libraries
below it take seconds. A chapter lists the names that its neighbours use in its docstring, after `Door:`.
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from slmpack.build.build import build_package
    from slmpack.errors import SlmpackError
    from slmpack.log.ask import load
    from slmpack.log.log import log_model
    from slmpack.machine.surroundings import default_workspace
    from slmpack.prove.measure import measure_quality
    from slmpack.prove.smoke import smoke_test
    from slmpack.prove.validate import validate_model
    from slmpack.publish.page.log_page import Proofs
    from slmpack.publish.publish import publish_version
    from slmpack.records import Interface, LoggedModel, ModelSource, Package, Recipe, Snapshot, Target
    from slmpack.reports import PublishedVersion, QualityPolicy, QualityReport, SmokeReport, ValidationReport
    from slmpack.signing.keys import SigningKey, read_key
    from slmpack.source.fetch import fetch_snapshot
    from slmpack.source.resolve import resolve_source

    __version__: str

__all__ = [
    "Interface",
    "LoggedModel",
    "ModelSource",
    "Package",
    "Proofs",
    "PublishedVersion",
    "QualityPolicy",
    "QualityReport",
    "Recipe",
    "SigningKey",
    "SlmpackError",
    "SmokeReport",
    "Snapshot",
    "Target",
    "ValidationReport",
    "build_package",
    "default_workspace",
    "fetch_snapshot",
    "load",
    "log_model",
    "measure_quality",
    "publish_version",
    "read_key",
    "resolve_source",
    "smoke_test",
    "validate_model",
]

_MODULES = {
    "Proofs": "publish.page.log_page",
    "SlmpackError": "errors",
    "build_package": "build.build",
    "default_workspace": "machine.surroundings",
    "fetch_snapshot": "source.fetch",
    "load": "log.ask",
    "log_model": "log.log",
    "measure_quality": "prove.measure",
    "PublishedVersion": "reports",
    "QualityPolicy": "reports",
    "QualityReport": "reports",
    "SmokeReport": "reports",
    "ValidationReport": "reports",
    "publish_version": "publish.publish",
    "SigningKey": "signing.keys",
    "read_key": "signing.keys",
    "resolve_source": "source.resolve",
    "smoke_test": "prove.smoke",
    "validate_model": "prove.validate",
}  # the other names of `__all__` are records

if not TYPE_CHECKING:  # a type checker would take any name for one of ours

    def __getattr__(name: str) -> object:
        """Import a public name on its first use; `make setup` runs a module of an slmpack that is not installed yet."""
        if name == "__version__":
            from importlib.metadata import version

            return version("slmpack")
        if name not in __all__:
            raise AttributeError(f"module 'slmpack' has no attribute {name!r}")
        from importlib import import_module

        from slmpack import telemetry

        telemetry.switch_off()  # before MLflow and the Hub's client are imported
        value = getattr(import_module(f"slmpack.{_MODULES.get(name, 'records')}"), name)
        globals()[name] = value
        return value

    def __dir__() -> list[str]:
        return sorted({*globals(), *__all__, "__version__"})
