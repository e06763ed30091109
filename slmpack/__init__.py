"""Package small language models for a piece of hardware, prove them, and publish them.

A folder a chapter, in the order of a model's way: `source`, `quantise`, `build`, `log`, `prove`, `publish`; `retrain`
makes a source; `checkpoint`, `chats` and `machine` are used by all. pyproject.toml says which may import which.
Nothing here imports Prefect, `flows` or `tasks`.
"""

__version__: str


def __getattr__(name: str) -> str:
    """Look the version up when it is asked for: `make setup` runs a module of an slmpack that is not installed yet."""
    if name != "__version__":
        raise AttributeError(name)
    from importlib.metadata import version

    return version("slmpack")
