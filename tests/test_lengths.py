"""Lengths: buckets, and what shares a batch."""

from __future__ import annotations

import random

import pytest

from onelane._lengths import LENGTHS, ROWS, LaunchCost, length_bucket, plan, row_bucket


def test_buckets_are_a_bounded_set():
    draw = random.Random(0)
    shapes = {
        (row_bucket(draw.randint(1, 32)), length_bucket(draw.randint(1, 512))) for _ in range(20000)
    }
    assert len(shapes) == len(ROWS) * len(LENGTHS) == 96
    for length in range(1, 5000):
        assert length <= length_bucket(length) <= max(8, length * 2)
    assert length_bucket(200, 256) == 256
    assert length_bucket(250, 255) == 255
    assert row_bucket(5) == 8
    assert row_bucket(5, 6) == 5


def cost(lengths, batches, launch, rows):
    return sum(
        launch + row_bucket(len(b), rows) * length_bucket(max(lengths[at] for at in b))
        for b in batches
    )


@pytest.mark.parametrize("launch", [0.0, 100.0, 1e9])
def test_each_request_is_in_one_batch_and_batches_are_sorted_and_small(launch):
    draw = random.Random(1)
    for _ in range(50):
        lengths = [draw.randint(1, 300) for _ in range(draw.randint(1, 40))]
        batches = plan(lengths, launch, 16)
        assert sorted(at for batch in batches for at in batch) == list(range(len(lengths)))
        assert all(len(batch) <= 16 for batch in batches)
        ordered = [lengths[at] for batch in batches for at in batch]
        assert ordered == sorted(lengths)
        together = sorted(range(len(lengths)), key=lengths.__getitem__)
        fixed = [together[at : at + 16] for at in range(0, len(together), 16)]
        assert cost(lengths, batches, launch, 16) <= cost(lengths, fixed, launch, 16)


def test_a_batch_is_split_where_padding_costs_more_than_a_launch():
    lengths = [8] * 7 + [256]
    assert [len(batch) for batch in plan(lengths, 100)] == [7, 1]
    assert [len(batch) for batch in plan(lengths, 1e6)] == [8]


def test_the_cost_of_a_launch_is_learnt():
    learnt, draw = LaunchCost(), random.Random(2)
    first = learnt.tokens
    for _ in range(6):
        learnt.note(100, 0.01)
    assert learnt.tokens == first, "all of one size say nothing"
    for _ in range(200):
        tokens = draw.randint(8, 4000)
        learnt.note(tokens, 0.005 + tokens * 1e-5)
    assert learnt.tokens == pytest.approx(500, rel=0.05)


def test_a_piece_is_as_large_as_its_time_allows():
    cost = LaunchCost()
    assert cost.rows(100, 32, 0.2) == 8, "nothing is known"
    assert cost.rows(100, 4, 0.2) == 4
    for _ in range(4):
        cost.note(1000, 0.1)
    # 0.1 ms a token: 2,000 tokens in 0.2 s.
    assert cost.rows(60, 32, 0.2) == 16
    assert cost.rows(250, 32, 0.2) == 4
    assert cost.rows(250, 2, 0.2) == 2
    assert cost.rows(5000, 32, 0.2) == 1
