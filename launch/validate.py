"""Checks the files that start clusters against schemas; runs none of them.

    python launch/validate.py [--crd ray.io_rayjobs.yaml]

`cluster.yaml`, `hosts.yaml`: Ray's own cluster schema, as they stand and after Ray has filled in
its defaults.
`rayjob.yaml`: each pod template as a Pod against Kubernetes' own schema, and the RayJob
around them against `schema/rayjob.json`, an excerpt of our own, because KubeRay's
definition is not part of Kubernetes.

With `--crd`, the RayJob, and what the excerpt allows, are also checked against KubeRay's own
definition, a file of helm-chart/kuberay-operator/crds in its releases.
"""

from __future__ import annotations

import argparse
import functools
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import ray.autoscaler
import yaml
from ray.autoscaler._private.util import prepare_config, validate_config

LAUNCH_DIR = Path(__file__).resolve().parent
KUBERNETES_VERSION = "1.31"


def validate_cluster(cluster: dict[str, Any]) -> None:
    """Raises where Ray would refuse `cluster` before it asks the cloud for anything."""
    # First as it stands: Ray fills in its defaults before it checks, and where a type is
    # wrong it stumbles there, in words that name no key.
    schema = json.loads((Path(ray.autoscaler.__file__).parent / "ray-schema.json").read_text())
    jsonschema.validate(cluster, schema)
    validate_config(prepare_config(cluster))


def pod_templates(job: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """The head's and every worker group's pod template of a RayJob, with its name."""
    cluster = job["spec"]["rayClusterSpec"]
    yield "head", cluster["headGroupSpec"]["template"]
    for group in cluster["workerGroupSpecs"]:
        yield group["groupName"], group["template"]


def validate_rayjob(job: dict[str, Any]) -> None:
    """Raises `jsonschema.ValidationError` at the first field that is not as documented."""
    schema = json.loads((LAUNCH_DIR / "schema" / "rayjob.json").read_text())
    jsonschema.validate(job, schema, cls=jsonschema.Draft202012Validator)
    for name, template in pod_templates(job):
        pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name}} | template
        kubernetes_validate.validate(pod, KUBERNETES_VERSION, strict=True)


def validate_by_definition(job: dict[str, Any], definition: dict[str, Any]) -> None:
    """Raises at the first field of `job`, or of our excerpt, that KubeRay does not know.

    Args:
        definition: the CustomResourceDefinition `rayjobs.ray.io`.
    """
    group, _, version = job["apiVersion"].partition("/")
    versions = {v["name"]: v for v in definition["spec"]["versions"]}
    if definition["spec"]["group"] != group or version not in versions:
        raise ValueError(f"{job['apiVersion']} is not in the definition of {group}")
    schema = _strict(versions[version]["schema"]["openAPIV3Schema"])
    # Kubernetes checks the metadata of all kinds by itself.
    schema["properties"]["metadata"] = {"type": "object"}
    jsonschema.validate(job, schema, cls=jsonschema.Draft202012Validator)
    excerpt = json.loads((LAUNCH_DIR / "schema" / "rayjob.json").read_text())
    if unknown := sorted(_unknown(excerpt, excerpt, schema)):
        raise ValueError(f"schema/rayjob.json allows what it does not: {', '.join(unknown)}")


def _strict(schema: dict[str, Any]) -> dict[str, Any]:
    """A schema of Kubernetes as JSON Schema that refuses unknown fields, as kubectl does."""
    if schema.get("x-kubernetes-int-or-string"):
        return {"type": ["integer", "string"]}
    strict = dict(schema)
    if "properties" in schema:
        strict["properties"] = {name: _strict(s) for name, s in schema["properties"].items()}
        if not schema.get("x-kubernetes-preserve-unknown-fields"):
            strict["additionalProperties"] = False
    for inner in ("items", "additionalProperties"):
        if isinstance(schema.get(inner), dict):
            strict[inner] = _strict(schema[inner])
    return strict


def _unknown(
    excerpt: dict[str, Any], part: dict[str, Any], definition: dict[str, Any], path: str = ""
) -> Iterator[str]:
    """Names and values that a part of our excerpt allows and the definition does not."""
    if "$ref" in part:
        part = excerpt["$defs"][part["$ref"].rpartition("/")[2]]
    for value in part.get("enum", ()):
        if value not in definition.get("enum", (value,)):
            yield f"{path}={value}"
    if "items" in part:
        yield from _unknown(excerpt, part["items"], definition.get("items", {}), path)
    known = definition.get("properties", {})
    for name, inner in part.get("properties", {}).items():
        where = f"{path}.{name}".strip(".")
        if where.startswith("metadata"):
            continue
        if name not in known:
            yield where
        else:
            yield from _unknown(excerpt, inner, known[name], where)


VALIDATORS: dict[str, Callable[[dict[str, Any]], None]] = {
    "cluster.yaml": validate_cluster,
    "hosts.yaml": validate_cluster,
    "rayjob.yaml": validate_rayjob,
}


def main(arguments: Sequence[str] = ()) -> int:
    """Validates every file; one line each, exit status 1 if one is wrong."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--crd", type=Path, help="KubeRay's definition of a RayJob")
    crd = parser.parse_args(arguments).crd
    checks = [(f"launch/{name}", name, validate) for name, validate in VALIDATORS.items()]
    if crd is not None:
        definition = yaml.load(crd.read_text(), Loader=yaml.CSafeLoader)
        by_definition = functools.partial(validate_by_definition, definition=definition)
        checks.append((f"launch/rayjob.yaml by {crd}", "rayjob.yaml", by_definition))
    failed = False
    for title, name, validate in checks:
        try:
            validate(yaml.safe_load((LAUNCH_DIR / name).read_text()))
        except (jsonschema.ValidationError, ValueError, RuntimeError) as error:
            reason = error.message if isinstance(error, jsonschema.ValidationError) else error
            print(f"{title}: {reason}", file=sys.stderr)
            failed = True
        else:
            print(f"{title}: valid")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
