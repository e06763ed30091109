"""What each stage does, in plain Python: the home of *what*.

Nothing here imports Prefect, `flows` or `tasks`, prints, or reads the environment. One file a stage
(`resolve`, `fetch`, `build`, `log`, `validate`, `smoke`, `publish`), each the same verb as in `tasks/`.
"""

__version__: str


def __getattr__(name: str) -> str:
    """Look the version up when it is asked for: `make setup` runs a module of an slmpack that is not installed yet."""
    if name != "__version__":
        raise AttributeError(name)
    from importlib.metadata import version

    return version("slmpack")
