"""Where the project is, and the tests' shared parts: children that run those are told by PYTHONPATH."""

from pathlib import Path

HARNESS = Path(__file__).parent
PROJECT = HARNESS.parents[1]
