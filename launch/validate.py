"""Checks the files that start clusters against schemas; runs none of them.

`cluster.yaml`: Ray's own cluster schema, as it stands and after Ray has filled in its defaults.
`rayjob.yaml`: each pod template as a Pod against Kubernetes' own schema, and the RayJob
around them against `schema/rayjob.json`, an excerpt of our own, because KubeRay's
definition is not part of Kubernetes.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
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


VALIDATORS: dict[str, Callable[[dict[str, Any]], None]] = {
    "cluster.yaml": validate_cluster,
    "rayjob.yaml": validate_rayjob,
}


def main() -> int:
    """Validates every file; one line each, exit status 1 if one is wrong."""
    failed = False
    for name, validate in VALIDATORS.items():
        try:
            validate(yaml.safe_load((LAUNCH_DIR / name).read_text()))
        except (jsonschema.ValidationError, ValueError, RuntimeError) as error:
            reason = error.message if isinstance(error, jsonschema.ValidationError) else error
            print(f"launch/{name}: {reason}", file=sys.stderr)
            failed = True
        else:
            print(f"launch/{name}: valid")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
