"""Fixtures that several files of tests ask for, and the run that audits them.

With `--audit` the tests of the fixture `device`, and they alone, run on the simulated device with
an audit on, and a test fails if anything used the device off its worker.
"""

from __future__ import annotations

import pytest

import onelane
from onelane import patch035


def pytest_addoption(parser):
    parser.addoption(
        "--audit",
        action="store_true",
        help="run the tests of the fixture `device` on the simulated device, audited",
    )


def pytest_configure(config):
    config.addinivalue_line("markers", "cpu(why): cannot run on the simulated device")


def pytest_collection_modifyitems(config, items):
    if not config.getoption("--audit"):
        return
    audited = [item for item in items if "device" in item.fixturenames]
    config.hook.pytest_deselected(items=[item for item in items if item not in audited])
    items[:] = audited
    for item in items:
        mark = item.get_closest_marker("cpu")
        if mark is not None:
            item.add_marker(pytest.mark.skip(reason=mark.args[0]))


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
        assert not audit.findings, "\n".join(map(str, audit.findings))


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
