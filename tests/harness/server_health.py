"""Wait for a server that was started as a process."""

import http.client
import subprocess
import time
import urllib.error
import urllib.request
from pathlib import Path


def wait_until_healthy(address: str, process: "subprocess.Popen[bytes]", log: Path, seconds: float) -> None:
    """Return once `address` answers 200; raise with the end of its log if it ends or takes longer."""
    deadline = time.monotonic() + seconds
    while process.poll() is None and time.monotonic() < deadline:
        try:
            with urllib.request.urlopen(address, timeout=30) as answer:
                if answer.status == 200:
                    return
        except (urllib.error.URLError, http.client.HTTPException, OSError):
            time.sleep(0.1)
    raise RuntimeError(f"no server answers at {address}:\n{log.read_text()[-2000:]}")
