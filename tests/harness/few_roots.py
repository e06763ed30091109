"""A file with one root certificate, for Prefect's clients: they read every root for each client that they make."""

from pathlib import Path

import certifi

from slmpack.machine.private import folder_in
from slmpack.machine.store import lock

END = "-----END CERTIFICATE-----\n"


def one_root(workspace: Path) -> Path:
    """Return a file with the first of certifi's roots, written once a workspace.

    Prefect's servers of the tests speak no TLS. Yet a client reads 140 roots, which takes 0.05 s of a processor, and a
    deployment of everything makes dozens of clients.
    """
    file = folder_in(workspace, "certificates") / "one-root.pem"
    with lock(workspace, file.stem):
        if not file.exists():
            text, unfinished = Path(certifi.where()).read_text(encoding="utf-8"), file.with_suffix(".unfinished")
            unfinished.write_text(text[: text.index(END) + len(END)], encoding="utf-8")
            unfinished.replace(file)
    return file
