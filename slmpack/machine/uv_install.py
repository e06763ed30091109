"""`python -m slmpack.machine.uv_install ARGUMENTS`: what `pip install ARGUMENTS` does, by uv, where pip looks.

`make setup` runs it in an environment that has nothing yet but pydantic and uv.
"""

import os
import sys
from typing import NoReturn

from slmpack.machine.pip_config import read_pip_config, settings_for_uv


def main() -> NoReturn:
    """Become uv, with its arguments for this interpreter."""
    from uv import find_uv_bin

    settings = settings_for_uv(read_pip_config(sys.executable))
    # Compiled now, as pip does: where no bytecode may be written later, every process would compile torch for itself.
    install = ["pip", "install", "--compile-bytecode", "--python", sys.executable]
    command = [find_uv_bin(), *install, *settings.arguments, *sys.argv[1:]]
    os.execve(command[0], command, os.environ | settings.environment)  # noqa: S606 - no shell is needed


if __name__ == "__main__":
    main()
