#!/usr/bin/env python3
"""Makes patches/038-mps-batch-queue.patch; `--check` says whether it is current.

It adds files only, so it applies to every version that has the folder aten/src/ATen/mps, whose
`*.mm` and `*.h` PyTorch's build takes by pattern.
"""

import sys
from pathlib import Path

CRATE = Path(__file__).resolve().parent.parent
PATCH = CRATE.parent.parent / "patches" / "038-mps-batch-queue.patch"
MPS = "aten/src/ATen/mps"

HEAD = """\
Patch 038: at::mps::MPSBatchQueue, on onelane

Operations on tensors from any number of threads run on the one worker thread
that owns the MPS device. The class, names and semantics are those of
dropbox/dML's patch of this number, without its faults: MPSBatchQueue.h lists
them. PyTorch needs nothing new to be built: libonelane is found at run time,
when a queue is started (ONELANE_LIBRARY names it, if the loader does not see
it), and without it start() throws c10::Error.

Apply:   patch -p1 -d <pytorch source> < 038-mps-batch-queue.patch
Test:    python test/test_mps_batch_queue.py
Made for PyTorch 2.15. Compiled for macOS arm64 against the headers of the 2.15
wheel; not built in a PyTorch tree and not run on a Mac.

"""


def files() -> dict[str, str]:
    """Path in PyTorch -> text."""
    include = CRATE / "include"
    source = (CRATE / "torch/MPSBatchQueue.cpp").read_text()
    return {
        f"{MPS}/MPSBatchQueue.h": (include / "MPSBatchQueue.h").read_text(),
        f"{MPS}/MPSBatchQueue.mm": "#define ONELANE_NO_LINK\n" + source,
        f"{MPS}/onelane.h": (include / "onelane.h").read_text(),
        f"{MPS}/onelane.hpp": (include / "onelane.hpp").read_text(),
        "test/test_mps_batch_queue.py": (CRATE / "pytorch/test_mps_batch_queue.py").read_text(),
    }


def patch() -> str:
    parts = [HEAD]
    for path, text in files().items():
        lines = text.splitlines()
        parts.append(f"diff --git a/{path} b/{path}\nnew file mode 100644\n")
        parts.append(f"--- /dev/null\n+++ b/{path}\n")
        parts.append(f"@@ -0,0 +1,{len(lines)} @@\n")
        parts.extend(f"+{line}\n" for line in lines)
    return "".join(parts)


def main() -> None:
    made = patch()
    if "--check" not in sys.argv:
        PATCH.write_text(made)
    elif not PATCH.exists() or PATCH.read_text() != made:
        sys.exit(f"{PATCH.name} is not current: run make patch-038")


if __name__ == "__main__":
    main()
