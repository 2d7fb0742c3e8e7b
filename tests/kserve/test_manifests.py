"""Each field of the manifests in deploy/kubernetes is one that Kubernetes and KServe know.

By the types of their own client libraries; there is no cluster here.
"""

import re
from pathlib import Path

import kserve
import kubernetes.client
import pytest
import yaml

FOLDER = Path(__file__).parents[2] / "deploy/kubernetes"
PATHS = sorted(FOLDER.glob("*.yaml"))
KINDS = {
    "Deployment": "V1Deployment",
    "Service": "V1Service",
    "HorizontalPodAutoscaler": "V2HorizontalPodAutoscaler",
    "InferenceService": "V1beta1InferenceService",
}
PLAIN = {"str": str, "int": int, "bool": bool, "float": (int, float)}


def documents(path):
    return [document for document in yaml.safe_load_all(path.read_text()) if document]


def model(name):
    found = getattr(kubernetes.client, name, None) or getattr(kserve, name, None)
    assert found, name
    return found


def check(value, kind, where):
    """Compare a value with a type as the client libraries spell it."""
    if kind == "object" or value is None:
        return
    listed = re.fullmatch(r"[lL]ist\[(.*)\]", kind)
    if listed:
        assert isinstance(value, list), where
        for i, one in enumerate(value):
            check(one, listed[1], f"{where}[{i}]")
        return
    mapped = re.fullmatch(r"[dD]ict[\[(]str, (.*)[\])]", kind)
    if mapped:
        for key, one in value.items():
            check(one, mapped[1], f"{where}.{key}")
        return
    if kind in PLAIN:
        assert isinstance(value, PLAIN[kind]), f"{where}: {value!r} is no {kind}"
        return
    if kind == "IntOrString":
        assert isinstance(value, (int, str)), where
        return
    of = model(kind)
    fields = {key: of.openapi_types[name] for name, key in of.attribute_map.items()}
    assert isinstance(value, dict), where
    assert set(value) <= set(fields), f"{where}: {set(value) - set(fields)} of {kind}"
    for key, one in value.items():
        check(one, fields[key], f"{where}.{key}")


@pytest.mark.parametrize("path", PATHS, ids=lambda path: path.name)
def test_every_field_is_known(path):
    for document in documents(path):
        kind = document["kind"]
        check(document, KINDS[kind], kind)


def test_an_unknown_field_is_seen():
    (document,) = documents(FOLDER / "deployment.yaml")
    pod = document["spec"]["template"]["spec"]
    pod["containers"][0]["readinesProbe"] = {}
    with pytest.raises(AssertionError, match="readinesProbe"):
        check(document, "V1Deployment", "it")
    del pod["containers"][0]["readinesProbe"]
    pod["terminationGracePeriodSeconds"] = "45"
    with pytest.raises(AssertionError, match="'45' is no int"):
        check(document, "V1Deployment", "it")
