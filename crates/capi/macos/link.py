#!/usr/bin/env python3
"""The linker that Rust calls for macOS on another system: zig, without the flags that it does not know.

Needs the environment variables ZIG, the program, and ONELANE_STUBS, a folder with libobjc.tbd.
"""

import os
import sys

# Flags that are dropped, each with the number of arguments that go with it.
DROPPED = {"-arch": 1, "-mmacosx-version-min": 0, "-Wl,-exported_symbols_list": 0}


def main() -> None:
    arguments, given = [], iter(sys.argv[1:])
    for argument in given:
        name = argument.split("=")[0]
        if name == "-Wl,-exported_symbols_list" or argument.startswith("-Wl,-exported_symbols_list"):
            if argument == "-Wl,-exported_symbols_list":
                next(given, None)
            continue
        if name in DROPPED:
            for _ in range(DROPPED[name]):
                next(given, None)
            continue
        if name == "-mmacosx-version-min":
            continue
        arguments.append(argument)
    zig = os.environ["ZIG"]
    stubs = f"-L{os.environ['ONELANE_STUBS']}"
    os.execv(zig, [zig, "cc", "-target", "aarch64-macos.14.0", stubs, *arguments])


if __name__ == "__main__":
    main()
