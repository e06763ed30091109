"""Components: a model, its files, a data set and a package as CycloneDX writes them, with licences and hashes.

Names, revisions and licences come from strangers. They are values of JSON here, and the parts of an address are quoted.

Source: CycloneDX 1.6, bom-1.6.schema.json; package-url/purl-spec, types huggingface and pypi.
"""

import re
from collections.abc import Iterable, Mapping
from typing import Any
from urllib.parse import quote

from packaging.licenses import InvalidLicenseExpression, canonicalize_license_expression

from slmpack.checkpoint.licence_terms import UNKNOWN, names_in
from slmpack.records import FileDigest, ModelSource, SourceKind
from slmpack.reports import InstalledPackage

Json = dict[str, Any]

PREFIX = "slmpack:"  # of every property: names without one may be the standard's
_SHA256 = re.compile(r"[0-9a-f]{64}")


def properties_of(facts: Mapping[str, object]) -> list[Json]:
    """Return facts as properties; a list is one property an item, and what is None is left out."""
    pairs = [
        (name, item)
        for name, value in facts.items()
        for item in (value if isinstance(value, list | tuple) else [value])
        if item is not None
    ]
    return [{"name": PREFIX + name, "value": str(value)} for name, value in pairs]


def licences_of(text: str | None) -> list[Json]:
    """Return a licence's text as an SPDX expression if it is one, else by its names."""
    if text is None:
        return [{"license": {"name": UNKNOWN}}]
    try:
        expression = canonicalize_license_expression(text)
    except InvalidLicenseExpression:
        is_choice = " or " in text.lower()  # a list of names would lose that
        names = [text] if is_choice else names_in(text) or [text]
        return [{"license": {"name": name, "acknowledgement": "declared"}} for name in dict.fromkeys(names)]
    return [{"expression": str(expression), "acknowledgement": "declared"}]


def sha256(digest: str) -> list[Json]:
    """Return the hash of a component; none where a digest is something else, such as a commit."""
    return [{"alg": "SHA-256", "content": digest}] if _SHA256.fullmatch(digest) else []


def file_components(files: Iterable[FileDigest]) -> list[Json]:
    """Return files with their hashes."""
    return [
        {
            "type": "file",
            "name": file.name,
            "hashes": sha256(file.sha256),
            "properties": properties_of({"size_bytes": file.size_bytes}),
        }
        for file in files
    ]


def source_component(source: ModelSource, ref: str) -> Json:
    """Return a source; a path of the machine that packaged it is not told, as in every record that travels."""
    facts = {"source": source.shown, "kind": source.kind, "revision": source.revision, "member": source.member}
    component: Json = {
        "type": "machine-learning-model",
        "bom-ref": ref,
        "name": source.name,
        "version": source.revision,
        "licenses": licences_of(source.licence),
        "properties": properties_of(facts),
    }
    if source.kind is SourceKind.GGUF:
        component["hashes"] = sha256(source.revision)
    if (purl := _purl_of(source)) is not None:
        component["purl"] = purl
    return component


def _purl_of(source: ModelSource) -> str | None:
    if source.kind is SourceKind.HUB:
        return f"pkg:huggingface/{_quoted(source.location, '/')}@{_quoted(source.revision)}"
    if source.kind is SourceKind.WHEEL:
        name, _, version = source.location.partition("==")
        return f"{_pypi(name, version)}#{_quoted(source.member or '', '/')}"
    return None


def _pypi(name: str, version: str) -> str:
    return f"pkg:pypi/{_quoted(name)}@{_quoted(version)}"


def _quoted(text: str, safe: str = "") -> str:
    return quote(text, safe=safe, errors="replace")  # half of a surrogate pair has no bytes


def package_component(package: InstalledPackage) -> Json:
    """Return a package of the runtime; its hashes are those of the files that the index has of the release."""
    purl = _pypi(package.name, package.version)
    component: Json = {
        "type": "library",
        "bom-ref": purl,
        "name": package.name,
        "version": package.version,
        "purl": purl,
        "scope": "required",
        "licenses": licences_of(package.licence),
    }
    if package.sha256:
        component["externalReferences"] = [
            {
                "type": "distribution",
                "url": purl,
                "comment": "the files of this release, one of which is installed",
                "hashes": [each for digest in package.sha256 for each in sha256(digest)],
            }
        ]
    return component
