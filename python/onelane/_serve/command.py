"""`python -m onelane serve`: the flags of `onelane serve`, for models that Python runs."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path
from typing import Any


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    add = parser.add_argument
    add(
        "models",
        nargs="+",
        metavar="[NAME=]MODEL",
        help="a directory of a SentenceTransformer or CrossEncoder, or package.module:load, and "
        "the name that clients call it by",
    )
    add("--device", help="default: mps, else cuda, else cpu")
    add("--isolate", action="store_true", help="run each model in a child process")
    add("--hostname", default="127.0.0.1", help="default: 127.0.0.1")
    add("-p", "--port", type=int, default=3000, help="default: 3000; 0 takes a free one")
    add("--uds-path", help="listen on this Unix socket instead")
    add(
        "--max-concurrent-requests", type=int, default=4096, help="texts or rows that wait, a model"
    )
    add("--max-queued-tokens", type=int, help="tokens that wait, a model")
    add("--max-batch-tokens", type=int, default=16384, help="tokens that run together")
    add("--max-batch-requests", type=int, default=32, help="texts or rows that run together")
    add("--max-client-batch-size", type=int, default=2048, help="texts or rows in a call")
    add("--payload-limit", type=int, default=2_000_000, help="bytes in a body")
    add("--no-auto-truncate", action="store_true", help="refuse texts that are too long")
    add("--matryoshka", action="store_true", help="calls may ask for fewer dimensions")
    add("--token-ids", action="store_true", help="take token ids for texts")
    add("--api-key", default=os.environ.get("API_KEY"), help="what clients must send")
    add("--cors-allow-origin", action="append", default=[], metavar="ORIGIN")
    add("--request-timeout", type=float, metavar="SECONDS", help="of calls that name none")
    add("--drain-delay", type=float, default=5.0, metavar="SECONDS")
    add("--drain-timeout", type=float, default=30.0, metavar="SECONDS")
    add("--stall-exit", type=float, default=300.0, metavar="SECONDS", help="0: never")
    add("--no-self-check", action="store_true", help="serve models that batch wrongly")


def main(options: argparse.Namespace) -> int:
    """Serve until a signal; 0: drained, 1: not everything was answered, 2: it could not start."""
    from onelane._serve.server import serve

    given = {**vars(options)}
    for name in ("command", "models", "isolate", "no_auto_truncate", "no_self_check"):
        given.pop(name)
    given["stall_exit"] = given["stall_exit"] or None
    try:
        serve(
            _named(options.models),
            isolation="process" if options.isolate else None,
            auto_truncate=not options.no_auto_truncate,
            self_check=not options.no_self_check,
            **given,
        )
    except TimeoutError as error:
        print(f"onelane serve: {error}", file=sys.stderr, flush=True)
        # The worker may hang in the driver: nothing can be waited for.
        os._exit(1)
    except (Exception, KeyboardInterrupt) as error:
        print(f"onelane serve: {type(error).__name__}: {error}", file=sys.stderr)
        return 2
    return 0


def _named(models: list[str]) -> dict[str, Any]:
    named: dict[str, Any] = {}
    for given in models:
        name, equals, model = given.partition("=")
        if not equals or Path(given).is_dir():
            name, model = Path(given).resolve().name.partition(":")[0], given
        if not name or not model:
            raise ValueError(f"{given!r}: give NAME=MODEL or MODEL")
        if name in named:
            raise ValueError(f"two models are called {name!r}: give NAME=MODEL")
        named[name] = model
    return named


__all__ = ["add_arguments", "main"]
