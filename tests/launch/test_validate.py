"""launch/validate.py accepts the files that are here and refuses broken ones."""

from __future__ import annotations

import copy
import json
import shutil

import jsonschema
import pytest
import yaml

from tests.launch.load_script import LAUNCH, load_script

FILES = ("cluster.yaml", "hosts.yaml", "rayjob.yaml")
# What the script's `main` turns into a line on the screen.
REFUSALS = (jsonschema.ValidationError, ValueError, RuntimeError)


@pytest.fixture(scope="module")
def script():
    return load_script("validate")


@pytest.fixture(scope="module")
def cluster():
    return yaml.safe_load((LAUNCH / "cluster.yaml").read_text())


@pytest.fixture(scope="module")
def job():
    return yaml.safe_load((LAUNCH / "rayjob.yaml").read_text())


def changed(tree, value, *keys):
    """A copy of the tree with another value at `keys`."""
    tree = copy.deepcopy(tree)
    inner = tree
    for key in keys[:-1]:
        inner = inner[key]
    inner[keys[-1]] = value
    return tree


def without(tree, *keys):
    tree = copy.deepcopy(tree)
    inner = tree
    for key in keys[:-1]:
        inner = inner[key]
    del inner[keys[-1]]
    return tree


def test_the_files_are_valid(script, capsys):
    assert script.main() == 0
    assert capsys.readouterr().out.splitlines() == [f"launch/{name}: valid" for name in FILES]


@pytest.mark.parametrize(
    ("value", "keys", "words"),
    [
        ("four", ("max_workers",), "'four' is not of type 'integer'"),
        (1, ("no_such_key",), "no_such_key"),
        ("8", ("available_node_types", "head", "resources", "CPU"), "'8' is not of type"),
        ("ls", ("setup_commands",), "'ls' is not of type 'array'"),
        (9, ("available_node_types", "gpu_8x80gb", "min_workers"), "max_workers"),
        ("gpu_of_another_name", ("head_node_type",), "head_node_type"),
        ("mainframe", ("provider", "type"), "mainframe"),
    ],
)
def test_a_broken_cluster_is_refused(script, cluster, value, keys, words):
    with pytest.raises(REFUSALS, match=words):
        script.validate_cluster(changed(cluster, value, *keys))


def test_a_cluster_without_a_provider_is_refused(script, cluster):
    with pytest.raises(REFUSALS, match="'provider' is a required property"):
        script.validate_cluster(without(cluster, "provider"))


HEAD = ("spec", "rayClusterSpec", "headGroupSpec")
WORKER = ("spec", "rayClusterSpec", "workerGroupSpecs", 0)
CONTAINER = (*HEAD, "template", "spec", "containers", 0)


@pytest.mark.parametrize(
    ("value", "keys", "words"),
    [
        ("ray.io/v1alpha1", ("apiVersion",), "v1"),
        (1, ("spec", "entryPoint"), "entryPoint"),
        ("three", ("spec", "backoffLimit"), "three"),
        (-1, (*WORKER, "maxReplicas"), "-1"),
        (1, (*WORKER, "gpus"), "gpus"),
        (8, (*HEAD, "rayStartParams", "num-gpus"), "8"),
        # What Kubernetes' own schema refuses inside the pods.
        ("6379", (*CONTAINER, "ports", 0, "containerPort"), "6379"),
        (1, (*CONTAINER, "imagePullPolice"), "imagePullPolice"),
    ],
)
def test_a_broken_job_is_refused(script, job, value, keys, words):
    with pytest.raises(REFUSALS, match=words):
        script.validate_rayjob(changed(job, value, *keys))


# As KubeRay publishes one, cut down to a few fields.
DEFINITION = """
spec:
  group: ray.io
  versions:
    - name: v1
      schema:
        openAPIV3Schema:
          type: object
          properties:
            apiVersion: {type: string}
            kind: {type: string}
            metadata: {type: object}
            spec:
              type: object
              properties:
                entrypoint: {type: string}
                backoffLimit: {type: integer}
                labels: {type: object, additionalProperties: {type: string}}
                port: {x-kubernetes-int-or-string: true}
                anything: {type: object, x-kubernetes-preserve-unknown-fields: true, properties: {}}
"""
SMALL_JOB = {
    "apiVersion": "ray.io/v1",
    "kind": "RayJob",
    "metadata": {"name": "a"},
    "spec": {"port": "http", "anything": {"more": 1}, "labels": {"a": "b"}, "backoffLimit": 1},
}


@pytest.fixture
def definition():
    return yaml.safe_load(DEFINITION)


@pytest.fixture
def small_excerpt(script, tmp_path, monkeypatch):
    """An excerpt in the place of ours; returns a function that writes it."""
    (tmp_path / "schema").mkdir()
    monkeypatch.setattr(script, "LAUNCH_DIR", tmp_path)

    def write(spec):
        excerpt = {"properties": {"spec": {"$ref": "#/$defs/spec"}}, "$defs": {"spec": spec}}
        (tmp_path / "schema" / "rayjob.json").write_text(json.dumps(excerpt))

    write({"properties": {"backoffLimit": {"type": "integer"}}})
    return write


def test_a_job_by_the_definition(script, definition, small_excerpt):
    script.validate_by_definition(SMALL_JOB, definition)


@pytest.mark.parametrize(
    ("value", "keys", "words"),
    [
        (60, ("spec", "preRunningDeadlineSeconds"), "preRunningDeadlineSeconds"),
        ("one", ("spec", "backoffLimit"), "'one' is not of type 'integer'"),
        (1, ("spec", "labels", "a"), "1 is not of type 'string'"),
        (1.5, ("spec", "port"), "1.5 is not of type"),
        ("ray.io/v2", ("apiVersion",), "ray.io/v2 is not in the definition"),
    ],
)
def test_a_job_against_the_definition_is_refused(
    script, definition, small_excerpt, value, keys, words
):
    with pytest.raises(REFUSALS, match=words):
        script.validate_by_definition(changed(SMALL_JOB, value, *keys), definition)


def test_an_excerpt_that_allows_more_is_refused(script, definition, small_excerpt):
    small_excerpt({"properties": {"backoff": {"type": "integer"}}})
    with pytest.raises(ValueError, match=r"allows what it does not: spec\.backoff$"):
        script.validate_by_definition(SMALL_JOB, definition)


def test_the_definition_may_be_given_on_the_command_line(script, definition, tmp_path, capsys):
    file = tmp_path / "crd.yaml"
    file.write_text(DEFINITION)
    assert script.main(["--crd", str(file)]) == 1
    shown = capsys.readouterr()
    assert shown.out.splitlines() == [f"launch/{name}: valid" for name in FILES]
    assert shown.err.startswith(f"launch/rayjob.yaml by {file}: Additional properties")


def test_a_broken_file_ends_with_status_1_and_its_name(script, job, tmp_path, monkeypatch, capsys):
    shutil.copytree(LAUNCH / "schema", tmp_path / "schema")
    for name in FILES[:2]:
        shutil.copy(LAUNCH / name, tmp_path)
    (tmp_path / "rayjob.yaml").write_text(yaml.safe_dump(without(job, "spec", "rayClusterSpec")))
    monkeypatch.setattr(script, "LAUNCH_DIR", tmp_path)
    assert script.main() == 1
    shown = capsys.readouterr()
    assert shown.out == "launch/cluster.yaml: valid\nlaunch/hosts.yaml: valid\n"
    assert shown.err == "launch/rayjob.yaml: 'rayClusterSpec' is a required property\n"
