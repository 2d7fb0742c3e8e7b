#!/usr/bin/env python3
"""Says what Mach-O file this is; fails if it is none for arm64."""

import struct
import sys

KINDS = {2: "program", 6: "dynamic library"}


def main() -> None:
    path = sys.argv[1]
    with open(path, "rb") as file:
        magic, processor, _, kind = struct.unpack("<4I", file.read(16))
    if (magic, processor) != (0xFEEDFACF, 0x0100000C) or kind not in KINDS:
        sys.exit(f"{path} is not a Mach-O file for arm64")
    print(f"{path}: Mach-O arm64 {KINDS[kind]}")


if __name__ == "__main__":
    main()
