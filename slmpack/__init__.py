"""What each stage does, in plain Python: the home of *what*.

Nothing here imports Prefect, `flows` or `tasks`, prints, or reads the environment. One file a stage
(`resolve`, `fetch`, `build`, `log`, `validate`, `smoke`, `publish`), each the same verb as in `tasks/`.
"""

from importlib.metadata import version

__version__ = version("slmpack")
