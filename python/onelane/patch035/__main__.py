"""`python -m onelane.patch035 status|apply|revert`: patch 035 on an installed PyTorch.

Exit codes: 0 all well (for `status`: the patch is applied), 1 refused or failed (for
`status`: it is not applied), 2 wrong usage or no PyTorch found.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from onelane.patch035 import target
from onelane.patch035.errors import Patch035Error, TorchNotFoundError
from onelane.patch035.installed import InstalledTorch
from onelane.patch035.target import State

_RESTART = "Processes that have imported torch already must be restarted to see it."


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    options = _parser().parse_args(arguments)
    try:
        torch = InstalledTorch.find(options.site)
        if options.command == "status":
            return _status(torch, as_json=options.json)
        if options.command == "apply":
            changed = torch.apply(any_version=options.any_version)
            print(
                f"patch 035 applied to {torch.functional}\nbackup: {torch.backup}\n{_RESTART}"
                if changed
                else f"patch 035 is applied already: {torch.functional}"
            )
        else:
            changed = torch.revert()
            print(
                f"patch 035 reverted in {torch.functional}\n{_RESTART}"
                if changed
                else f"patch 035 is not applied: {torch.functional}"
            )
    except TorchNotFoundError as error:
        print(f"patch035: {error}", file=sys.stderr)
        return 2
    except Patch035Error as error:
        print(f"patch035: {error}", file=sys.stderr)
        return 1
    return 0


def _status(torch: InstalledTorch, *, as_json: bool) -> int:
    state = torch.state()
    tested = target.is_known_version(torch.version)
    backup = torch.backup if torch.backup.exists() else None
    if as_json:
        print(
            json.dumps(
                {
                    "version": torch.version,
                    "tested_version": tested,
                    "file": str(torch.functional),
                    "state": state.value,
                    "backup": None if backup is None else str(backup),
                }
            )
        )
    else:
        words = {
            State.PATCHED: "applied",
            State.UNPATCHED: "not applied",
            State.UNKNOWN: f"cannot be applied: {target.FUNCTION} is not one that it knows",
        }
        print(f"torch {torch.version or '(version unknown)'}{'' if tested else ' (not tested)'}")
        print(f"file: {torch.functional}")
        print(f"patch 035: {words[state]}")
        print(f"backup: {backup or 'none'}")
    return 0 if state is State.PATCHED else 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m onelane.patch035",
        description="Patch 035 on an installed PyTorch: three plain copies in place of one strided "
        "copy of the packed attention projection, on MPS only. torch is not imported.",
        epilog="Exit codes: 0 done (status: applied), 1 refused or failed (status: not applied), "
        "2 wrong usage or no PyTorch.",
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    status = commands.add_parser(
        "status", help="say which torch there is and whether it is patched"
    )
    status.add_argument("--json", action="store_true", help="one JSON object on stdout")
    apply = commands.add_parser("apply", help="apply the patch; keeps a backup beside the file")
    apply.add_argument(
        "--any-version",
        action="store_true",
        help="also for a version that was not tested, if the function is the same text",
    )
    revert = commands.add_parser("revert", help="undo the patch and remove the backup")
    for command in (status, apply, revert):
        command.add_argument(
            "--site",
            type=Path,
            metavar="DIR",
            help="the folder that holds torch (default: where this Python finds it)",
        )
    return parser


if __name__ == "__main__":
    sys.exit(main())
