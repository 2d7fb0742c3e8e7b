"""The native module's stubs say what is in it."""

from __future__ import annotations

import ast
import inspect
from pathlib import Path

import onelane
from onelane import _onelane

STUBS = Path(onelane.__file__).with_name("_onelane.pyi")


def members(body):
    found = {}
    for node in body:
        if isinstance(node, ast.ClassDef):
            found[node.name] = members(node.body)
        elif isinstance(node, ast.FunctionDef):
            args = node.args
            found[node.name] = [
                a.arg for a in (*args.posonlyargs, *args.args, *filter(None, [args.vararg]))
            ] + (["**"] if args.kwarg else [])
        elif isinstance(node, ast.AnnAssign) and not node.target.id.startswith("__"):
            found[node.target.id] = None
    return found


def real_arguments(function):
    parameters = inspect.signature(function).parameters.values()
    return ["**" if p.kind is p.VAR_KEYWORD else p.name for p in parameters]


def test_the_stubs_have_what_the_module_has():
    stubs = members(ast.parse(STUBS.read_text()).body)
    public = {name for name in vars(_onelane) if not name.startswith("__")}
    assert set(stubs) == public
    for name, stub in stubs.items():
        real = getattr(_onelane, name)
        if stub is None:
            continue
        if isinstance(stub, dict):
            public = {n for n in vars(real) if not n.startswith("_")}
            assert {n for n in stub if not n.startswith("_")} == public, name
            for method, arguments in stub.items():
                if method == "__new__":
                    assert arguments[1:] == real_arguments(real), name
                elif callable(getattr(real, method)):
                    assert arguments == real_arguments(getattr(real, method)), (name, method)
        else:
            assert stub == real_arguments(real), name


def test_everything_promised_is_there():
    for name in onelane.__all__:
        assert getattr(onelane, name).__doc__, name
    assert set(onelane.__all__) == set(onelane._HOME)
    assert set(onelane.__all__) <= set(dir(onelane))
