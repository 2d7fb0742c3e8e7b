"""Patch 035 on disk: the tool never half-applies it, and undoes what it did."""

from __future__ import annotations

import json
import os
import shutil
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from onelane import patch035
from onelane.patch035 import __main__ as command
from onelane.patch035 import installed, target, unified_diff
from onelane.patch035.installed import InstalledTorch
from onelane.patch035.target import State

pytestmark = pytest.mark.usefixtures("_patch035_is_left_disabled")
REAL = Path(torch.__file__).parent


@pytest.fixture
def site(tmp_path: Path) -> Path:
    """A folder with the real files of the installed torch that the tool reads."""
    (tmp_path / "torch" / "nn").mkdir(parents=True)
    shutil.copy(REAL / "nn" / "functional.py", tmp_path / "torch" / "nn" / "functional.py")
    shutil.copy(REAL / "version.py", tmp_path / "torch" / "version.py")
    return tmp_path


def files(site: Path) -> dict[str, bytes]:
    return {str(p.relative_to(site)): p.read_bytes() for p in site.rglob("*") if p.is_file()}


def run(*arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "onelane.patch035", *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_the_command_from_end_to_end(site: Path) -> None:
    before = files(site)
    status = run("status", "--site", site)
    assert (status.returncode, "not applied" in status.stdout) == (1, True)
    assert torch.__version__ in status.stdout
    done = run("apply", "--site", site)
    assert (done.returncode, done.stderr) == (0, "")
    assert run("status", "--site", site).returncode == 0
    report = json.loads(run("status", "--json", "--site", site).stdout)
    assert report["state"] == "patched"
    assert report["version"] == torch.__version__
    assert report["tested_version"] is True
    assert Path(report["backup"]).read_bytes() == before["torch/nn/functional.py"]

    applied = files(site)
    again = run("apply", "--site", site)
    assert (again.returncode, "already" in again.stdout) == (0, True)
    assert files(site) == applied
    assert run("revert", "--site", site).returncode == 0
    assert files(site) == before
    assert run("revert", "--site", site).returncode == 0
    assert files(site) == before


def test_only_the_function_changes(site: Path) -> None:
    torch_ = InstalledTorch.find(site)
    before = torch_.functional.read_text(encoding="utf-8")
    assert torch_.apply()
    after = torch_.functional.read_text(encoding="utf-8")
    old, new = target.find_function(before), target.find_function(after)
    assert old is not None
    assert new is not None
    assert before[: old.start] == after[: new.start]
    assert before[old.stop :] == after[new.stop :]
    assert after[new].count("is_mps") == 2


def test_permissions_stay_and_hard_links_keep_their_file(site: Path) -> None:
    torch_ = InstalledTorch.find(site)
    torch_.functional.chmod(0o640)
    cached = site / "cache.py"
    os.link(torch_.functional, cached)
    before = cached.read_bytes()
    torch_.apply()
    assert stat.S_IMODE(torch_.functional.stat().st_mode) == 0o640
    assert cached.read_bytes() == before


def test_other_changes_in_the_file_survive_a_revert(site: Path) -> None:
    torch_ = InstalledTorch.find(site)
    torch_.apply()
    with torch_.functional.open("a", encoding="utf-8") as file:
        file.write("# a later change\n")
    assert torch_.revert()
    assert torch_.functional.read_bytes().endswith(b"# a later change\n")
    assert torch_.state() is State.UNPATCHED
    assert not torch_.backup.exists()


def test_a_torch_reinstalled_over_the_patch(site: Path) -> None:
    torch_ = InstalledTorch.find(site)
    torch_.apply()
    shutil.copy(REAL / "nn" / "functional.py", torch_.functional)
    with torch_.functional.open("a", encoding="utf-8") as file:
        file.write("# a newer release\n")
    newer = torch_.functional.read_bytes()
    assert torch_.apply()
    assert torch_.backup.read_bytes() == newer, "the backup of the older release was kept"
    shutil.copy(torch_.backup, torch_.functional)
    assert not torch_.revert()
    assert not torch_.backup.exists()
    assert torch_.functional.read_bytes() == newer


def set_version(site: Path, version: str) -> None:
    (site / "torch" / "version.py").write_text(f"__version__ = {version!r}\n", encoding="utf-8")


def test_an_unknown_version_is_refused(site: Path) -> None:
    set_version(site, "9.9.0")
    before = files(site)
    refused = run("apply", "--site", site)
    assert refused.returncode == 1
    assert "torch 9.9.0" in refused.stderr
    assert "--any-version" in refused.stderr
    assert "onelane.executor" in refused.stderr
    assert files(site) == before
    assert run("apply", "--any-version", "--site", site).returncode == 0
    assert run("revert", "--site", site).returncode == 0
    assert files(site) == before


def rewrite(site: Path, change: Callable[[str], str]) -> None:
    path = site / "torch" / "nn" / "functional.py"
    old = path.read_text(encoding="utf-8")
    new = change(old)
    assert new != old
    path.write_text(new, encoding="utf-8")


def half_patched(text: str) -> str:
    return unified_diff.apply(target.hunks()[:1], text)


UNKNOWN_TEXTS: dict[str, Callable[[str], str]] = {
    "a changed statement": lambda s: s.replace(
        "proj = linear(q, w, b)\n", "proj = linear(q, w, b) * 1\n"
    ),
    "a changed line far from the hunks": lambda s: s.replace(
        "w_q, w_k, w_v = w.chunk(3)\n        if b is None:\n            b_q = b_k = b_v = None",
        "w_q, w_k, w_v = w.chunk(3)\n        if None is b:\n            b_q = b_k = b_v = None",
        1,
    ),
    "half patched": half_patched,
    "no such function": lambda s: s.replace("def _in_projection_packed(", "def _other("),
    "two of them": lambda s: s + "\n\ndef _in_projection_packed(): ...\n",
    "not Python": lambda s: s + "\n)\n",
    "patched, and changed elsewhere": lambda s: unified_diff.apply(target.hunks(), s).replace(
        "w_q, w_k, w_v = w.chunk(3)\n", "w_q, w_k, w_v = w.chunk(3)  # here\n", 1
    ),
    "patched, then changed": lambda s: unified_diff.apply(target.hunks(), s).replace(
        "proj.chunk(3, dim=-1)", "proj.chunk(3, dim=-2)"
    ),
}


@pytest.mark.parametrize("what", UNKNOWN_TEXTS)
def test_a_text_that_is_not_known_is_never_touched(site: Path, what: str) -> None:
    rewrite(site, UNKNOWN_TEXTS[what])
    before = files(site)
    torch_ = InstalledTorch.find(site)
    assert torch_.state() is State.UNKNOWN
    for attempt in (
        torch_.apply,
        lambda: torch_.apply(any_version=True),
        torch_.revert,
    ):
        with pytest.raises(patch035.UnsupportedTorchError, match="Nothing was changed"):
            attempt()
    assert files(site) == before
    result = run("apply", "--site", site)
    assert result.returncode == 1
    assert f"torch {torch.__version__}" in result.stderr
    assert "Reinstall" in result.stderr
    assert run("status", "--site", site).returncode == 1
    assert files(site) == before


@pytest.mark.parametrize("which", ["backup", "file"])
def test_a_write_that_fails_leaves_everything(
    site: Path, monkeypatch: pytest.MonkeyPatch, which: str
) -> None:
    before = files(site)
    torch_ = InstalledTorch.find(site)
    real, full = os.replace, OSError(28, "No space left on device")

    def replace(source: str, destination: Path) -> None:
        if (destination == torch_.backup) == (which == "backup"):
            raise full
        real(source, destination)

    monkeypatch.setattr(installed.os, "replace", replace)
    with pytest.raises(patch035.WriteError, match="No space left on device"):
        torch_.apply()
    assert files(site) == before


def test_usage_and_missing_torch_are_code_2(tmp_path: Path) -> None:
    for arguments in ([], ["no-such-command"], ["status", "--no-such-flag"]):
        assert run(*arguments).returncode == 2
    missing = run("apply", "--site", tmp_path)
    assert missing.returncode == 2
    assert str(tmp_path / "torch") in missing.stderr
    assert list(tmp_path.iterdir()) == []
    nowhere = subprocess.run(
        [
            sys.executable,
            "-S",
            "-E",
            "-c",
            "import sys; sys.path[:0] = sys.argv[1:2]\n"
            "from onelane.patch035.__main__ import main; sys.exit(main(['status']))",
            str(Path(patch035.__file__).parents[2]),
        ],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    if str(REAL.parent) != str(Path(patch035.__file__).parents[2]):
        assert nowhere.returncode == 2, nowhere
        assert "no torch" in nowhere.stderr


def test_the_command_does_not_import_torch(site: Path) -> None:
    code = (
        "import sys\nfrom onelane.patch035.__main__ import main\n"
        f"main(['status']); main(['apply', '--site', {str(site)!r}])\n"
        "sys.exit('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], timeout=60, check=False)
    assert done.returncode == 0


def test_main_without_a_subprocess(site: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main(["apply", "--site", str(site)]) == 0
    assert str(site) in capsys.readouterr().out


def test_torch_with_the_patch_on_disk_runs(site: Path) -> None:
    """In a process whose torch.nn.functional is the patched file, enable() adds nothing."""
    InstalledTorch.find(site).apply()
    file = str(InstalledTorch.find(site).functional)
    code = f"""
import importlib.abc, importlib.util, sys
class Finder(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name == "torch.nn.functional":
            return importlib.util.spec_from_file_location(name, {file!r})
sys.meta_path.insert(0, Finder())
import torch, torch.nn.functional as F
from onelane import patch035
assert "is_mps" in F._in_projection_packed.__code__.co_names
before = F._in_projection_packed
with patch035.enabled():
    assert F._in_projection_packed is before
x = torch.randn(5, 3, 8)
assert torch.nn.MultiheadAttention(8, 2)(x, x, x)[0].shape == x.shape
"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=100, check=False
    )
    assert done.returncode == 0, done.stderr
