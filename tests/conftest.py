"""Fixtures that several files of tests ask for, and the run that audits them.

With `--audit` (`make test-audit`) the tests of the fixture `device`, and they alone, run on the
simulated device with an audit on, and a test fails if anything of the package's used the device off
its worker. What a test itself does with a module that it has given away, dropping it at its end
included, is not meant. A test that asks for what the simulated device has not (other operators,
"cpu" by name) counts as skipped: it is audited up to there.
"""

from __future__ import annotations

import gc
import re
import traceback
from pathlib import Path

import pytest

import onelane
from onelane import patch035


def pytest_addoption(parser):
    parser.addoption(
        "--audit",
        action="store_true",
        help="run the tests of the fixture `device` on the simulated device, audited",
    )


def pytest_collection_modifyitems(config, items):
    if not config.getoption("--audit"):
        return
    audited = [item for item in items if "device" in item.fixturenames]
    config.hook.pytest_deselected(items=[item for item in items if item not in audited])
    items[:] = audited


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item, call):
    report = (yield).get_result()
    if item.config.getoption("--audit") and report.when == "call" and report.failed:
        why = f"on the simulated device: {call.excinfo.typename}: {call.excinfo.value}"
        report.outcome, report.longrepr = "skipped", (str(item.path), 0, why[:150])
        # Its frames have things of the device, which the collector would free in a later test.
        traceback.clear_frames(call.excinfo.tb)
        gc.collect()


def is_ours(finding):
    """Whether code of the package, and not the test's own, used the device off its worker."""
    package = Path(onelane.__file__).parent
    watching = (str(package / "sim"), str(package / "_audit.py"))
    files = re.findall(r'File "([^"]+)"', finding.stack)
    return any(name.startswith(str(package)) and not name.startswith(watching) for name in files)


@pytest.fixture
def device(request):
    if not request.config.getoption("--audit"):
        with onelane.DeviceExecutor("cpu") as executor:
            yield executor
        return
    from onelane import sim

    with (
        sim.device("upstream-2.15"),
        onelane.audit("mps", report=lambda finding: None) as audit,
    ):
        with onelane.DeviceExecutor("mps") as executor:
            yield executor
        findings = [finding for finding in audit.findings if is_ours(finding)]
        assert not findings, "\n".join(map(str, findings))


@pytest.fixture
def mlp():
    # Not above: where there is no torch, this file is imported all the same.
    import torch

    torch.manual_seed(0)
    return torch.nn.Sequential(
        torch.nn.Linear(64, 128), torch.nn.ReLU(), torch.nn.Linear(128, 8)
    ).eval()


@pytest.fixture
def _patch035_is_left_disabled():
    yield
    assert not patch035.is_enabled(), "a test left patch 035 enabled"


@pytest.fixture(scope="session")
def paths(tmp_path_factory):
    """Folders of tiny models."""
    from onelane._mac_check import models as tiny_models

    folder = tmp_path_factory.mktemp("models")
    return {
        "sentences": tiny_models.sentence_transformer(folder),
        "pairs": tiny_models.cross_encoder(folder),
        "language": tiny_models.language_model(folder),
    }


@pytest.fixture
def home():
    with onelane.DeviceExecutor("cpu") as executor:
        yield executor


@pytest.fixture
def installed(home):
    from onelane import _shapes

    _shapes.forget("cpu")
    done = onelane.install(home)
    yield done
    onelane.uninstall()
