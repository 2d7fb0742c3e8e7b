"""Checks wheels of onelane without the machines that they are for.

    python .ci/wheels/check_wheel.py dist/*.whl

For each: the tags say abi3 and one platform; the native module is a Mach-O or ELF file for that
platform, with the entry that Python looks for; it needs nothing of Python but its stable ABI, no
newer system than the tag says, and no library outside of the system's; it does not go by the name
of libonelane; on Apple silicon it is signed, and each page is as signed; RECORD has every file with
its hash. Exits with 1 and says what is wrong. `test_check_wheel.py` breaks wheels in each of these
ways.
"""

from __future__ import annotations

import base64
import hashlib
import re
import struct
import sys
import zipfile
from pathlib import Path

import abi3info
import lief

# What is wrong is told below.
lief.logging.disable()

MODULE = "onelane/_onelane.abi3.so"
ENTRY = "PyInit__onelane"
MACH_O_CPUS = {"arm64": "ARM64", "x86_64": "X86_64"}
ELF_MACHINES = {"x86_64": "X86_64", "aarch64": "AARCH64"}
SYSTEM = ("/usr/lib/", "/System/Library/")
# What every Linux that the tags name has.
LINUX = re.compile(
    r"^(libc|libm|libpthread|libdl|librt|libutil)\.so\.\d+$|^libgcc_s\.so\.1$|^ld-linux.*\.so\.\d+$"
)
# Every CPython since 3.3 has these; they are promised since 3.11.
PROMISED_LATER = {"PyObject_GetBuffer", "PyBuffer_Release"}
# Of Apple's code signatures: the list of blobs, the directory of pages, hashes by SHA-256.
SUPER_BLOB, CODE_DIRECTORY, SHA256 = 0xFADE0CC0, 0xFADE0C02, 2


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
    # An old name of the tag may come first: manylinux2014_x86_64.manylinux_2_17_x86_64.
    linux = re.search(r"(?:^|\.)manylinux_(\d+)_(\d+)_(x86_64|aarch64)$", platforms)
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


def _python(imported: set[str]) -> list[str]:
    """Return what of Python is not in the stable ABI of the oldest version that the tag names."""
    promised = {
        symbol.name: entry.added
        for table in (abi3info.FUNCTIONS, abi3info.DATAS)
        for symbol, entry in table.items()
    }
    return [
        f"it uses {name}, which is not in the stable ABI of Python 3.10"
        for name in sorted(imported - PROMISED_LATER)
        if re.match(r"_?Py[A-Z_]", name)
        and (name not in promised or (promised[name].major, promised[name].minor) > (3, 10))
    ]


def _mach_o(module: bytes, cpu: str, tag: tuple[int, int]) -> list[str]:
    fat = lief.MachO.parse(list(module)) if lief.is_macho(list(module)) else None
    if fat is None or fat.size != 1:
        return [f"{MODULE} is not a Mach-O file of one processor"]
    (binary,) = fat
    found = []
    if binary.header.cpu_type.name != MACH_O_CPUS[cpu]:
        found.append(f"{MODULE} is for {binary.header.cpu_type.name}, and the tag says {cpu}")
    for library in binary.libraries:
        if library.command == lief.MachO.LoadCommand.TYPE.ID_DYLIB:
            found += _own_name(library.name)
        elif not library.name.startswith(SYSTEM):
            found.append(f"it needs {library.name}, which is not the system's")
    if binary.has_build_version:
        minimum = tuple(binary.build_version.minos[:2])
    else:
        minimum = tuple(binary.version_min.version[:2]) if binary.has_version_min else None
    if minimum is None:
        found.append("it does not say which macOS it needs")
    elif minimum > tag:
        needs, says = (".".join(map(str, version)) for version in (minimum, tag))
        found.append(f"it needs macOS {needs}, and the tag says {says}")
    if f"_{ENTRY}" not in {symbol.name for symbol in binary.exported_symbols}:
        found.append(f"it does not export {ENTRY}")
    found += _python({symbol.name.removeprefix("_") for symbol in binary.imported_symbols})
    if binary.has_code_signature:
        return found + _signature(module, bytes(binary.code_signature.content))
    # A Mac with Apple silicon kills a process that loads code without one.
    return [*found, "it is not signed"] if cpu == "arm64" else found


def _own_name(name: str) -> list[str]:
    # A loader that has this would not look for the real one.
    return [f"it goes by the name {name}"] if "libonelane" in name else []


def _signature(module: bytes, signature: bytes) -> list[str]:
    """Compare the pages of a file with its code signature, as the system does on loading."""
    magic, _, count = struct.unpack_from(">3I", signature)
    blobs = [struct.unpack_from(">2I", signature, 12 + 8 * at)[1] for at in range(count)]
    directories = [
        at for at in blobs if signature[at : at + 4] == CODE_DIRECTORY.to_bytes(4, "big")
    ]
    if magic != SUPER_BLOB or not directories:
        return ["its code signature cannot be read"]
    at = directories[0]
    fields = struct.unpack_from(">9I4B", signature, at)
    hashes, pages, end, hash_size, kind, page_bits = (fields[i] for i in (4, 7, 8, 9, 10, 12))
    page_size = 1 << page_bits
    if kind != SHA256 or pages != -(-end // page_size):
        return ["its code signature is of a kind that is not known here"]
    for page in range(pages):
        start = page * page_size
        made = hashlib.sha256(module[start : min(start + page_size, end)]).digest()
        if made != signature[at + hashes + page * hash_size :][:hash_size]:
            return [f"page {page} is not what was signed"]
    return []


def _elf(module: bytes, machine: str, tag: tuple[int, int]) -> list[str]:
    binary = lief.ELF.parse(list(module)) if lief.is_elf(list(module)) else None
    if binary is None:
        return [f"{MODULE} is not an ELF file"]
    found = []
    if binary.header.machine_type.name != ELF_MACHINES[machine]:
        found.append(
            f"{MODULE} is for {binary.header.machine_type.name}, and the tag says {machine}"
        )
    found += [
        f"it needs {name}, which a Linux need not have"
        for name in binary.libraries
        if not LINUX.match(name)
    ]
    names = [
        version.name
        for library in binary.symbols_version_requirement
        for version in library.get_auxiliary_symbols()
    ]
    versions = [match for name in names if (match := re.match(r"GLIBC_(\d+)\.(\d+)", name))]
    newest = max(((int(match[1]), int(match[2])) for match in versions), default=(0, 0))
    if newest > tag:
        found.append(f"it needs glibc {newest[0]}.{newest[1]}, and the tag says {tag[0]}.{tag[1]}")
    if ENTRY not in {symbol.name for symbol in binary.exported_symbols}:
        found.append(f"it does not export {ENTRY}")
    # Not `imported_symbols`: that leaves out those without a type, as here are all of Python's.
    found += _python({symbol.name for symbol in binary.dynamic_symbols if symbol.shndx == 0})
    soname = binary.get(lief.ELF.DynamicEntry.TAG.SONAME)
    return found + (_own_name(soname.name) if soname else [])


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
