"""A version's page as a file of this machine.

It is drawn here from the facts that were logged, and is what `proof/version.html` of the run is: the same facts give
the same bytes. The HTML in the artifact store itself is not opened: who can write there could put a script into it.
"""

from pathlib import Path

from slmpack.errors import CheckError
from slmpack.log.tags import PUBLISHED, facts_in
from slmpack.machine.private import replace_text
from slmpack.publish.named_version import named_version, version_uri
from slmpack.publish.page.render import version_page
from slmpack.publish.view.version import page_behind
from slmpack.records import digest_of
from slmpack.source.mlflow_errors import final_errors

FOLDER = "pages"


def write_page(text: str, workspace: Path) -> Path:
    """Write the page of the published version that `text` names, and return its file in the workspace.

    Raises:
        UsageError: it can never name one.
        SourceError: MLflow has no such version.
        CheckError: slmpack did not publish it, or its run has no facts that this release reads.
        OSError: the workspace cannot be written.
    """
    uri = version_uri(text)
    with final_errors(CheckError, f"to read {uri}"):
        version = named_version(uri)
        page = page_behind(facts_in(version.tags).get("mlflow_run")) if PUBLISHED in version.tags else None
    if page is None:
        raise CheckError(
            f"{uri} has no page that this release can draw",
            "a version whose run has proof/facts.json",
            f"see what its tags say: slmpack show {uri}",
        )
    name = digest_of([version.name, int(version.version)])[:16]  # a model's name may be longer than a file's
    file = workspace / FOLDER / f"{name}.html"
    file.parent.mkdir(parents=True, exist_ok=True)
    replace_text(file, version_page(page))
    return file
