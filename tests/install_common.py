"""What the tests of `onelane.install` share: models as an application makes them, and threads."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor


def sentences(paths, **more):
    from sentence_transformers import SentenceTransformer

    return SentenceTransformer(paths["sentences"], device="cpu", **more)


def pairs_model(paths):
    from sentence_transformers import CrossEncoder

    return CrossEncoder(paths["pairs"], device="cpu")


def on_threads(function, items, threads=16):
    with ThreadPoolExecutor(threads) as pool:
        return list(pool.map(function, items))


class Threads:
    """Notes which threads run a module's forward."""

    def __init__(self):
        self.seen = set()

    def __enter__(self):
        from torch.nn.modules.module import register_module_forward_pre_hook

        self._hook = register_module_forward_pre_hook(
            lambda module, inputs: self.seen.add(threading.get_ident())
        )
        return self

    def __exit__(self, *error):
        self._hook.remove()
