"""One owner of a device in a process, whatever language asks. `make test-capi` runs this."""

import ctypes
import os
import shutil
import subprocess
import sys
import sysconfig
import threading
from pathlib import Path

import pytest

import onelane

HERE = Path(__file__).parent
LIBRARY = os.environ.get("ONELANE_LIBRARY", "")

pytestmark = [
    pytest.mark.timeout(100),
    pytest.mark.skipif(shutil.which("g++") is None, reason="no C++ compiler"),
]


@pytest.fixture(scope="module")
def extension(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ext")
    command = ["g++", "-std=c++17", "-O0", "-shared", "-fPIC", "-Wall", "-Werror"]
    command += [f"-I{onelane.get_include()}", f"-I{sysconfig.get_path('include')}"]
    command += [str(HERE / "one_owner_ext.cpp"), "-o", str(folder / "one_owner_ext.so")]
    subprocess.run(command, check=True)
    sys.path.insert(0, str(folder))
    yield __import__("one_owner_ext")
    sys.path.remove(str(folder))


class Settings(ctypes.Structure):
    _fields_ = (
        ("struct_size", ctypes.c_size_t),
        ("device", ctypes.c_char_p),
        ("workers", ctypes.c_size_t),
        ("capacity", ctypes.c_size_t),
        ("stack_size", ctypes.c_size_t),
    )


def ask_libonelane(device: str) -> int:
    """The id of the executor that libonelane, another copy of the core, gives."""
    library = ctypes.CDLL(LIBRARY)
    settings = Settings(ctypes.sizeof(Settings), device.encode(), 0, 0, 0)
    executor, name = ctypes.c_void_p(), ctypes.c_uint64()
    assert library.onelane_executor_shared(ctypes.byref(settings), ctypes.byref(executor)) == 0
    assert library.onelane_executor_id(executor, ctypes.byref(name)) == 0
    assert library.onelane_executor_release(executor) == 0
    assert not library.onelane_is_owner()
    return name.value


def workers(device: str) -> list[str]:
    names = [(task / "comm").read_text() for task in Path("/proc/self/task").iterdir()]
    return [name for name in names if name.startswith(f"onelane {device} ")]


def test_python_cpp_and_rust_have_one_worker_for_the_cpu(extension):
    assert LIBRARY, "set ONELANE_LIBRARY to libonelane.so"
    from_python = onelane.executor("cpu")
    thread = from_python.submit(threading.get_native_id).result(30)
    name, from_cpp = extension.ask("cpu")
    assert from_cpp == thread
    assert extension.ask("cpu:0") == (name, thread)
    assert ask_libonelane("cpu") == name == from_python._core.id
    if sys.platform == "linux":
        assert len(workers("cpu")) == 1


def test_a_library_that_links_libonelane_is_not_given_the_package(tmp_path):
    """The loader looks for a library by its name: the package must not go by libonelane's."""
    source, linked = tmp_path / "linked.c", tmp_path / "liblinked.so"
    source.write_text(
        '#include <onelane.h>\nextern "C" const void *table() { return onelane_get_api(1); }\n'
    )
    folder = Path(LIBRARY).resolve().parent
    command = ["g++", "-x", "c++", "-shared", "-fPIC", f"-I{onelane.get_include()}", str(source)]
    command += ["-x", "none", "-o", str(linked), f"-Wl,-rpath,{folder}", LIBRARY]
    subprocess.run(command, check=True)
    script = (
        "import ctypes, onelane\n"
        "onelane.executor('cpu')\n"
        f"assert ctypes.CDLL({str(linked)!r}).table()\n"
    )
    subprocess.run([sys.executable, "-c", script], check=True, timeout=60)


def test_the_package_is_not_a_second_owner():
    script = (
        "import ctypes, sys\n"
        f"library = ctypes.CDLL({LIBRARY!r})\n"
        "assert library.onelane_get_api(1)\n"
        "import onelane\n"
        "try:\n"
        "    onelane.executor('cpu')\n"
        "except ImportError as error:\n"
        "    assert 'second owner' in str(error)\n"
        "    sys.exit(7)\n"
    )
    assert subprocess.run([sys.executable, "-c", script], timeout=60).returncode == 7


def test_the_headers_are_in_the_package():
    names = {path.name for path in Path(onelane.get_include()).iterdir()}
    assert {"onelane.h", "onelane.hpp", "onelane_python.hpp", "MPSBatchQueue.h"} <= names
    assert {"MPSBatchQueue.cpp", "MPSBatchQueue.mm"} <= names
