"""What is in deploy/ fits the server: its flags, its paths, its metrics.

The names are read from the server's source, which is what they are compared with; where its example
program is built, that reading is compared with what a running server exports.
"""

import json
import os
import plistlib
import re
import subprocess
import threading
import urllib.error
import urllib.request
from pathlib import Path

import pytest

yaml = pytest.importorskip("yaml")

ROOT = Path(__file__).parents[1]
DEPLOY = ROOT / "deploy"
SERVER = ROOT / "crates/server/src"
PROGRAM = Path(os.environ.get("ONELANE_TOY_SERVER", ROOT / "target/release/examples/hashing"))
MANIFESTS = sorted((DEPLOY / "kubernetes").glob("*.yaml"))
# What Prometheus adds to what is scraped, and what a histogram has.
ADDED_LABELS = {"instance", "job", "le"}
SUFFIXES = {"counter": ["_total"], "gauge": [""], "histogram": ["_bucket", "_sum", "_count"]}


def source(*names):
    return "\n".join((SERVER / name).read_text() for name in names)


def families():
    """The metrics that the server registers: their kinds by name."""
    collector = source("collector.rs")
    found = {}
    for kind in SUFFIXES:
        for name in re.findall(rf'out\.{kind}\(\s*\(\s*"(\w+)"', collector):
            found[name] = kind
    written = r'out\.write\(\s*\(\s*"(\w+)",[^)]*\),\s*MetricType::(\w+)'
    found |= {name: kind.lower() for name, kind in re.findall(written, collector)}
    # No other way of writing one has gone unnoticed.
    assert set(found) == set(re.findall(r'"(onelane_\w+)"', collector))
    http = re.findall(r'registry\.register\(\s*"(\w+)"', source("metrics.rs"))
    assert http == ["http_server_request_duration_seconds"]
    return {**found, http[0]: "histogram"}


EXPORTED = {
    name + suffix for name, kind in families().items() for suffix in SUFFIXES[kind]
}  # fmt: skip
WORDS = set(re.findall(r'"(\w+)"', source("collector.rs", "health.rs")))
LABELS = ADDED_LABELS | WORDS | set(re.findall(r"^    (\w+): ", source("metrics.rs"), re.M))


def read(expression):
    """The metrics, labels and label values of a PromQL expression."""
    matchers = " ".join(re.findall(r"\{([^}]*)\}", expression))
    labels = set(re.findall(r"(\w+)\s*(?:=~|!~|!=|=)", matchers))
    quoted = re.findall(r'(?:=~|!~|!=|=)\s*"([^"]*)"', matchers)
    values = {value for one in quoted for value in one.split("|")}
    bare = re.sub(r"\{[^}]*\}|\[[^\]]*\]", "", expression)
    groups = r"\b(?:by|without|on|ignoring)\s*\(([^)]*)\)"
    for group in re.findall(groups, bare):
        labels |= set(re.findall(r"\w+", group))
    bare = re.sub(groups, "", bare)
    names = set(re.findall(r"\b[a-zA-Z_:][\w:]*\b(?!\s*\()", bare))
    return names - {"and", "or", "unless", "bool"}, labels, values


def mistakes(expression):
    """What of an expression the server does not export."""
    metrics, labels, values = read(expression)
    assert metrics, expression
    # A variable of Grafana's, or a pattern of status codes.
    plain = {value for value in values if re.fullmatch(r"\w+", value)}
    return (metrics - EXPORTED) | (labels - LABELS) | (plain - WORDS)


def documents(path):
    return [document for document in yaml.safe_load_all(path.read_text()) if document]


def found(kind):
    every = [document for path in MANIFESTS for document in documents(path)]
    return [document for document in every if document["kind"] == kind]


def pods():
    """The pods that the manifests start."""
    deployments = [one["spec"]["template"]["spec"] for one in found("Deployment")]
    services = [one["spec"]["predictor"] for one in found("InferenceService")]
    assert len(deployments) == len(services) == 1
    return deployments + services


def settings():
    """The flags of `onelane serve`, with their defaults, and its environment variables."""
    text = (ROOT / "crates/cli/src/serve.rs").read_text()
    body = text[text.index("pub struct Args {") : text.index("fn seconds")]
    fields = re.findall(r"#\[arg\((.*?)\)\]\n(?:\s*#.*\n)*\s*(\w+):", body, re.S)
    flags, variables = {}, set()
    for arguments, name in fields:
        if re.search(r"\blong\b", arguments):
            default = re.search(r'default_value = "([^"]*)"', arguments)
            flags["--" + name.replace("_", "-")] = default and default[1]
        variables |= set(re.findall(r'env = "(\w+)"', arguments))
    assert {"--model-id", "--drain-delay", "--isolate"} <= set(flags)
    assert "API_KEY" in variables
    return flags, variables


FLAGS, VARIABLES = settings()


def paths():
    """The paths that the server answers."""
    text = "\n".join(path.read_text() for path in SERVER.rglob("*.rs"))
    return set(re.findall(r'(?:path = |\.route\(\s*)"([^"]+)"', text))


def number(arguments, flag):
    """A flag's number of seconds among arguments, or its default."""
    given = dict(argument.split("=", 1) for argument in arguments if "=" in argument)
    return float(given.get(flag, FLAGS[flag]))


def test_every_manifest_is_read():
    kinds = {document["kind"] for path in MANIFESTS for document in documents(path)}
    assert kinds == {"Deployment", "Service", "HorizontalPodAutoscaler", "InferenceService"}


def test_flags_and_variables_are_the_programs():
    for pod in pods():
        for container in pod["containers"]:
            given = {argument.split("=", 1)[0] for argument in container["args"]}
            assert given <= set(FLAGS), given - set(FLAGS)
            names = {variable["name"] for variable in container.get("env", [])}
            # KServe reads that one.
            assert names <= VARIABLES | {"STORAGE_URI"}
    entry = re.search(r"ENTRYPOINT (.*)", (DEPLOY / "Containerfile").read_text())
    words = json.loads(entry[1]) + plist()["ProgramArguments"]
    given = {word for word in words if word.startswith("-")}
    assert given <= set(FLAGS), given - set(FLAGS)


def plist():
    return plistlib.loads((DEPLOY / "onelane.plist").read_bytes())


def test_what_ends_a_server_waits_for_its_drain():
    for pod in pods():
        (container,) = pod["containers"]
        arguments = container["args"]
        drain = number(arguments, "--drain-delay") + number(arguments, "--drain-timeout")
        hook = container.get("lifecycle", {}).get("preStop", {}).get("sleep", {}).get("seconds", 0)
        assert pod["terminationGracePeriodSeconds"] > hook + drain
    drain = number([], "--drain-delay") + number([], "--drain-timeout")
    unit = (DEPLOY / "onelane.service").read_text()
    assert float(re.search(r"TimeoutStopSec=(\d+)", unit)[1]) > drain
    assert plist()["ExitTimeOut"] > drain


def test_probes_ask_what_is_there_where_it_is_listened():
    known = paths()
    for pod in pods():
        (container,) = pod["containers"]
        ports = {port["containerPort"] for port in container["ports"]}
        assert ports == {number(container["args"], "--port")}
        names = ports | {port["name"] for port in container["ports"]}
        for kind in ("startupProbe", "readinessProbe", "livenessProbe"):
            probe = container[kind]["httpGet"]
            assert probe["path"] in known
            assert probe["port"] in names
            # Liveness asks whether a restart helps, the others whether there is an answer.
            assert ("live" in probe["path"]) == (kind == "livenessProbe")


def test_services_and_the_autoscaler_find_the_deployment():
    (deployment,) = found("Deployment")
    template = deployment["spec"]["template"]
    labels = template["metadata"]["labels"].items()
    assert deployment["spec"]["selector"]["matchLabels"].items() <= labels
    (container,) = template["spec"]["containers"]
    names = {port["name"] for port in container["ports"]}
    for service in found("Service"):
        assert service["spec"]["selector"].items() <= labels
        assert {port["targetPort"] for port in service["spec"]["ports"]} <= names
    (autoscaler,) = found("HorizontalPodAutoscaler")
    target = autoscaler["spec"]["scaleTargetRef"]
    assert (target["kind"], target["name"]) == ("Deployment", deployment["metadata"]["name"])
    # It sets the replicas, and a manifest that said some would set them back.
    assert "replicas" not in deployment["spec"]
    annotations = template["metadata"]["annotations"]
    assert annotations["prometheus.io/path"] in paths()
    assert int(annotations["prometheus.io/port"]) == container["ports"][0]["containerPort"]


def test_the_autoscaler_looks_at_a_metric_that_is_exported():
    (autoscaler,) = found("HorizontalPodAutoscaler")
    for metric in autoscaler["spec"]["metrics"]:
        assert metric["pods"]["metric"]["name"] in EXPORTED
    named = re.findall(r"\b(?:onelane|http)_\w+", (DEPLOY / "kubernetes/hpa.yaml").read_text())
    assert set(named) <= EXPORTED


def rules():
    (document,) = documents(DEPLOY / "prometheus/rules.yaml")
    return [rule for group in document["groups"] for rule in group["rules"]]


@pytest.mark.parametrize("rule", rules(), ids=lambda rule: rule["alert"])
def test_an_alert_asks_for_what_is_exported(rule):
    assert not mistakes(rule["expr"])
    assert set(rule["annotations"]) == {"summary", "description"}
    # A label that the expression does not keep would be empty in the text.
    text = " ".join(rule["annotations"].values())
    kept = set(re.findall(r"\w+", " ".join(re.findall(r"by \(([^)]*)\)", rule["expr"]))))
    kept = kept or ADDED_LABELS | {"model"}
    assert set(re.findall(r"\$labels\.(\w+)", text)) <= kept


def test_what_a_user_has_to_know_has_an_alert():
    asked = "\n".join(rule["expr"] for rule in rules())
    for sign in (
        'onelane_health{state="ready"}', 'onelane_health{state="stalled"}', 'outcome="refused"',
        "onelane_engine_losses_total", "onelane_oldest_wait_seconds",
    ):  # fmt: skip
        assert sign in asked


def dashboard():
    return json.loads((DEPLOY / "grafana/onelane.json").read_text())


def panels():
    return [panel for panel in dashboard()["panels"] if panel["type"] != "row"]


@pytest.mark.parametrize("panel", panels(), ids=lambda panel: panel["title"])
def test_a_panel_shows_what_is_exported(panel):
    assert panel["targets"]
    for target in panel["targets"]:
        assert not mistakes(target["expr"])


def test_the_dashboard_is_whole():
    board = dashboard()
    ids = [panel["id"] for panel in board["panels"]]
    assert len(set(ids)) == len(ids)
    variables = {variable["name"]: variable for variable in board["templating"]["list"]}
    used = set(re.findall(r"\$\{?([a-z]\w*)", json.dumps(board["panels"])))
    assert used <= set(variables)
    for variable in variables.values():
        if variable["type"] == "query":
            asked = variable["query"]["query"]
            metric, label = re.fullmatch(r"label_values\((\w+), (\w+)\)", asked).groups()
            assert metric in EXPORTED
            assert label in LABELS
    # Everything that a server exports is somewhere.
    shown = json.dumps(board)
    missing = {name for name in families() if name not in shown}
    assert not missing


@pytest.mark.parametrize(
    ("expression", "wrong"),
    [
        ("rate(onelane_request_total[5m])", {"onelane_request_total"}),
        ("sum(onelane_requests)", {"onelane_requests"}),
        ("onelane_wait_seconds", {"onelane_wait_seconds"}),
        ('onelane_requests_total{outcome="rejected"}', {"rejected"}),
        ('onelane_health{status="ready"} == 0', {"status"}),
        ("sum by (modell) (onelane_running)", {"modell"}),
        ('sum by (class) (onelane_waiting{class=~"bulk|normal"}) > 1', set()),
    ],
)
def test_a_mistake_is_seen(expression, wrong):
    assert mistakes(expression) == wrong


def get(url):
    """What is answered; None if it is an error."""
    try:
        with urllib.request.urlopen(url, timeout=60) as answer:
            return answer.read().decode()
    except urllib.error.HTTPError:
        return None


@pytest.mark.skipif(not PROGRAM.exists(), reason=f"{PROGRAM} is not built: make test-clients")
def test_a_running_server_exports_what_was_read_from_the_source():
    process = subprocess.Popen([PROGRAM, "0"], stdout=subprocess.PIPE, text=True)
    try:
        address = re.search(r"http://\S+", process.stdout.readline())[0]
        # While its models load there is nothing of them.
        while get(f"{address}/ready") is None:
            threading.Event().wait(0.02)
        text = get(f"{address}/metrics")
    finally:
        process.terminate()
        process.wait(60)
    exported = set(re.findall(r"^(\w+)(?:\{.*\})? [\d.eE+-]+$", text, re.M))
    assert exported == EXPORTED
    known = set(re.findall(r'[{,](\w+)="', text))
    assert known <= LABELS
