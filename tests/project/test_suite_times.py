"""The table of the suite's times: every function whose seconds it counts is there."""

import importlib
import runpy

from places import PROJECT


def test_every_function_that_is_timed_is_there() -> None:
    timed = runpy.run_path(str(PROJECT / "benchmarks" / "suite_times.py"))["FUNCTIONS"]
    assert [name for module, name, _ in timed if not hasattr(importlib.import_module(module), name)] == []
