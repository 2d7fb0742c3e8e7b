"""`python -m onelane`: run an application with `install`, serve models, look at this machine,
check a Mac.

Each command exits with 0 (all well), 1 (something to do, or a check failed) or 2 (it could not be
run as asked); `run` with what the application exits with.
"""

from __future__ import annotations

import argparse
import runpy
import sys
from collections.abc import Sequence
from pathlib import Path


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command."""
    parser = argparse.ArgumentParser(
        prog="python -m onelane",
        description="Run inference on a device that is not thread-safe from any number of threads.",
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    run = commands.add_parser(
        "run",
        help="run an application with onelane.install(), without changing it",
        description="Run an application with onelane.install(): `run app.py ...` or "
        "`run -m uvicorn app:app`. Processes that it starts are not patched.",
    )
    run.add_argument("--device", help="default: mps, else cuda, else cpu")
    run.add_argument("--audit", action="store_true", help="report what goes around the worker")
    run.add_argument("-m", dest="module", action="store_true", help="the application is a module")
    run.add_argument("application", help="a file, or with -m a module")
    run.add_argument("rest", nargs=argparse.REMAINDER, metavar="...", help="its arguments")

    from onelane._serve.command import add_arguments
    from onelane._serve.command import main as serve

    server = commands.add_parser(
        "serve", help="serve models of texts over HTTP and gRPC; docs/serve.md says how"
    )
    add_arguments(server)

    doctor = commands.add_parser(
        "doctor", help="what this machine has, which hazards apply, what to do next"
    )
    doctor.add_argument("--json", action="store_true", help="one JSON object on stdout")

    check = commands.add_parser(
        "mac-check", help="run every claim about a Mac; on others, on the simulated device"
    )
    check.add_argument("--json", action="store_true", help="one JSON object on stdout")
    check.add_argument("--html", metavar="FILE", help="also write the report as a page")
    check.add_argument("--only", nargs="+", metavar="CHECK", help="run these checks alone")
    check.add_argument("--list", action="store_true", help="list the checks and end")

    options = parser.parse_args(arguments)
    if options.command == "run":
        return _run(options)
    if options.command == "serve":
        return serve(options)
    if options.command == "doctor":
        from onelane._doctor import main as examine

        return examine(as_json=options.json)
    from onelane._mac_check import main as check_mac

    return check_mac(
        as_json=options.json, html=options.html, only=options.only, listing=options.list
    )


def _run(options: argparse.Namespace) -> int:
    import onelane

    application = options.application
    if not options.module and not Path(application).is_file():
        print(f"onelane run: there is no file {application!r}", file=sys.stderr)
        return 2
    try:
        done = onelane.install(options.device)
    except (onelane.UnknownVersion, ValueError) as error:
        print(f"onelane run: {error}", file=sys.stderr)
        return 2
    known = ", ".join(str(family) for family in done.families) or "no known library"
    print(f"onelane: {done.device} belongs to one worker; {known}", file=sys.stderr)
    audit = onelane.audit(done.device) if options.audit else None
    if audit is not None:
        audit.start()
    # As `python app.py` and `python -m app` have them.
    sys.argv = [application, *options.rest]
    try:
        if options.module:
            sys.path.insert(0, "")
            runpy.run_module(application, run_name="__main__", alter_sys=True)
        else:
            sys.path.insert(0, str(Path(application).resolve().parent))
            runpy.run_path(application, run_name="__main__")
    finally:
        if audit is not None:
            audit.stop()
            print(f"onelane: {len(audit.findings)} findings of the audit", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
