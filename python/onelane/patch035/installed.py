"""An installed PyTorch on disk, found without importing it.

Invariants: the file is replaced in one step (a new file renamed over it), so that
it is always wholly patched or wholly original; only the text of the one function
changes; and what cannot be recognised is refused before anything is written.
"""

from __future__ import annotations

import ast
import contextlib
import importlib.util
import os
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path

from onelane.patch035 import target
from onelane.patch035.errors import TorchNotFoundError, UnsupportedTorchError, WriteError
from onelane.patch035.target import State

BACKUP_SUFFIX = ".onelane-035.orig"
_SUPPORTED = f"PyTorch {target.KNOWN_SERIES[0]} to {target.KNOWN_SERIES[-1]}"
_WITHOUT_PATCH = (
    "Or leave PyTorch as it is: work that goes through onelane.executor, onelane.BatchQueue "
    "or onelane.guard needs no patch."
)


@dataclass(frozen=True)
class InstalledTorch:
    """The folder of an installed `torch` package."""

    root: Path

    @classmethod
    def find(cls, site: Path | None = None) -> InstalledTorch:
        """Find the torch that this interpreter would import, or the one in folder `site`.

        Raises TorchNotFoundError.
        """
        if site is not None:
            torch = cls(site / "torch")
            if not torch.functional.is_file():
                raise TorchNotFoundError(
                    f"{torch.functional} is not there. --site takes the folder that holds the "
                    "folder torch: what `python -c 'import site; print(site.getsitepackages())'` "
                    "prints."
                )
            return torch
        try:
            spec = importlib.util.find_spec("torch")
        except (ImportError, ValueError):
            spec = None
        if spec is None or spec.origin is None or not cls(Path(spec.origin).parent)._is_there():
            raise TorchNotFoundError(
                "this Python has no torch. Run the command with the Python that has it, or name "
                "its site-packages folder with --site DIR."
            )
        return cls(Path(spec.origin).parent)

    @property
    def functional(self) -> Path:
        """The file that the patch changes."""
        return self.root / "nn" / "functional.py"

    @property
    def backup(self) -> Path:
        """Where the original of that file is kept while the patch is applied."""
        return self.functional.with_name(self.functional.name + BACKUP_SUFFIX)

    @property
    def version(self) -> str | None:
        """The version in torch/version.py, for example "2.15.0+cu130"; None if it says none."""
        try:
            tree = ast.parse((self.root / "version.py").read_text(encoding="utf-8"))
        except (OSError, SyntaxError, UnicodeDecodeError):
            return None
        for node in tree.body:
            if (
                isinstance(node, ast.Assign)
                and any(isinstance(t, ast.Name) and t.id == "__version__" for t in node.targets)
                and isinstance(node.value, ast.Constant)
                and isinstance(node.value.value, str)
            ):
                return node.value.value
        return None

    def state(self) -> State:
        """Whether the file is patched, unpatched, or not one that we know."""
        module = self._read()
        where = target.find_function(module)
        return State.UNKNOWN if where is None else target.state_of(module[where])

    def apply(self, *, any_version: bool = False) -> bool:
        """Apply the patch and keep a backup; False if it was applied already.

        `any_version` lifts the check of the version number, never that of the text.
        Raises UnsupportedTorchError, WriteError.
        """
        module, where, state = self._recognise()
        if state is State.PATCHED:
            return False
        if not any_version and not target.is_known_version(self.version):
            raise UnsupportedTorchError(
                f"{self.describe()} has not been tested with patch 035 ({_SUPPORTED} have). "
                "Nothing was changed. The function that it changes is the same text as in a tested "
                f"version, so --any-version can apply it nevertheless. {_WITHOUT_PATCH}"
            )
        new = module[: where.start] + target.patched(module[where]) + module[where.stop :]
        # The backup comes first: there must be no moment with a patched file and none.
        had_backup = self.backup.exists()
        _replace(self.backup, module, like=self.functional)
        try:
            _replace(self.functional, new, like=self.functional)
        except WriteError:
            if not had_backup:
                with contextlib.suppress(OSError):
                    self.backup.unlink()
            raise
        return True

    def revert(self) -> bool:
        """Undo the patch and remove the backup; False if it was not applied.

        Only the one function goes back: whatever else changed in the file since stays.
        Raises UnsupportedTorchError, WriteError.
        """
        module, where, state = self._recognise()
        was_patched = state is State.PATCHED
        if was_patched:
            old = module[: where.start] + target.unpatched(module[where]) + module[where.stop :]
            _replace(self.functional, old, like=self.functional)
        # Of an unpatched file the backup is a leftover: torch was reinstalled over the patch.
        try:
            self.backup.unlink(missing_ok=True)
        except OSError as error:
            raise WriteError(
                f"the file is as PyTorch shipped it, but its backup {self.backup} cannot be "
                f"removed: {error.strerror}. Remove it by hand."
            ) from error
        return was_patched

    def describe(self) -> str:
        """Version and place, for messages."""
        return f"torch {self.version or '(version unknown)'} at {self.root}"

    def _is_there(self) -> bool:
        return self.functional.is_file()

    def _read(self) -> str:
        try:
            # Bytes, not text mode: line ends must come back as they were.
            return self.functional.read_bytes().decode("utf-8")
        except OSError as error:
            raise TorchNotFoundError(f"cannot read {self.functional}: {error.strerror}") from error
        except UnicodeDecodeError as error:
            raise UnsupportedTorchError(
                f"{self.functional} is not UTF-8 text. Reinstall torch."
            ) from error

    def _recognise(self) -> tuple[str, slice, State]:
        module = self._read()
        where = target.find_function(module)
        state = State.UNKNOWN if where is None else target.state_of(module[where])
        if where is None or state is State.UNKNOWN:
            why = f"its {target.FUNCTION} is not one that patch 035 was made for ({_SUPPORTED})"
            todo = "Install one of those versions and try again."
            if target.is_known_version(self.version):
                why = (
                    f"its {target.FUNCTION} is not the text of that release: something has changed "
                    "it, or this is a build of your own"
                )
                todo = "Reinstall torch from its wheel and try again."
            raise UnsupportedTorchError(
                f"{self.describe()}: {why}. Nothing was changed. {todo} {_WITHOUT_PATCH}"
            )
        return module, where, state


def _replace(path: Path, text: str, *, like: Path) -> None:
    """Put `text` at `path` in one step, with the permissions of `like`."""
    temporary: str | None = None
    try:
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=path.name + ".")
        with os.fdopen(handle, "wb") as file:
            file.write(text.encode("utf-8"))
            file.flush()
            os.fsync(file.fileno())
        shutil.copymode(like, temporary)
        # A rename, so that hard links into a package cache keep their own file.
        os.replace(temporary, path)
        temporary = None
    except OSError as error:
        raise WriteError(
            f"cannot write {path}: {error.strerror}. Nothing was changed. Run the command as the "
            "owner of that environment, or use onelane.patch035.enabled() in the program, which "
            "changes no file."
        ) from error
    finally:
        if temporary is not None:
            with contextlib.suppress(OSError):
                os.unlink(temporary)
