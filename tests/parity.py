"""embed-parity on `onelane serve`: its answers beside those of sentence-transformers.

    python tests/parity.py BINARY MODEL_DIR [OPTIONS OF embed-parity compare]

Vectors, neighbours, lengths, batches and simultaneous calls; the report goes to stdout, and the
exit code is embed-parity's. Nothing is loaded from the hub.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys


def main() -> int:
    """Start the server, run the comparison, end the server."""
    binary, model, *options = sys.argv[1:]
    # The comparison wants the model to have the same name in both.
    serve = [binary, "serve", "--model-id", f"{model}={model}", "--port", "0", "--drain-delay", "0"]
    with subprocess.Popen(serve, stderr=subprocess.PIPE, text=True) as server:
        assert server.stderr is not None
        try:
            for said in server.stderr:
                if listening := re.search(r"http://\S+", said):
                    break
                print(said, end="", file=sys.stderr)
            else:
                return 2
            compare = [sys.executable, "-m", "embed_parity.cli", "compare", "--device", "cpu"]
            compare += ["--model", model, "--tei", listening[0], *options]
            environment = os.environ | {"HF_HUB_OFFLINE": "1"}
            return subprocess.run(compare, env=environment, timeout=600, check=False).returncode
        finally:
            server.terminate()


if __name__ == "__main__":
    sys.exit(main())
