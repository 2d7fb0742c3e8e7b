"""Poisoned requests: what clients send by mistake, as JSON bodies; every server gets each."""

from __future__ import annotations

import json

POISONS = {
    # Valid JSON, and a text in Python; nothing that wants UTF-8 can take it.
    "half a surrogate pair": '{"model": "model", "input": ["a \\ud800 text"]}',
    "a number": '{"model": "model", "input": [12345]}',
    "null": '{"model": "model", "input": [null]}',
    "an empty text": '{"model": "model", "input": [""]}',
    "an empty list": '{"model": "model", "input": []}',
    "1 MB of words": json.dumps({"model": "model", "input": ["word " * 200_000]}),
    "-1 dimensions": '{"model": "model", "input": ["a text"], "dimensions": -1}',
}
