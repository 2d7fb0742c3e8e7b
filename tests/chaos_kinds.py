"""What the queues of `chaos.py` do: their models; how each kind of request is made and judged."""

from __future__ import annotations

import time

import torch

import onelane


class Poison(Exception):
    """What a model raises; it names the requests that made it do so."""


class Wrong(AssertionError):
    """A promise that was broken."""


def disturb(numbers):
    """What models do beside computing: raise for some requests, be slow for others."""
    poisoned = [n for n in numbers if n % 97 == 0]
    if poisoned:
        raise Poison(poisoned)
    if any(n % 1009 == 1 for n in numbers):
        time.sleep(0.003)


def tensor_model(x):
    disturb(x[:, 0].long().tolist())
    return x * 2 + 1


def dict_model(a, b):
    disturb(a[:, 0].long().tolist())
    return {"sum": a + b, "more": (a * 3, [b - a])}


def list_model(items):
    disturb(items)
    return [("response", n) for n in items]


class Guarded:
    """An object with a method, for `onelane.guard`."""

    def work(self, number):
        disturb([number])
        return number * 5


class Kind:
    """One way to make a queue and a request for it, and to look at the response."""

    def make(self, device):
        raise NotImplementedError

    def request(self, number, rows):
        raise NotImplementedError

    def is_right(self, response, number, rows):
        raise NotImplementedError


class Tensors(Kind):
    def make(self, device):
        return onelane.BatchQueue(tensor_model, device, max_batch_size=64, capacity=256)

    def request(self, number, rows):
        return torch.full((rows, 3), float(number), dtype=torch.float64)

    def is_right(self, response, number, rows):
        return response.shape == (rows, 3) and bool((response == number * 2 + 1).all())


class Arrays(Tensors):
    """NumPy in, NumPy out, in the same batches as tensors."""

    def request(self, number, rows):
        return (
            super().request(number, rows).numpy() if number % 2 else super().request(number, rows)
        )

    def is_right(self, response, number, rows):
        if isinstance(response, torch.Tensor) == bool(number % 2):
            return False
        return super().is_right(torch.as_tensor(response), number, rows)


class Dicts(Kind):
    def make(self, device):
        return onelane.BatchQueue(dict_model, device, max_batch_size=16, capacity=64)

    def request(self, number, rows):
        a = torch.full((rows, 2), float(number), dtype=torch.float64)
        return {"a": a, "b": a * 10}

    def is_right(self, response, number, rows):
        a = torch.full((rows, 2), float(number), dtype=torch.float64)
        return (
            torch.equal(response["sum"], a * 11)
            and torch.equal(response["more"][0], a * 3)
            and torch.equal(response["more"][1][0], a * 9)
        )


class Lists(Kind):
    def make(self, device):
        return onelane.BatchQueue(
            list_model, device, max_batch_size=32, capacity=128, requests=onelane.Items()
        )

    def request(self, number, rows):
        return number

    def is_right(self, response, number, rows):
        return response == ("response", number)


class Single(Tensors):
    def make(self, device):
        return onelane.BatchQueue(tensor_model, device, capacity=32, requests=onelane.Each())


class Waiting(Tensors):
    """Small batches that wait to be filled."""

    def make(self, device):
        return onelane.BatchQueue(
            tensor_model, device, max_batch_size=4, max_wait=0.0002, capacity=64
        )


KINDS = (Tensors(), Tensors(), Arrays(), Dicts(), Lists(), Single(), Waiting())
