"""Tokenizer conversion: the tokenizer.json of a checkpoint that has an older kind of tokenizer only.

    tokenizer.model              SentencePiece, as Llama 2, Vicuna and Mistral were published
    vocab.json + merges.txt      byte-level merges, as GPT-2 and its kin were published

transformers converts them, by the class that the checkpoint names, whenever somebody loads such a checkpoint; here it
does so once, and what it writes becomes part of the snapshot. Its rules are then those of every later stage.
"""

from pathlib import Path
from shutil import copyfile
from tempfile import TemporaryDirectory

from slmpack.checkpoint.inspect import older_tokenizer
from slmpack.errors import SourceError, is_failure
from slmpack.machine.child import limited, run_in_child
from slmpack.machine.forks import TORCH, forked_with
from slmpack.records import Record

LIMIT_SECONDS = 600.0


class ConversionRequest(Record):
    """A checkpoint without tokenizer.json, whose small files may be replaced."""

    folder: Path


class ConversionResult(Record):
    """The class by which transformers read the older files, and transformers' version."""

    tokenizer_class: str
    version: str


def convert_tokenizer(folder: Path, log: Path) -> str | None:
    """Write tokenizer.json beside the older files; return a sentence about it, or None where nothing is to convert.

    Raises:
        SourceError: transformers cannot convert the files.
    """
    names = older_tokenizer(folder)
    if not names:
        return None
    result, _ = run_in_child(
        write_tokenizer,
        ConversionRequest(folder=folder),
        log=log,
        limit_seconds=LIMIT_SECONDS,
        failure=SourceError,
        doing=f"the conversion of {' and '.join(names)}",
    )
    return (
        f"tokenizer.json was made from {' and '.join(names)} by transformers {result.version} "
        f"({result.tokenizer_class}), since the checkpoint has none"
    )


@forked_with(*TORCH)
def write_tokenizer(request: ConversionRequest) -> ConversionResult:
    """Run in a child: let transformers read the older files and save what it made of them.

    Raises:
        SourceError: it cannot, or reads them by a class that has no tokenizer.json.
    """
    import transformers

    folder = request.folder
    try:
        with limited(f"the tokenizer in {folder}"):
            tokenizer = transformers.AutoTokenizer.from_pretrained(
                folder, local_files_only=True, trust_remote_code=False
            )
    except MemoryError:
        raise
    except BaseException as error:  # the library raises what its readers raise, or panics
        if not is_failure(error):
            raise
        reason = " ".join(str(error).split())[:200]
        raise SourceError(
            f"transformers cannot read the tokenizer in {folder} ({reason})",
            "a tokenizer that it converts",
            "save the tokenizer with transformers as tokenizer.json",
        ) from error
    with TemporaryDirectory(dir=folder.parent) as scratch:
        tokenizer.save_pretrained(scratch)
        written = [path for path in Path(scratch).rglob("*") if path.is_file()]
        if not any(path.name == "tokenizer.json" for path in written):
            raise SourceError(
                f"{type(tokenizer).__name__} of the tokenizer in {folder} has no fast form",
                "one with tokenizer.json",
                "name another model",
            )
        for path in written:
            target = folder / path.relative_to(scratch)
            target.parent.mkdir(exist_ok=True)
            target.unlink(missing_ok=True)  # never through a link
            copyfile(path, target)
    return ConversionResult(tokenizer_class=type(tokenizer).__name__, version=transformers.__version__)
