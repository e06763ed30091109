"""Sources that fill the memory, wait for ever or publish somebody's key, if they are read as they are.

`python hostile_sources.py CHECKPOINT WORK [SECONDS]` resolves each in a process of its own and tells, a JSON object a
line, what came of it, what it cost and how long it took.
"""

import json
import multiprocessing
import os
import resource
import shutil
import socket
import struct
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

HUGE = 20 * 10**9  # as a sparse file, which takes no room
BILLION = 10**9
DEEP = "[" * 100_000
MEMORY_LIMIT = 4 << 30
BOMB = "a: &a [x,x,x,x,x,x,x,x,x]\n" + "".join(
    f"{chr(98 + at)}: &{chr(98 + at)} [{','.join(['*' + chr(97 + at)] * 9)}]\n" for at in range(9)
)

Damage = Callable[[Path], Path | None]


def sparse(name: str) -> Damage:
    def damage(folder: Path) -> None:
        (folder / name).unlink(missing_ok=True)
        with (folder / name).open("wb") as file:
            file.truncate(HUGE)

    return damage


def text(name: str, content: str) -> Damage:
    def damage(folder: Path) -> None:
        (folder / name).write_text(content)

    return damage


def link(name: str, to: str) -> Damage:
    def damage(folder: Path) -> None:
        (folder.parent / "id_rsa").write_text("PRIVATE KEY")
        (folder / name).unlink(missing_ok=True)
        (folder / name).symlink_to(to)

    return damage


def pipe(name: str) -> Damage:
    def damage(folder: Path) -> None:
        (folder / name).unlink(missing_ok=True)
        os.mkfifo(folder / name)

    return damage


def a_socket(folder: Path) -> None:
    here = Path.cwd()
    os.chdir(folder)  # the path of a socket must be short
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind("LICENSE")
    os.chdir(here)


def config(**changes: Any) -> Damage:
    def damage(folder: Path) -> None:
        path = folder / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))

    return damage


def weights(header: bytes) -> Damage:
    def damage(folder: Path) -> None:
        (folder / "model.safetensors").unlink()
        (folder / "model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header)

    return damage


def layers(*numbers: str) -> Damage:
    tensor = {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}
    return weights(json.dumps({f"model.layers.{number}.weight": tensor for number in numbers}).encode())


def only_index(content: str | None) -> Damage:
    def damage(folder: Path) -> None:
        (folder / "model.safetensors").unlink()
        index = "model.safetensors.index.json"
        sparse(index)(folder) if content is None else (folder / index).write_text(content)

    return damage


def adapter(content: str | None) -> Damage:
    def damage(folder: Path) -> None:
        for name in ("config.json", "model.safetensors"):
            (folder / name).unlink()
        sparse("adapter_config.json")(folder) if content is None else (folder / "adapter_config.json").write_text(
            content
        )

    return damage


def many_licences(folder: Path) -> None:
    (folder / "LICENSES").mkdir()
    for number in range(300):
        (folder / "LICENSES" / f"{number}.txt").write_text("a licence")


def blobs_elsewhere(folder: Path) -> Path:
    """Put the folder where a snapshot of the Hub's cache lies, whose blobs are a folder of somebody's keys."""
    (folder.parent / "keys").mkdir()
    (folder.parent / "keys" / "id_rsa").write_text("PRIVATE KEY")
    snapshot = folder.parent / "models--org--name" / "snapshots" / "0123"
    shutil.copytree(folder, snapshot)
    (snapshot.parents[1] / "blobs").symlink_to(folder.parent / "keys")
    (snapshot / "LICENSE").symlink_to("../../blobs/id_rsa")
    return snapshot


def gguf(entry: bytes, size: int = 0, entries: int = 1, tensors: int = 0) -> Damage:
    """Write a GGUF file of one entry, `key`, followed by zeros as far as `size`."""

    def damage(folder: Path) -> Path:
        path = folder.parent / "model.gguf"
        key = struct.pack("<Q", 3) + b"key"
        path.write_bytes(b"GGUF" + struct.pack("<IQQ", 3, tensors, entries) + (key + entry if entry else b""))
        if size:
            os.truncate(path, size)
        return path

    return damage


def gguf_pipe(folder: Path) -> Path:
    os.mkfifo(folder.parent / "model.gguf")
    return folder.parent / "model.gguf"


ARRAY, U8, STRING = 9, 0, 8
KINDS: dict[str, Damage] = {
    "a licence that is a link to a key": link("LICENSE", "../id_rsa"),
    "a licence that is a link to /dev/zero": link("LICENSE", "/dev/zero"),
    "a folder of licences that is a link": link("LICENSES", ".."),
    "blobs that are a link": blobs_elsewhere,
    "a card that is a link to /dev/zero": link("README.md", "/dev/zero"),
    "weights that are a link to a file outside": link("model.safetensors", "../id_rsa"),
    "a licence that is a named pipe": pipe("LICENSE"),
    "a config that is a named pipe": pipe("config.json"),
    "a template that is a named pipe": pipe("chat_template.jinja"),
    "weights that are a named pipe": pipe("model.safetensors"),
    "a licence that is a socket": a_socket,
    "300 licences": many_licences,
    **{f"20 GB of {name}": sparse(name) for name in (
        "config.json", "tokenizer.json", "tokenizer_config.json", "generation_config.json", "chat_template.jinja",
        "LICENSE", "README.md", "special_tokens_map.json",
    )},
    "20 GB of an index": only_index(None),
    "20 GB of adapter_config.json": adapter(None),
    "a billion layers": config(num_hidden_layers=BILLION),
    "a billion labels": config(num_labels=BILLION),
    "a billion heads": config(num_attention_heads=BILLION),
    "a vocabulary of 10^30": config(vocab_size=10**30),
    "a deep config": text("config.json", DEEP),
    "a deep config that Python reads": text("config.json", '{"architectures": ' + "[" * 900 + "]" * 900 + "}"),
    "a deep tokenizer_config": text("tokenizer_config.json", DEEP),
    "a deep generation_config": text("generation_config.json", DEEP),
    "a deep index": only_index(DEEP),
    "a deep adapter_config": adapter(DEEP),
    "15 MB of empty lists": text("config.json", "[" + "[]," * 5_000_000 + "[]]"),
    "a header of 99 MB": weights(b"{" + b" " * 99_000_000 + b"}"),
    "a deep header": weights(b'{"__metadata__":' + b"[" * 100_000),
    "a layer of 5,000 digits": layers("9" * 5000, "8" * 5000, "7" * 5000),
    "a card of aliases": text("README.md", f"---\n{BOMB}license: *j\n---\n"),
    "a card nested deep": text("README.md", f"---\nlicense: {DEEP}\n---\n"),
    "GGUF: 10^9 numbers": gguf(struct.pack("<IIQ", ARRAY, U8, BILLION), 2 * BILLION),
    "GGUF: 10^8 empty texts": gguf(struct.pack("<IIQ", ARRAY, STRING, 10**8), 2 * BILLION),
    "GGUF: arrays in arrays": gguf(struct.pack("<I", ARRAY) + struct.pack("<IQ", ARRAY, 1) * 100_000),
    "GGUF: 10^8 tensors": gguf(b"", 3 * BILLION, entries=0, tensors=10**8),
    "GGUF: a text of 1 GB": gguf(struct.pack("<IQ", STRING, BILLION), 2 * BILLION),
    "GGUF: a named pipe": gguf_pipe,
    "a device": lambda _: Path("/dev/zero"),
}  # fmt: skip
HARMLESS = ("a card of aliases", "a card nested deep")  # a card is prose: the model is used, its card is not


def make(kind: str, checkpoint: Path, work: Path) -> Path:
    """Make the source in an empty folder below `work`; return its path."""
    place = work / "".join(letter if letter.isalnum() else "-" for letter in kind)
    shutil.copytree(checkpoint, place / "model", copy_function=_copy)
    return KINDS[kind](place / "model") or place / "model"


def _copy(source: str, into: str) -> None:
    """Copy what a damage writes to; weights are only ever replaced."""
    os.link(source, into) if source.endswith(".safetensors") else shutil.copyfile(source, into)


def resolve(source: Path) -> dict[str, Any]:
    """Resolve, and look into a GGUF file as fetching does; return what came of it, and what it cost in MB."""
    from slmpack.errors import SlmpackError
    from slmpack.source.gguf.convert import inspect_gguf
    from slmpack.source.resolve import resolve_source

    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    began, before = time.monotonic(), _peak()
    try:
        is_gguf = source.suffix == ".gguf" and source.is_file()  # which resolving would hash whole
        found = inspect_gguf(source) if is_gguf else resolve_source(str(source))
        told = f"resolved, licence {str(found.licence)[:40]}"
    except SlmpackError as error:
        told = f"{type(error).__name__}: {error}"
    except BaseException as error:  # of whatever kind
        told = f"NOT OURS {type(error).__name__}: {str(error)[:100]}"
    return {"told": told, "megabytes": (_peak() - before) // 1000, "seconds": round(time.monotonic() - began, 1)}


def _peak() -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))


def _answer(source: Path, results: Any) -> None:
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_LIMIT, MEMORY_LIMIT))
    results.put(resolve(source))


def main(checkpoint: Path, work: Path, seconds: float) -> None:
    import tokenizers  # noqa: F401 - once, not in every process
    import transformers.models.auto.auto_mappings  # noqa: F401

    import slmpack.source.gguf.convert
    import slmpack.source.resolve  # noqa: F401

    context = multiprocessing.get_context("fork")
    for kind in KINDS:
        source, results = make(kind, checkpoint, work), context.SimpleQueue()
        child = context.Process(target=_answer, args=(source, results))
        child.start()
        child.join(seconds)
        waits = child.is_alive()
        megabytes = _peak_of(child.pid) if waits else 0
        child.kill()
        child.join()
        told = (
            {"told": "WAITS", "megabytes": megabytes, "seconds": seconds}
            if waits
            else {"told": f"DIED {child.exitcode}"}
        )
        print(json.dumps({"kind": kind} | (told if results.empty() else results.get())), flush=True)
        shutil.rmtree(work, ignore_errors=True)


def _peak_of(process: int | None) -> int:
    lines = Path(f"/proc/{process}/status").read_text().splitlines()
    return next((int(line.split()[1]) for line in lines if line.startswith("VmHWM")), 0) // 1000  # none: it just ended


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), float(sys.argv[3]) if len(sys.argv) > 3 else 20)
