"""Forms: what the form of a deployment shows, and what the server takes for it.

Prefect makes one schema of a flow's parameters for all of its deployments, and shows all of it. A deployment shows
less of it:

    a target that is the deployment's own     the only one that the form shows and that the server takes
    a target of any kind                      those for the hardware of its pool
    what one run gives another                not in the form; the server takes it all the same
    an option that was a parameter before     not in the form; the server refuses it, and says where it stands now
"""

from typing import Any

from prefect.client.schemas.responses import DeploymentResponse

from flows.options_flow import OPTIONS
from flows.parameters import INTERNAL
from slmpack.records import Target

TARGET = "target"


def form_of(deployment: DeploymentResponse) -> dict[str, Any]:
    """Return the schema of the deployment's parameters; it refuses a misspelt one, too, which Prefect's leave open."""
    schema = deployment.parameter_openapi_schema or {}
    properties: dict[str, Any] = dict(schema.get("properties", {}))
    internal = {name: properties.pop(name) for name in [*properties] if properties[name].get(INTERNAL)}
    if TARGET in properties:
        properties[TARGET] = _offering(properties[TARGET], targets_of(deployment))
    unseen = internal | _moved(schema, properties)
    return {
        **schema,
        "properties": properties,
        "patternProperties": {f"^{name}$": shown for name, shown in unseen.items()},  # which no form shows
        "propertyNames": {"enum": [*properties, *unseen]},
    }


def _moved(schema: dict[str, Any], properties: dict[str, Any]) -> dict[str, Any]:
    """Return schemas of the options that stood beside `options` in earlier versions: no value but the advice fits."""
    record = str(properties.get(OPTIONS, {}).get("$ref")).rpartition("/")[2]
    options: dict[str, Any] = schema.get("definitions", {}).get(record, {}).get("properties", {})
    return {
        name: {"const": f"{name} is in the group {OPTIONS} now: give {OPTIONS}.{name}"}
        for name in options.keys() - properties.keys()
    }


def targets_of(deployment: DeploymentResponse) -> list[str]:
    """Return the targets that a run of the deployment may have: its own, else those for the hardware of its pool."""
    own = deployment.parameters.get(TARGET)
    if own is not None:
        return [str(own)]
    of_pool = [str(target) for target in Target if target.provider == deployment.work_pool_name]
    return of_pool or [str(target) for target in Target]


def _offering(shown: dict[str, Any], targets: list[str]) -> dict[str, Any]:
    """Return a parameter's schema with `targets` instead of the flow's type and default."""
    rest = {key: value for key, value in shown.items() if key not in {"$ref", "allOf", "anyOf", "default"}}
    only = {"default": targets[0], "description": "This deployment's own: each target has one."}
    return {"title": "Target", **rest, "type": "string", "enum": targets, **(only if len(targets) == 1 else {})}
