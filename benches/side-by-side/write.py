"""Write the pages of a run beside its results, and print the six lines.

CLIENT_ENV/bin/python write.py results.json
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import page
import plots


def main() -> int:
    """Write `index.html`, `side-by-side.md`, `side-by-side.svg` and `readme.txt`."""
    file = Path(sys.argv[1])
    results = json.loads(file.read_text())
    drawn = plots.svg(results)
    written = {
        "index.html": page.page(results, drawn),
        "side-by-side.md": page.markdown(results),
        "side-by-side.svg": drawn,
        "readme.txt": "\n".join(page.six_lines(results)) + "\n",
    }
    for name, text in written.items():
        (file.parent / name).write_text(text)
    print(written["readme.txt"], end="")
    print(f"{file.parent}/index.html", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
