"""Machine: what the figures of a proof depend on, so that a page can say where they were measured."""

import os
import platform
import re
from pathlib import Path

import psutil

from slmpack.publish.page.facts import Machine
from slmpack.records import CPU, Device


def this_machine(device: Device = CPU) -> Machine:
    """Return what the figures depend on: the GPU if one was used, processor, logical cores, memory and system."""
    cpu = platform.processor() or platform.machine()
    if (info := Path("/proc/cpuinfo")).exists() and (found := re.search(r"model name\s*:\s*(.+)", info.read_text())):
        cpu = found[1]
    if device.name:
        gpu = f"{device.name}, driver {device.driver}, compute capability {device.compute_capability}"
        cpu = f"{gpu}; in a machine with {cpu}"
    memory = psutil.virtual_memory().total
    system = f"{platform.system()} {platform.release()}, {platform.machine()}, Python {platform.python_version()}"
    return Machine(cpu=cpu, cores=os.cpu_count() or 1, memory_bytes=memory, system=system)
