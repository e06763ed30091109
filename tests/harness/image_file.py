"""deploy/Dockerfile, read as the words of its instructions, so that its steps can be run where there is no engine."""

import json
import re
import shlex
from dataclasses import dataclass
from pathlib import Path

from places import PROJECT

DEPLOY = PROJECT / "deploy"
PREFIX = "/opt/slmpack"  # where the image has its packages


@dataclass(frozen=True)
class Instruction:
    """One instruction.

    Attributes:
        name: such as RUN.
        text: all behind the name.
    """

    name: str
    text: str

    @property
    def words(self) -> list[str]:
        """The words of a list in JSON, or those that a shell would see."""
        found: list[str] = json.loads(self.text) if self.text.startswith("[") else shlex.split(self.text)
        return found


def stages() -> list[list[Instruction]]:
    """Return the instructions of each stage, each beginning with its FROM; what is before the first is left out."""
    text = re.sub(r"\\\n\s*", " ", (DEPLOY / "Dockerfile").read_text(encoding="utf-8"))
    lines = [line for line in text.splitlines() if line.strip() and not line.startswith("#")]
    found: list[list[Instruction]] = []
    for line in lines:
        name, _, rest = line.partition(" ")
        if name == "FROM":
            found.append([])
        if found:
            found[-1].append(Instruction(name, rest.strip()))
    return found


def one(name: str) -> Instruction:
    """Return the only instruction of that name in the last stage."""
    (found,) = (each for each in stages()[-1] if each.name == name)
    return found


def settings() -> dict[str, str]:
    """Return the environment that the image sets."""
    return dict(word.split("=", 1) for each in stages()[-1] if each.name == "ENV" for word in each.words)


def healthcheck() -> list[str]:
    """Return the command of the health check."""
    return Instruction("CMD", one("HEALTHCHECK").text.partition("CMD ")[2]).words


def command() -> list[str]:
    """Return the words of the entry point behind `slmpack`."""
    program, *words = one("ENTRYPOINT").words
    assert program == "slmpack"
    return words


def place_in(folder: Path, text: str) -> str:
    """Return a text of the Dockerfile with the image's places moved into a folder."""
    moved = {PREFIX: str(folder / "prefix"), "/tmp": str(folder / "tmp")}
    return re.sub(rf"(?:{PREFIX}|/tmp)\b", lambda found: moved[found[0]], text)  # in one go: the folder may be in /tmp
