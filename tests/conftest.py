"""Fixtures that several files of tests ask for."""

from __future__ import annotations

import pytest

import onelane
from onelane import patch035


@pytest.fixture
def device():
    with onelane.DeviceExecutor("cpu") as executor:
        yield executor


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
