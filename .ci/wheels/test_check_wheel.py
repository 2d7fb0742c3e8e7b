"""Breaks the wheels that were built, one way each, and wants the check to say so.

python -m pytest .ci/wheels          (the wheels are those of dist/, or of $ONELANE_DIST)
"""

from __future__ import annotations

import base64
import hashlib
import os
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import check_wheel
import lief
import pytest

DIST = Path(os.environ.get("ONELANE_DIST", "dist"))


def built(platform: str) -> Path:
    found = sorted(DIST.glob(f"onelane-*{platform}*.whl"))
    if not found:
        pytest.skip(f"there is no wheel for {platform} in {DIST}")
    return found[-1]


def rewritten(
    wheel: Path,
    folder: Path,
    *,
    name: str | None = None,
    module: Callable[[bytes], bytes] | None = None,
    without: str = "",
    record: bool = True,
) -> Path:
    """Copy a wheel with another name or module, or without a file; RECORD follows unless told."""
    copy = folder / (name or wheel.name)
    with zipfile.ZipFile(wheel) as old, zipfile.ZipFile(copy, "w") as new:
        lines = []
        for entry in old.namelist():
            data = old.read(entry)
            if entry.endswith("RECORD"):
                record_name, record_data = entry, data
                continue
            if entry == without:
                continue
            if entry == check_wheel.MODULE and module:
                data = module(data)
            digest = base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=").decode()
            lines.append(f"{entry},sha256={digest},{len(data)}")
            new.writestr(entry, data)
        text = "\n".join([*lines, f"{record_name},,\n"]).encode() if record else record_data
        new.writestr(record_name, text)
    return copy


def mach_o(change: Callable[[lief.MachO.Binary], None]) -> Callable[[bytes], bytes]:
    def apply(data: bytes) -> bytes:
        fat = lief.MachO.parse(list(data))
        binary = fat.at(0)
        change(binary)
        return bytes(binary.write_to_bytes())

    return apply


def elf(change: Callable[[lief.ELF.Binary], None]) -> Callable[[bytes], bytes]:
    def apply(data: bytes) -> bytes:
        binary = lief.ELF.parse(list(data))
        change(binary)
        return bytes(binary.write_to_bytes())

    return apply


def said(wheel: Path) -> str:
    return "; ".join(check_wheel.problems(wheel))


@pytest.mark.parametrize(
    "platform", ["macosx*arm64", "macosx*x86_64", "manylinux*x86_64", "manylinux*aarch64"]
)
def test_a_copy_is_as_good_as_the_wheel(platform: str, tmp_path: Path) -> None:
    assert said(rewritten(built(platform), tmp_path)) == ""


@pytest.mark.parametrize("platform", ["macosx*arm64", "manylinux*x86_64"])
def test_what_is_in_every_wheel(platform: str, tmp_path: Path) -> None:
    wheel = built(platform)
    name = wheel.name
    for there, bad in [("abi3", "cp310"), ("cp310-", "cp313-"), ("onelane-", "other-")]:
        assert "expected onelane-cp310-abi3" in said(
            rewritten(wheel, tmp_path, name=name.replace(there, bad, 1))
        )
    stem, _, _ = name.rpartition("-")
    assert "expected macosx" in said(rewritten(wheel, tmp_path, name=f"{stem}-linux_x86_64.whl"))
    no_module = rewritten(wheel, tmp_path, without=check_wheel.MODULE)
    assert said(no_module) == f"there is no {check_wheel.MODULE} in it"
    assert "py.typed" in said(rewritten(wheel, tmp_path, without="onelane/py.typed"))
    unlisted = rewritten(wheel, tmp_path, module=lambda data: data + b"\0", record=False)
    assert f"{check_wheel.MODULE} is not what RECORD says" in said(unlisted)
    not_there = rewritten(wheel, tmp_path, without="onelane/__init__.py", record=False)
    assert "onelane/__init__.py, which is not there" in said(not_there)
    text = rewritten(wheel, tmp_path, module=lambda _: b"no library")
    assert "is not a" in said(text)


def test_what_a_mac_would_refuse(tmp_path: Path) -> None:
    wheel = built("macosx*arm64")
    other = wheel.name.replace("arm64", "x86_64")
    assert "the tag says x86_64" in said(rewritten(wheel, tmp_path, name=other))
    older = wheel.name.replace("macosx_11_0", "macosx_10_9")
    assert "it needs macOS 11.0, and the tag says 10.9" in said(
        rewritten(wheel, tmp_path, name=older)
    )

    def links(binary: lief.MachO.Binary) -> None:
        binary.add_library("@rpath/libtorch.dylib")

    needs = said(rewritten(wheel, tmp_path, module=mach_o(links)))
    assert "it needs @rpath/libtorch.dylib, which is not the system's" in needs

    def rename(binary: lief.MachO.Binary) -> None:
        for library in binary.libraries:
            if library.command == lief.MachO.LoadCommand.TYPE.ID_DYLIB:
                library.name = "@rpath/libonelane.1.dylib"

    renamed = said(rewritten(wheel, tmp_path, module=mach_o(rename)))
    assert "it goes by the name @rpath/libonelane.1.dylib" in renamed

    def newer(binary: lief.MachO.Binary) -> None:
        binary.get_symbol("_PyList_New").name = "_PyType_GetDict"

    private = said(rewritten(wheel, tmp_path, module=mach_o(newer)))
    assert "it uses PyType_GetDict, which is not in the stable ABI" in private

    def hide(binary: lief.MachO.Binary) -> None:
        assert binary.unexport(f"_{check_wheel.ENTRY}")

    hidden = said(rewritten(wheel, tmp_path, module=mach_o(hide)))
    assert f"it does not export {check_wheel.ENTRY}" in hidden

    def unsign(binary: lief.MachO.Binary) -> None:
        assert binary.remove_signature()

    assert "it is not signed" in said(rewritten(wheel, tmp_path, module=mach_o(unsign)))
    # As a tool would that strips a file after it was signed.
    page = 5 * 16384
    changed = said(
        rewritten(
            wheel,
            tmp_path,
            module=lambda data: data[:page] + bytes([data[page] ^ 1]) + data[page + 1 :],
        )
    )
    assert "is not what was signed" in changed


def test_what_a_linux_would_refuse(tmp_path: Path) -> None:
    wheel = built("manylinux*x86_64")
    other = wheel.name.replace("x86_64", "aarch64")
    assert "the tag says aarch64" in said(rewritten(wheel, tmp_path, name=other))
    older = wheel.name.replace("manylinux_2_17", "manylinux_2_5")
    assert "and the tag says 2.5" in said(rewritten(wheel, tmp_path, name=older))

    def links(binary: lief.ELF.Binary) -> None:
        binary.add_library("libtorch.so")

    needs = said(rewritten(wheel, tmp_path, module=elf(links)))
    assert "it needs libtorch.so, which a Linux need not have" in needs

    def rename(binary: lief.ELF.Binary) -> None:
        binary.add(lief.ELF.DynamicSharedObject("libonelane.so.1"))

    renamed = said(rewritten(wheel, tmp_path, module=elf(rename)))
    assert "it goes by the name libonelane.so.1" in renamed

    def newer(binary: lief.ELF.Binary) -> None:
        binary.get_dynamic_symbol("PyList_New").name = "PyType_GetDict"

    private = said(rewritten(wheel, tmp_path, module=elf(newer)))
    assert "it uses PyType_GetDict, which is not in the stable ABI" in private

    def hide(binary: lief.ELF.Binary) -> None:
        binary.get_dynamic_symbol(check_wheel.ENTRY).name = "PyInit_other"

    hidden = said(rewritten(wheel, tmp_path, module=elf(hide)))
    assert f"it does not export {check_wheel.ENTRY}" in hidden


def test_the_exit_status(tmp_path: Path) -> None:
    bad = rewritten(built("manylinux*x86_64"), tmp_path, without="onelane/py.typed")
    for arguments, status in [([str(bad)], 1), ([], 2)]:
        run = subprocess.run([sys.executable, check_wheel.__file__, *arguments], timeout=60)
        assert run.returncode == status
