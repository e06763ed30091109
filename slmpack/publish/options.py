"""Options: how a model is packaged and judged. Each option is described here once, for the form and the command line.

RecipeOptions     what is done to the weights, and how the model is called
ProofOptions      what the package must keep of its source, and who signs it then; all that a verification takes
PackageOptions    both, and whether finished work is done again
"""

from pathlib import Path

from pydantic import Field

from slmpack.records import Interface, Recipe, Record, Target
from slmpack.reports import LicencePolicy, QualityPolicy
from slmpack.targets import recipe_for


class RecipeOptions(Record):
    """How a package is made."""

    recipe: Recipe = Field(
        Recipe.AUTO,
        title="Recipe",
        description="How to quantise, from cheap to dear; auto is the cheapest that passes the quality policy.",
    )
    interface: Interface = Field(
        Interface.CHAT,
        title="Interface",
        description="chat: MLflow's llm/v1/chat; prompt: one string in, one string out.",
    )
    calibration_text: Path | None = Field(
        None,
        title="Calibration text",
        description="A UTF-8 text file to choose the weights' codes by, of the kind of text that the model is for; "
        "built-in text if left out.",
    )


class ProofOptions(Record):
    """How a package is judged, and who vouches for it."""

    policy: QualityPolicy = Field(
        QualityPolicy(), title="Quality policy", description="What a package may lose before nothing is published."
    )
    licences: LicencePolicy = Field(
        LicencePolicy(), title="Licence policy", description="Which licences a source and its base may have."
    )
    waive_quality: str | None = Field(
        None,
        title="Quality waiver",
        description="The reason for publishing below the quality policy; becomes a tag of the version.",
    )
    waive_template: str | None = Field(
        None,
        title="Template waiver",
        description="The reason for taking a chat template that depends on what a message says; becomes a tag of the "
        "version.",
    )
    quality_text: Path | None = Field(
        None,
        title="Quality text",
        description="A UTF-8 text file to measure the quality on; the built-in text if left out.",
    )
    quality_chats: str | None = Field(
        None,
        title="Quality chats",
        description="Chats whose answers the package has to keep as well: a file, a folder, or runs:/ID/PATH.jsonl; "
        "those that the source names, if left out.",
    )
    signing_key: str | None = Field(
        None,
        title="Signing key",
        description="The key that signs the version, with its certificates if it has some: FILE, env:NAME of a "
        "variable, pkcs11:... in a token, or in a Prefect run secret:BLOCK; not signed if left out.",
    )


class PackageOptions(ProofOptions, RecipeOptions):  # the form shows the fields of the last base first
    """How a model is packaged and judged, for every target."""

    force: bool = Field(False, title="Force", description="Work even if the same was done before.")

    def for_target(self, target: Target) -> "PackageOptions":
        """Return the options for one target of several: a target that is not quantised takes no recipe."""
        return self.model_copy(update={"recipe": recipe_for(target, self.recipe)})

    def with_quality_chats(self, chats: str | None) -> "PackageOptions":
        """Return the options with the chats that the source names, unless the user named others."""
        return self if self.quality_chats or not chats else self.model_copy(update={"quality_chats": chats})

    @property
    def proof(self) -> ProofOptions:
        """The options that a verification takes."""
        return ProofOptions(**{name: getattr(self, name) for name in ProofOptions.model_fields})
