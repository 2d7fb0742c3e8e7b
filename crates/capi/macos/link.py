#!/usr/bin/env python3
"""The linker that Rust calls for macOS on another system: zig, without flags unknown to it.

Needs the environment variables ZIG, the program, and ONELANE_STUBS, a folder with libobjc.tbd.
"""

import os
import sys

# Flags that are dropped together with the argument that follows.
PAIRS = {"-arch", "-Wl,-exported_symbols_list"}
DROPPED = ("-mmacosx-version-min", "-Wl,-exported_symbols_list,")


def main() -> None:
    arguments, given = [], iter(sys.argv[1:])
    for argument in given:
        if argument in PAIRS:
            next(given, None)
        elif not argument.startswith(DROPPED):
            arguments.append(argument)
    zig = os.environ["ZIG"]
    stubs = f"-L{os.environ['ONELANE_STUBS']}"
    os.execv(zig, [zig, "cc", "-target", "aarch64-macos.14.0", stubs, *arguments])


if __name__ == "__main__":
    main()
