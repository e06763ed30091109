"""What a signature costs: signing and checking a folder beside sha256 of its bytes, in turn.

    .venv/bin/python benchmarks/signing.py [--megabytes 500] [--rounds 5]

sha256 is that of Python's hashlib, two files at a time, as the check does it. Signing hashes nothing here: slmpack
signs by the digests that the files were compared with. The folder has what a package has: one large file, two of medium
size and ten small ones.
"""

import argparse
import os
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from hashlib import file_digest
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

from slmpack.signing.keys import new_key
from slmpack.signing.policy import read_policy
from slmpack.signing.signature import SIGNATURE, STATEMENT, check_files, digests_in, sign_files

NAME = "measured"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--megabytes", type=int, default=500)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    with TemporaryDirectory() as made:
        folder = write_model(Path(made) / "model", options.megabytes * 10**6)
        key = new_key(Path(made) / "key.pem")
        trust = Path(made) / "trust.toml"
        trust.write_text(f"[trust.keys.a]\npublic_key = '''{key.public_pem()}'''\nnames = ['*']\n")
        digests, policy = digests_in(folder), read_policy(trust)
        (folder / SIGNATURE).write_bytes(sign_files(NAME, digests, key))  # and the library is imported
        steps: dict[str, Callable[[], object]] = {
            "sha256": lambda: hash_all(folder),
            "sign": lambda: sign_files(NAME, digests, key),
            "check": lambda: check_files("it", NAME, folder, policy),
        }
        seconds = {name: [timed(step) for _ in range(options.rounds)] for name, step in steps.items()}
    ratios = [checked / hashed for checked, hashed in zip(seconds["check"], seconds["sha256"], strict=True)]
    for name, found in seconds.items():
        sys.stdout.write(f"{name:8} {median(found):8.3f} s   ({min(found):.3f} to {max(found):.3f})\n")
    sys.stdout.write(f"check / sha256: {median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})\n")


def write_model(folder: Path, size: int) -> Path:
    folder.mkdir()
    for number, share in enumerate((0.9, 0.05, 0.05)):
        (folder / f"large-{number}").write_bytes(os.urandom(int(size * share)))
    for number in range(10):
        (folder / f"small-{number}.json").write_text("{}")
    (folder / STATEMENT).write_text(f'{{"subject": [{{"name": "{NAME}"}}]}}')
    return folder


def hash_all(folder: Path) -> list[str]:
    def digest(path: Path) -> str:
        with path.open("rb") as file:
            return file_digest(file, "sha256").hexdigest()

    with ThreadPoolExecutor(2) as pool:
        return list(pool.map(digest, sorted(folder.iterdir())))


def timed(step: Callable[[], object]) -> float:
    started = time.perf_counter()
    step()
    return time.perf_counter() - started


if __name__ == "__main__":
    main()
