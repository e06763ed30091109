"""Machine: what the figures of a proof depend on, so that a page can say where they were measured."""

import os
import platform
import re
from pathlib import Path

import psutil

from slmpack.page_facts import Machine


def this_machine() -> Machine:
    """Return what the figures depend on: processor, logical cores, memory and operating system."""
    cpu = platform.processor() or platform.machine()
    if (info := Path("/proc/cpuinfo")).exists() and (found := re.search(r"model name\s*:\s*(.+)", info.read_text())):
        cpu = found[1]
    memory = psutil.virtual_memory().total
    system = f"{platform.system()} {platform.release()}, {platform.machine()}, Python {platform.python_version()}"
    return Machine(cpu=cpu, cores=os.cpu_count() or 1, memory_bytes=memory, system=system)
