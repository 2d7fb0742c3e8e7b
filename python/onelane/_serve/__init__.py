"""`onelane.serve`: models in Python behind the server that `onelane serve` is.

HTTP, tokenising, queueing, deadlines and metrics are the native module's: one implementation of
every rule. Here is what makes its models.
"""

from __future__ import annotations

from onelane._serve.encoder import Encoder
from onelane._serve.predictor import Predictor
from onelane._serve.server import Server, serve

__all__ = ["Encoder", "Predictor", "Server", "serve"]
