"""A small Ray of this process's own, for all tests."""

import os
import sys

import pytest

HERE = os.path.dirname(__file__)
sys.path.insert(0, HERE)


@pytest.fixture(scope="session")
def cluster():
    ray = pytest.importorskip("ray")
    from ray import serve

    os.environ["PYTHONPATH"] = os.pathsep.join([HERE, os.environ.get("PYTHONPATH", "")])
    ray.init(num_cpus=8, include_dashboard=False, log_to_driver=False)
    serve.start(http_options={"location": "NoServer"})
    yield serve
    serve.shutdown()
    ray.shutdown()
