"""Chat templates: which ones a checkpoint has, as transformers finds them, and which of them every chat goes through.

    chat_template.jinja                    the default one; with the folder below, all that counts
    additional_chat_templates/NAME.jinja   named ones, such as `tool_use` or `rag`
    tokenizer_config.json                  older: one template, or a list of named ones; used where there is no file

A chat is rendered with `default`, by the runtime as well; the others are used by name only.
`chat_template.json` is for processors of images and sound: a tokenizer does not read it.

Source: transformers 5.22, tokenization_utils_base.py, `_from_pretrained` and `get_chat_template`.
"""

import re
from pathlib import Path
from typing import Any

from slmpack.errors import SourceError
from slmpack.machine.bounded_file import read_bounded
from slmpack.machine.json_file import read_json
from slmpack.records import Record

TEMPLATE = "chat_template.jinja"
NAMED_TEMPLATES = "additional_chat_templates"
SETTINGS = "tokenizer_config.json"
DEFAULT = "default"
_PROCESSORS = "chat_template.json"
_NAME = re.compile(r"[\w-][\w.-]*")
LONGEST_TEMPLATE = 1 << 18  # characters: to compile more takes seconds; published ones have up to 30,000


class ChatTemplate(Record):
    """One template, and the file that it is from."""

    name: str
    place: Path
    text: str


def templates_of(folder: Path) -> dict[str, ChatTemplate]:
    """Return the templates that transformers' tokenizer of the checkpoint has, by name.

    Raises:
        SourceError: one is not text, or has no usable name.
    """
    return _in_files(folder) or _in_settings(folder / SETTINGS)


def _in_files(folder: Path) -> dict[str, ChatTemplate]:
    named = (path for path in sorted(folder.glob(f"{NAMED_TEMPLATES}/*.jinja")) if path.is_file())
    files = {path.name.removesuffix(".jinja"): path for path in named}
    if (folder / TEMPLATE).is_file():
        files.setdefault(DEFAULT, folder / TEMPLATE)  # transformers reads the folder last
    return {name: ChatTemplate(name=name, place=path, text=_text(path)) for name, path in files.items()}


def _text(path: Path) -> str:
    try:
        return read_bounded(path).decode()
    except OSError as error:
        raise SourceError(f"{path} cannot be read ({error.strerror})", "a Jinja template", "correct it") from error
    except UnicodeDecodeError as error:
        raise _not_text(path) from error


def _in_settings(path: Path) -> dict[str, ChatTemplate]:
    value = read_json(path).get("chat_template") if path.is_file() else None
    if not value:
        return {}
    pairs = [(DEFAULT, value)] if not isinstance(value, list) else [_named(path, item) for item in value]
    if not all(isinstance(text, str) for _, text in pairs):
        raise _not_text(path)
    return {name: ChatTemplate(name=name, place=path, text=text) for name, text in pairs}


def _named(path: Path, item: Any) -> tuple[str, Any]:
    name = item.get("name") if isinstance(item, dict) else None
    if not isinstance(item, dict) or "template" not in item:
        raise _not_text(path)
    if not (isinstance(name, str) and _NAME.fullmatch(name)):
        raise SourceError(
            f"a chat template in {path} has the name {name!r}", "one such as default or tool_use", "correct it"
        )
    return name, item["template"]


def _not_text(path: Path) -> SourceError:
    return SourceError(f"the chat template in {path} is not text", "a Jinja template", "correct it")


def require_templates(folder: Path) -> dict[str, ChatTemplate]:
    """Return the checkpoint's templates, all of which compile, `default` among them.

    Raises:
        SourceError: there is none, none of them is the default, or one does not compile.
    """
    templates = templates_of(folder)
    if not templates:
        raise _none(folder)
    for each in templates.values():
        require_compiling(each)
    if DEFAULT not in templates:
        raise SourceError(
            f"{folder} has the chat templates {', '.join(sorted(templates))}, and none that is the default",
            f"one in {TEMPLATE}, or named {DEFAULT}",
            f"save the one for ordinary chats as {TEMPLATE}",
        )
    return templates


def require_compiling(template: ChatTemplate) -> None:
    """Refuse a template that is too long, or that Jinja does not compile.

    Raises:
        SourceError: it is such a template.
    """
    if len(template.text) > LONGEST_TEMPLATE:
        raise SourceError(
            f"the chat template in {template.place} has {len(template.text):,} characters",
            f"at most {LONGEST_TEMPLATE:,}",
            "shorten it",
        )
    try:
        template_environment().from_string(template.text)
    except Exception as error:  # Jinja's own, and Python's for what is nested too deep
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise SourceError(
            f"the chat template in {template.place} does not compile ({reason})", "a Jinja template", "correct it"
        ) from error


def _none(folder: Path) -> SourceError:
    if (folder / _PROCESSORS).is_file():
        return SourceError(
            f"{folder} has its chat template in {_PROCESSORS}, which tokenizers do not read",
            f"one in {TEMPLATE}",
            f"save its text as {TEMPLATE}",
        )
    return SourceError(
        f"{folder} has no chat template",
        f"one in {TEMPLATE} or {SETTINGS}",
        "name the instruction-tuned model, or set tokenizer.chat_template and save it",
    )


def write_templates(templates: dict[str, ChatTemplate], into: Path) -> None:
    """Write templates as transformers does today; they count more than what tokenizer_config.json has."""
    for each in templates.values():
        place = into / TEMPLATE if each.name == DEFAULT else into / NAMED_TEMPLATES / f"{each.name}.jinja"
        place.parent.mkdir(exist_ok=True)
        place.write_text(each.text, encoding="utf-8", newline="")


def template_environment() -> Any:
    """Return a sandbox that compiles what transformers compiles: loop controls, and `{% generation %}` blocks.

    Nothing of a template is computed while it is compiled, as Jinja does with what is constant: `'x' * 4000000000`.
    """
    from jinja2 import TemplateAssertionError, nodes
    from jinja2.compiler import CodeGenerator
    from jinja2.ext import Extension, loopcontrols
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    class Generation(Extension):
        tags = {"generation"}  # noqa: RUF012 - Jinja's own way

        def parse(self, parser: Any) -> Any:
            line = next(parser.stream).lineno
            body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
            return nodes.Scope(body, lineno=line)

    class Unfolded(CodeGenerator):
        def _output_child_to_const(self, node: Any, frame: Any, finalize: Any) -> str:
            if not isinstance(node, nodes.TemplateData):
                raise nodes.Impossible
            return super()._output_child_to_const(node, frame, finalize)

        def visit_EvalContextModifier(self, node: Any, frame: Any) -> None:  # noqa: N802 - Jinja names it
            if not all(isinstance(option.value, nodes.Const) for option in node.options):
                raise TemplateAssertionError("autoescape is neither true nor false", node.lineno)
            super().visit_EvalContextModifier(node, frame)

    environment = ImmutableSandboxedEnvironment(extensions=[loopcontrols, Generation], optimized=False)
    environment.code_generator_class = Unfolded
    return environment
