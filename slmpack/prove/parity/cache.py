"""Cache of parity results, keyed by all that they depend on.

    <workspace>/parities/<key>/parity.json    the checks that held

A tokenizer is compared without a weight. Another recipe or target of a snapshot has the same tokenizer files, and
another run has the same of everything, so for them nothing is compared again; a changed file, release or line of the
comparison is another key. A difference is not stored: it is found again each time.
"""

from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from slmpack.checkpoint import chat_templates, tokenizer
from slmpack.checkpoint.headers import is_weights
from slmpack.checkpoint.texts import (
    inputs,
    sample_texts,
    template_branches,
    template_chats,
    template_structures,
    template_tools,
    template_words,
    tokenizer_edges,
    tokenizer_texts,
    unicode_texts,
)
from slmpack.log.staging import WRAPPER
from slmpack.machine.json_file import read_json
from slmpack.machine.store import Facts, log_folder, sha256_of, store_folder
from slmpack.prove.parity import check, pair, runtime_reading
from slmpack.prove.parity.check import ParityResult, check_parity
from slmpack.records import Package, digest_of
from slmpack.reports import Check

CONFIG = "genai_config.json"
RESULT = "parity.json"
READERS = ("onnxruntime-genai", "onnxruntime-genai-cuda", "transformers", "tokenizers", "jinja2")
CODE = (
    check,
    pair,
    sample_texts,
    inputs,
    tokenizer,
    runtime_reading,
    chat_templates,
    template_branches,
    template_chats,
    template_structures,
    template_tools,
    template_words,
    tokenizer_texts,
    tokenizer_edges,
    unicode_texts,
)


def known_parity(package: Package, workspace: Path) -> tuple[Check, ...]:
    """Return what `check_parity` finds for the package and its snapshot, now or in an earlier run.

    Raises:
        CheckError: the first difference.
    """
    key = digest_of(_depends_on(package))

    def make(into: Path) -> Facts:
        checks = check_parity(package.path, package.snapshot.path, log_folder(workspace) / f"parity-{key[:12]}.log")
        (into / RESULT).write_text(ParityResult(checks=checks).model_dump_json())
        return {"package": package.digest, "snapshot": package.snapshot.digest}

    folder = store_folder(workspace, "parities", key, make)
    return ParityResult.model_validate_json((folder / RESULT).read_text()).checks


def _depends_on(package: Package) -> list[object]:
    """Return all that the result depends on; of a package's configuration, what is not about running its decoder."""
    model: dict[str, Any] = read_json(package.path / CONFIG)["model"]
    decoder = str(model["decoder"]["filename"])
    others = {CONFIG, decoder, f"{decoder}.data"}
    return [
        {key: value for key, value in model.items() if key != "decoder"},
        [(file.name, file.sha256) for file in package.files if file.name not in others],
        [(file.name, file.sha256) for file in package.snapshot.files if not is_weights(file.name)],
        {name: _installed(name) for name in READERS},
        [sha256_of(path) for path in (WRAPPER, *(Path(str(module.__file__)) for module in CODE))],
    ]


def _installed(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None
