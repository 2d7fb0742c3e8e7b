"""What is checked of a wheel before it is published, with wheels that are wrong in one way each."""

from __future__ import annotations

import base64
import hashlib
import importlib.util
import struct
import zipfile
from pathlib import Path

import pytest

PATH = Path(__file__).parent.parent / ".ci" / "wheels" / "check_wheel.py"
spec = importlib.util.spec_from_file_location("check_wheel", PATH)
check_wheel = importlib.util.module_from_spec(spec)
spec.loader.exec_module(check_wheel)

ARM = "onelane-0.1.0-cp310-abi3-macosx_11_0_arm64.whl"
LINUX = "onelane-0.1.0-cp310-abi3-manylinux_2_17_x86_64.manylinux2014_x86_64.whl"


def mach_o(cpu=0x0100000C, minimum=(11, 0), libraries=("/usr/lib/libSystem.B.dylib",)):
    commands = [struct.pack("<6I", 0x32, 24, 1, minimum[0] << 16 | minimum[1] << 8, 0, 0)]
    for path in libraries:
        text = path.encode() + b"\0"
        text += b"\0" * (-len(text) % 8)
        commands.append(struct.pack("<6I", 0xC, 24 + len(text), 24, 0, 0, 0) + text)
    body = b"".join(commands)
    return struct.pack("<8I", 0xFEEDFACF, cpu, 0, 6, len(commands), len(body), 0, 0) + body


def elf(machine=62, needed=("libc.so.6",), glibc="2.17"):
    strings = b"\0" + b"".join(name.encode() + b"\0" for name in needed)
    strings += f"GLIBC_{glibc}".encode() + b"\0"
    dynamic, at = b"", 1
    for name in needed:
        dynamic += struct.pack("<2Q", 1, at)
        at += len(name) + 1
    dynamic += struct.pack("<2Q", 0, 0)
    head = 64
    sections = [
        struct.pack("<2I4Q2I2Q", 0, 3, 0, 0, head, len(strings), 0, 0, 0, 0),
        struct.pack("<2I4Q2I2Q", 0, 6, 0, 0, head + len(strings), len(dynamic), 0, 0, 0, 16),
    ]
    table = head + len(strings) + len(dynamic)
    begin = b"\x7fELF\x02\x01\x01" + b"\0" * 9
    begin += struct.pack("<2HI3QI6H", 3, machine, 1, 0, 0, table, 0, 64, 0, 0, 64, 2, 0)
    return begin + strings + dynamic + b"".join(sections)


def wheel(folder, name, module, spoil=None):
    files = {
        "onelane/_onelane.abi3.so": module,
        "onelane/py.typed": b"",
        "onelane-0.1.0.dist-info/METADATA": b"Name: onelane\n",
    }
    record = ""
    for path, content in files.items():
        digest = base64.urlsafe_b64encode(hashlib.sha256(content).digest()).rstrip(b"=").decode()
        record += f"{path},sha256={digest},{len(content)}\n"
    files["onelane-0.1.0.dist-info/RECORD"] = (
        record + "onelane-0.1.0.dist-info/RECORD,,\n"
    ).encode()
    if spoil is not None:
        spoil(files)
    path = folder / name
    with zipfile.ZipFile(path, "w") as archive:
        for inner, content in files.items():
            archive.writestr(inner, content)
    return path


@pytest.mark.parametrize(
    ("name", "module"),
    [
        (ARM, mach_o()),
        (ARM.replace("arm64", "x86_64").replace("11_0", "10_12"), mach_o(0x01000007, (10, 12))),
        (LINUX, elf()),
        (LINUX.replace("x86_64", "aarch64"), elf(183, ("libc.so.6", "ld-linux-aarch64.so.1"))),
    ],
)
def test_wheels_that_may_be_published(tmp_path, name, module):
    assert check_wheel.problems(wheel(tmp_path, name, module)) == []


@pytest.mark.parametrize(
    ("name", "module", "said"),
    [
        (ARM, elf(), "not a Mach-O"),
        (ARM, mach_o(cpu=0x01000007), "for processor"),
        (ARM, mach_o(minimum=(14, 0)), "needs macOS 14.0"),
        (ARM, mach_o(libraries=("/opt/homebrew/lib/libfoo.dylib",)), "homebrew"),
        (ARM, mach_o(libraries=("@rpath/libpython3.11.dylib",)), "libpython"),
        (LINUX, mach_o(), "not an ELF"),
        (LINUX, elf(machine=183), "for machine"),
        (LINUX, elf(needed=("libc.so.6", "libssl.so.3")), "libssl"),
        (LINUX, elf(glibc="2.34"), "glibc 2.34"),
        (ARM.replace("abi3", "cp310"), mach_o(), "abi3"),
        (ARM.replace("macosx_11_0_arm64", "linux_x86_64"), mach_o(), "manylinux"),
        ("onelane-0.1.0.whl", mach_o(), "not named"),
    ],
)
def test_wheels_that_are_wrong(tmp_path, name, module, said):
    found = check_wheel.problems(wheel(tmp_path, name, module))
    assert any(said in text for text in found), found


def test_a_record_that_does_not_hold(tmp_path):
    def changed(files):
        files["onelane/py.typed"] = b"other"

    def added(files):
        files["onelane/more.py"] = b""

    def missing(files):
        del files["onelane/_onelane.abi3.so"]

    for spoil, said in (
        (changed, "not what RECORD"),
        (added, "not in RECORD"),
        (missing, "there is no"),
    ):
        found = check_wheel.problems(wheel(tmp_path, ARM, mach_o(), spoil))
        assert any(said in text for text in found), found


def test_exit_codes(tmp_path, capsys):
    good, bad = wheel(tmp_path, ARM, mach_o()), tmp_path / LINUX
    wheel(tmp_path, LINUX, mach_o())
    assert check_wheel.main([]) == 2
    assert check_wheel.main([str(good)]) == 0
    assert check_wheel.main([str(good), str(bad)]) == 1
    assert "ok" in capsys.readouterr().out
