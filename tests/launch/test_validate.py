"""launch/validate.py accepts the files that are here and refuses broken ones."""

from __future__ import annotations

import copy
import shutil

import jsonschema
import pytest
import yaml

from tests.launch.load_script import LAUNCH, load_script

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
    assert capsys.readouterr().out.splitlines() == [
        "launch/cluster.yaml: valid",
        "launch/rayjob.yaml: valid",
    ]


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


def test_a_broken_file_ends_with_status_1_and_its_name(script, job, tmp_path, monkeypatch, capsys):
    shutil.copytree(LAUNCH / "schema", tmp_path / "schema")
    shutil.copy(LAUNCH / "cluster.yaml", tmp_path)
    (tmp_path / "rayjob.yaml").write_text(yaml.safe_dump(without(job, "spec", "rayClusterSpec")))
    monkeypatch.setattr(script, "LAUNCH_DIR", tmp_path)
    assert script.main() == 1
    shown = capsys.readouterr()
    assert shown.out == "launch/cluster.yaml: valid\n"
    assert shown.err == "launch/rayjob.yaml: 'rayClusterSpec' is a required property\n"
