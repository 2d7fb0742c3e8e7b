"""Checks wheels of onelane without the machine that they are for.

    python .ci/wheels/check_wheel.py dist/*.whl

For each: the tags say abi3 and one platform; the native module is a Mach-O or ELF file for that
platform; it needs no newer system than the tag says, and no library outside of the system's; RECORD
has every file with its hash. Exits with 1 and says what is wrong.
"""

from __future__ import annotations

import base64
import hashlib
import re
import struct
import sys
import zipfile
from pathlib import Path

MODULE = "onelane/_onelane.abi3.so"
# Mach-O: the processor's number, and the oldest macOS that there can be.
CPUS = {"arm64": 0x0100000C, "x86_64": 0x01000007}
ELF_MACHINES = {"x86_64": 62, "aarch64": 183}
MACH_O_64, LC_LOAD_DYLIB, LC_BUILD_VERSION, LC_VERSION_MIN_MACOSX = 0xFEEDFACF, 0xC, 0x32, 0x24
LC_LOAD_WEAK_DYLIB, LC_REEXPORT_DYLIB = 0x80000018, 0x8000001F
SYSTEM = ("/usr/lib/", "/System/Library/")
# What every Linux that the tags name has.
LINUX = re.compile(
    r"^(libc|libm|libpthread|libdl|librt|libutil)\.so\.\d+$|^libgcc_s\.so\.1$|^ld-linux.*\.so\.\d+$"
)


def problems(wheel: Path) -> list[str]:
    """Return what is wrong with a wheel; nothing: it may be published."""
    parts = wheel.stem.split("-")
    if len(parts) != 5:
        return [f"{wheel.name} is not named as a wheel"]
    name, version, python, abi, platforms = parts
    found = []
    if (name, abi) != ("onelane", "abi3") or python != "cp310":
        found.append(f"tags {name}-{python}-{abi}: expected onelane-cp310-abi3")
    with zipfile.ZipFile(wheel) as archive:
        found += _record(archive, f"{name}-{version}.dist-info/")
        if MODULE not in archive.namelist():
            return [*found, f"there is no {MODULE} in it"]
        module = archive.read(MODULE)
        if "onelane/py.typed" not in archive.namelist():
            found.append("there is no onelane/py.typed in it")
    mac = re.fullmatch(r"macosx_(\d+)_(\d+)_(arm64|x86_64)", platforms)
    linux = re.match(r"manylinux_(\d+)_(\d+)_(x86_64|aarch64)", platforms)
    if mac:
        return found + _mach_o(module, mac[3], (int(mac[1]), int(mac[2])))
    if linux:
        return found + _elf(module, linux[3], (int(linux[1]), int(linux[2])))
    return [*found, f"platform {platforms}: expected macosx_* or manylinux_*"]


def _record(archive: zipfile.ZipFile, info: str) -> list[str]:
    names = set(archive.namelist())
    if info + "RECORD" not in names or info + "METADATA" not in names:
        return [f"there is no RECORD or METADATA in {info}"]
    wrong, listed = [], set()
    for line in archive.read(info + "RECORD").decode().splitlines():
        name, digest, _ = line.rsplit(",", 2)
        name = name.strip('"')
        listed.add(name)
        if name == info + "RECORD":
            continue
        if name not in names:
            wrong.append(f"RECORD names {name}, which is not there")
            continue
        algorithm, _, expected = digest.partition("=")
        made = hashlib.new(algorithm, archive.read(name)).digest()
        if base64.urlsafe_b64encode(made).rstrip(b"=").decode() != expected:
            wrong.append(f"{name} is not what RECORD says")
    return wrong + [
        f"{name} is not in RECORD" for name in sorted(names - listed) if not name.endswith("/")
    ]


def _mach_o(module: bytes, cpu: str, tag: tuple[int, int]) -> list[str]:
    if len(module) < 32 or struct.unpack_from("<I", module)[0] != MACH_O_64:
        return [f"{MODULE} is not a Mach-O file of 64 bits"]
    _, number, _, _, commands, _, _, _ = struct.unpack_from("<8I", module)
    found, minimum, at = [], None, 32
    if number != CPUS[cpu]:
        found.append(f"{MODULE} is for processor {number:#x}, and the tag says {cpu}")
    for _ in range(commands):
        command, size = struct.unpack_from("<2I", module, at)
        if command in (LC_LOAD_DYLIB, LC_LOAD_WEAK_DYLIB, LC_REEXPORT_DYLIB):
            (offset,) = struct.unpack_from("<I", module, at + 8)
            path = module[at + offset : at + size].split(b"\0")[0].decode()
            if not path.startswith(SYSTEM):
                found.append(f"it needs {path}, which is not the system's")
        elif command == LC_BUILD_VERSION:
            (minimum,) = struct.unpack_from("<I", module, at + 12)
        elif command == LC_VERSION_MIN_MACOSX:
            (minimum,) = struct.unpack_from("<I", module, at + 8)
        at += size
    if minimum is None:
        found.append("it does not say which macOS it needs")
    elif (minimum >> 16, minimum >> 8 & 0xFF) > tag:
        needs = f"{minimum >> 16}.{minimum >> 8 & 0xFF}"
        found.append(f"it needs macOS {needs}, and the tag says {tag[0]}.{tag[1]}")
    return found


def _elf(module: bytes, machine: str, tag: tuple[int, int]) -> list[str]:
    if module[:4] != b"\x7fELF" or module[4] != 2:
        return [f"{MODULE} is not an ELF file of 64 bits"]
    found = []
    (number,) = struct.unpack_from("<H", module, 18)
    if number != ELF_MACHINES[machine]:
        found.append(f"{MODULE} is for machine {number}, and the tag says {machine}")
    for name in _needed(module):
        if not LINUX.match(name):
            found.append(f"it needs {name}, which a Linux need not have")
    versions = re.findall(rb"\0GLIBC_(\d+)\.(\d+)(?:\.\d+)?(?=\0)", module)
    newest = max(((int(a), int(b)) for a, b in versions), default=(0, 0))
    if newest > tag:
        found.append(f"it needs glibc {newest[0]}.{newest[1]}, and the tag says {tag[0]}.{tag[1]}")
    return found


def _needed(module: bytes) -> list[str]:
    """Return the libraries that an ELF file asks for."""
    (offset,) = struct.unpack_from("<Q", module, 40)
    size, count = struct.unpack_from("<2H", module, 58)
    sections = [struct.unpack_from("<2I4Q2I2Q", module, offset + at * size) for at in range(count)]
    names = []
    for section in sections:
        # SHT_DYNAMIC; its link is the table of strings.
        if section[1] != 6:
            continue
        strings = sections[section[6]][4]
        for at in range(section[4], section[4] + section[5], 16):
            tag, value = struct.unpack_from("<2Q", module, at)
            if tag == 1:
                start = strings + value
                names.append(module[start : module.index(b"\0", start)].decode())
    return names


def main(arguments: list[str]) -> int:
    """Check wheels; 1 if something is wrong with one, 2 if none is named."""
    if not arguments:
        print("name the wheels to check", file=sys.stderr)
        return 2
    failed = False
    for name in arguments:
        wrong = problems(Path(name))
        print(f"{Path(name).name}: {'; '.join(wrong) or 'ok'}")
        failed = failed or bool(wrong)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
