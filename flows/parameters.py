"""Parameters of flows, declared once: the form shows their titles and help texts, and the server checks their values.

Prefect makes a JSON schema of them: an enum is a select, a bound is a range, a record is a group. The options of
packaging are one record, in `slmpack.publish.options`, which the command line reads as well.
"""

from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from flows import texts
from slmpack.chats.dataset import DataPolicy
from slmpack.log.mlflow_server import NAME_CHARACTERS
from slmpack.publish.options import PackageOptions, ProofOptions
from slmpack.records import Dispatch, Interface, Target
from slmpack.retrain.evaluate import RetrainPolicy
from slmpack.retrain.training.settings import TrainSettings
from slmpack.source.resolve import SOURCE_FORMS

INTERNAL = "internal"  # in a parameter's schema: it is for the run that starts this one, and for no form


def form_field(title: str, description: str, *, internal: bool = False, **rules: Any) -> Any:
    """Prefect overwrites the title and the description of a parameter; it leaves the extras of its schema alone."""
    extras: dict[str, Any] = {"title": title, "description": description}
    return Field(json_schema_extra=extras | ({INTERNAL: True} if internal else {}), **rules)


NAME_PATTERN = (
    r"^[^\x00-\x1f!-*,/:-@\[-^`{-~]+$"  # of ASCII's signs only . _ + - and space; `check_name` knows the rest
)
SourceText = Annotated[
    str,
    form_field(
        title="Source",
        min_length=1,
        pattern=r"\S",
        description=f"{SOURCE_FORMS}.",
        examples=["hf://microsoft/Phi-3-mini-4k-instruct", "models:/phi-3-tuned/7"],
    ),
]
TargetChoice = Annotated[Target, form_field(title="Target", description="The hardware and precision to build for.")]
TargetChoices = Annotated[
    list[Target],
    form_field(
        title="Targets",
        min_length=1,
        description="The hardware and precisions to build for; one that fails does not stop the others.",
    ),
]
InterfaceChoice = Annotated[
    Interface,
    form_field(
        title="Interface",
        description=str(PackageOptions.model_fields["interface"].description),
    ),
]
OptionsChoice = Annotated[
    PackageOptions,
    form_field(title="Options", description="How the model is packaged and judged; files are those of the worker."),
]
ProofOptionsChoice = Annotated[
    ProofOptions, form_field(title="Options", description="How the model is judged; files are those of the worker.")
]
Name = Annotated[
    str | None,
    form_field(
        title="Name",
        max_length=NAME_CHARACTERS,
        pattern=NAME_PATTERN,
        description=texts.NAME,
    ),
]
PublishedName = Annotated[
    str,
    form_field(
        title="Name",
        min_length=1,
        max_length=NAME_CHARACTERS,
        pattern=NAME_PATTERN,
        description=texts.PUBLISHED_NAME,
    ),
]
Workspace = Annotated[
    Path | None,
    form_field(title="Workspace", description="The folder for work files on the worker; the user's cache if empty."),
]
TrustCode = Annotated[
    bool,
    form_field(
        title="Trust the model's code",
        description=texts.TRUST_CODE,
    ),
]
PromotedSource = Annotated[
    str, form_field(title="Version", min_length=1, pattern=r"^[\w-]+$", description=texts.PROMOTED_SOURCE)
]
AliasName = Annotated[
    str, form_field(title="Alias", min_length=1, pattern=r"^[\w-]+$", description=texts.PROMOTED_ALIAS)
]
AcceptWaiver = Annotated[bool, form_field(title="Accept a waiver", description=texts.ACCEPT_WAIVER)]
CheckpointUri = Annotated[
    str | None,
    form_field(
        title="Fetched checkpoint",
        pattern=r"^models:/m-[0-9a-f]{32}(#[0-9a-f]{64})?$",
        description="models:/m-ID#DIGEST of the source's files, logged by the run that started this one.",
        internal=True,
    ),
]
DispatchChoice = Annotated[
    Dispatch,
    form_field(
        title="Dispatch",
        description="here: one target after the other in this run; pools: each by its own deployment, in its own pool.",
    ),
]
ModelUri = Annotated[
    str,
    form_field(
        title="Model",
        pattern=r"^models:/.+",
        description=texts.MODEL,
    ),
]
DataText = Annotated[
    str,
    form_field(
        title="Data",
        min_length=1,
        pattern=r"\S",
        description=texts.DATA,
        examples=["runs:/0123456789abcdef0123456789abcdef/chats.jsonl", "/data/chats"],
    ),
]
TrainSettingsChoice = Annotated[TrainSettings, form_field(title="Training", description="How the model is trained.")]
RetrainPolicyChoice = Annotated[
    RetrainPolicy,
    form_field(
        title="Retraining policy", description="What a tuned model must gain, and may forget, before it moves on."
    ),
]
DataPolicyChoice = Annotated[
    DataPolicy, form_field(title="Data policy", description="What the data may be, and how much of them is held out.")
]
WatchedNames = Annotated[
    list[Annotated[str, Field(min_length=1, max_length=NAME_CHARACTERS, pattern=NAME_PATTERN)]],
    form_field(
        title="Names",
        description="The registered models to look at; empty: all that have the tag slmpack.watch with value true.",
        examples=[["phi-3-tuned"]],
    ),
]
