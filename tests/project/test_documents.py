"""The documents: every command in them parses, and every option, link, path, target and tag in them is there."""

import ast
import inspect
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml  # type: ignore[import-untyped]
from places import PROJECT

import slmpack
from flows.cli import COMMANDS, command_parser
from flows.cli_examples import EXAMPLES
from flows.cli_parser import CommandParser
from slmpack.log.tags import APART
from slmpack.records import Recipe, Target
from slmpack.reports import QualityPolicy
from slmpack.serve.metrics import Metrics
from slmpack.serve.models import Models

DOCUMENTS = sorted([*PROJECT.glob("*.md"), *(PROJECT / "docs").glob("*.md")])
HISTORY = "CHANGELOG.md"  # has the names of its time
CODE_BLOCK = re.compile(r"^ *```(\w*)\n(.*?)^ *```", re.MULTILINE | re.DOTALL)
OPTION = re.compile(r"(?<![\w-])--[a-z][a-z-]*")
OF_PREFECT = {"--limit"}
OF_ALL = {"--help", "--version"}  # of slmpack itself, before a command
FOLDERS = ("benchmarks/", "deploy/", "docs/", "flows/", "slmpack/", "tasks/", "tests/")
# A file, metadata of a graph, a request's scope, an event, and what a trace of a served answer has.
NO_TAGS = {"json", "toml", "matrix", "models", "source.version", "completion"}
README_LINES = 120

by_name = pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)


def text_of(document: Path) -> str:
    return document.read_text(encoding="utf-8")


def spans_of(document: Path) -> list[str]:
    """Return what stands between backticks in sentences and tables."""
    return re.findall(r"`([^`\n]+)`", CODE_BLOCK.sub("", text_of(document)))


def commands_in(block: str) -> Iterator[list[str]]:
    """Yield the words after each `slmpack` in shell code."""
    for line in block.replace("\\\n", " ").splitlines():
        lexer = shlex.shlex(line, posix=True, punctuation_chars=True)
        lexer.whitespace_split = True
        command: list[str] = []
        for word in [*lexer, ";"]:
            if set(word) - set("|;&<>()"):
                command.append(word)
                continue
            if command and Path(command[0]).name == "slmpack":
                yield command[1:]
            command = []


SHOWN = [
    (document.name, words)
    for document in DOCUMENTS
    for language, block in CODE_BLOCK.findall(text_of(document))
    if language == "sh"
    for words in commands_in(block)
]


@pytest.fixture(scope="module")
def options() -> dict[str, set[str]]:
    """The options in the help of each command."""
    found = {}
    for name, (_, add_options) in COMMANDS.items():
        add_options(parser := CommandParser(prog=f"slmpack {name}"))
        found[name] = set(OPTION.findall(parser.format_help()))
    return found


@pytest.mark.parametrize(("document", "words"), SHOWN, ids=[f"{name}-{' '.join(words)}" for name, words in SHOWN])
def test_a_command_in_a_document_parses(document: str, words: list[str]) -> None:
    assert callable(command_parser().parse_args(words).run), document


def test_every_command_is_shown() -> None:
    assert {words[0] for _, words in SHOWN} == set(COMMANDS)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_example_in_the_help_of_a_command_parses(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    for line in EXAMPLES[command]:
        (words,) = commands_in(line)
        assert command_parser().parse_args(words).command == command, line
    with pytest.raises(SystemExit):
        command_parser().parse_args([command, "--help"])
    assert capsys.readouterr().out.endswith("\n".join(f"  {line}" for line in EXAMPLES[command]) + "\n")


@pytest.mark.parametrize("line", ["A=1 .venv/bin/python x.py && slmpack package a --targt cpu-int4", "slmpack verify"])
def test_a_command_that_does_not_parse_is_found(line: str) -> None:
    (words,) = commands_in(line)
    with pytest.raises(SystemExit):
        command_parser().parse_args(words)


@by_name
def test_every_option_in_a_sentence_is_in_the_help(document: Path, options: dict[str, set[str]]) -> None:
    programs = "".join(map(text_of, (PROJECT / "benchmarks").glob("*.py")))
    known = set.union(*options.values(), OF_PREFECT, OF_ALL, set(OPTION.findall(programs)))
    for span in spans_of(document):
        program, *words = span.split()
        if program == "slmpack" and words and words[0] not in OF_ALL:
            assert set(OPTION.findall(span)) <= options[words[0]], span
        elif program.startswith("--"):
            assert set(OPTION.findall(span)) <= known, span


@by_name
def test_every_link_leads_to_a_file_and_its_heading(document: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", text_of(document)):
        name, _, heading = target.partition("#")
        file = document.parent / name if name else document
        assert file.is_file(), target
        if heading:
            slugs = [re.sub(r"[^\w\- ]", "", line).replace(" ", "-") for line in headings_of(file)]
            assert heading in slugs, f"{target}: {slugs}"


def headings_of(document: Path) -> list[str]:
    return [line.lower() for line in re.findall(r"^#+ (.+)$", CODE_BLOCK.sub("", text_of(document)), re.MULTILINE)]


@by_name
def test_every_path_of_the_project_is_there(document: Path) -> None:
    if document.name != HISTORY:
        paths = [span for span in spans_of(document) if span.startswith(FOLDERS) and " " not in span]
        assert not [path for path in paths if not (PROJECT / path).exists()]


@by_name
def test_every_target_of_make_is_in_the_makefile(document: Path) -> None:
    code = "\n".join([*spans_of(document), *(block for _, block in CODE_BLOCK.findall(text_of(document)))])
    known = set(re.findall(r"^([a-z]+):", text_of(PROJECT / "Makefile"), re.MULTILINE))
    assert set(re.findall(r"^(?:sudo )?make ([a-z]+)", code, re.MULTILINE)) <= known


def test_every_tag_is_in_the_documents_table_and_every_tag_there_is_in_the_library() -> None:
    library = "".join(map(text_of, (PROJECT / "slmpack").rglob("*.py")))
    literals = set(re.findall(r'"slmpack\.([a-z_.]+)"', library)) - NO_TAGS
    tags = {name.rstrip(".") for name in literals if not (PROJECT / "slmpack" / name.replace(".", "/")).is_dir()}
    tags = {name for name in tags if not (PROJECT / "slmpack" / f"{name.replace('.', '/')}.py").is_file()} | APART
    shown = set(re.findall(r"`slmpack\.([a-z_]+)(?:\.\*)?`", text_of(PROJECT / "docs" / "registry.md")))
    assert tags <= shown
    assert not [name for name in shown if f'"{name}"' not in library and f"slmpack.{name}" not in library]


def test_the_readme_is_short_and_its_table_has_every_target() -> None:
    readme = text_of(PROJECT / "README.md")
    assert len(readme.splitlines()) <= README_LINES
    assert set(re.findall(r"^\| `([a-z]+(?:-[a-z0-9]+)?)` \| .* \| .* \|$", readme, re.MULTILINE)) == set(Target)


def test_the_document_of_targets_has_every_recipe() -> None:
    text = text_of(PROJECT / "docs" / "targets.md").partition("## Recipes of cpu-int4")[2].partition("\n## ")[0]
    heads = [line.split("|")[1] for line in text.splitlines() if line.startswith("| `")]
    assert set(re.findall(r"`([a-z-]+)`", "".join(heads))) == set(Recipe) - {Recipe.AUTO}


def test_the_document_of_operations_has_every_deployment() -> None:
    described = yaml.safe_load(text_of(PROJECT / "prefect.yaml"))["deployments"]
    table = text_of(PROJECT / "docs" / "operations.md").partition("## Deployments")[2].partition("\n\nTo start")[0]
    heads = "".join(line.split("|")[1] for line in table.splitlines() if line.startswith("| `"))
    assert set(re.findall(r"`([a-z0-9-]+)`", heads)) == {each["name"] for each in described}


def test_the_document_of_serving_has_every_metric() -> None:
    written = Metrics(Models()).text().decode()
    names = set(re.findall(r"^# TYPE (slmpack_\w+)", written, re.MULTILINE))
    shown = set(re.findall(r"`(slmpack_\w+)`", text_of(PROJECT / "docs" / "serving.md")))
    assert {"slmpack_requests_total", "slmpack_up"} <= names <= shown


def test_every_variable_of_ours_is_read_somewhere() -> None:
    code = "".join(text_of(path) for folder in FOLDERS for path in (PROJECT / folder).rglob("*.py"))
    named = {name for document in DOCUMENTS for name in re.findall(r"SLMPACK_[A-Z_]+", text_of(document))}
    assert not [name for name in named if name not in code]


def test_the_quality_policy_has_the_limits_that_are_documented() -> None:
    text, policy = text_of(PROJECT / "docs" / "quality.md"), QualityPolicy()
    assert f"perplexity of at most {policy.max_perplexity_ratio:.2f} times the source's on the built-in text" in text
    assert f"perplexity of at most {policy.max_chat_perplexity_ratio:.2f} times the source's on the answers" in text


def test_the_example_calls_public_functions_as_they_are() -> None:
    (code,) = (block for language, block in CODE_BLOCK.findall(text_of(PROJECT / "docs" / "python.md")) if language)
    calls = [node for node in ast.walk(ast.parse(code)) if isinstance(node, ast.Call)]
    named = [(call, call.func.attr) for call in calls if isinstance(call.func, ast.Attribute)]
    for call, name in named:
        function = getattr(slmpack, name)
        inspect.signature(function).bind(*call.args, **{str(word.arg): word.value for word in call.keywords})
    functions = {name for name in slmpack.__all__ if inspect.isfunction(getattr(slmpack, name))}
    assert functions <= {name for _, name in named}
