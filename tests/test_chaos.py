"""A small size of `chaos.py`; `python tests/chaos.py` runs a million requests."""

from __future__ import annotations

import pytest

pytest.importorskip("torch")
pytest.importorskip("numpy")

import chaos


@pytest.mark.timeout(100)
def test_nothing_is_lost_duplicated_or_misrouted():
    report, wrong = chaos.run(requests=6_000, seconds=15, seed=3, threads=6, tasks=6, quiet=True)
    assert wrong == []
    assert report["submitted"] == sum(report[outcome] for outcome in chaos.OUTCOMES)
    assert report["completed"] > 0
    # What it is for did happen.
    assert report["errors"] > 0
    assert report["cancelled"] > 0
    assert report["expired"] > 0


def test_a_wrong_response_is_seen():
    world = chaos.World(1, 1, 1)
    client = chaos.Client(world, "client")
    place = world.homes[0].places[0]
    client.answered(place.kind.request(3, 2), place, 3, 2)
    assert "request 3 of 2 rows got" in world.wrong[0]
    client.failed(chaos.Poison([97]), 98)
    client.failed(ValueError(), 99)
    assert len(world.wrong) == 3
    for home in world.homes:
        home.device.shutdown()
