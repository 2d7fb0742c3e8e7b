"""The files of the package import each other in no circle: each can be read after what it uses."""

import ast
import subprocess
import sys
import textwrap
from pathlib import Path

import onelane

PACKAGE = Path(onelane.__file__).parent


def modules(package):
    """The modules of a package, by name; its own file, which names them all, is left out."""
    names = {}
    for path in package.rglob("*.py"):
        parts = path.relative_to(package.parent).with_suffix("").parts
        if parts == (package.name, "__init__"):
            continue
        names[".".join(parts).removesuffix(".__init__")] = path
    return names


def imports(name, path, known):
    """What a module imports of the others, in functions and for types alone, too."""
    is_package = path.name == "__init__.py"
    home = name.split(".") if is_package else name.split(".")[:-1]
    for node in ast.walk(ast.parse(path.read_text())):
        found = []
        if isinstance(node, ast.Import):
            found = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = home[: len(home) - node.level + 1] if node.level else []
            base = ".".join([*base, *([node.module] if node.module else [])])
            found = [f"{base}.{alias.name}" for alias in node.names] + [base]
            # `from onelane.sim import _current` is of that module, not of the package.
            if all(one in known for one in found[:-1]):
                found.pop()
        yield from (one for one in found if one in known and one != name)


def circle(graph):
    """A circle of a graph, or None."""
    done, path = set(), []

    def visit(name):
        if name in path:
            return [*path[path.index(name) :], name]
        if name in done:
            return None
        path.append(name)
        for other in sorted(graph[name]):
            found = visit(other)
            if found:
                return found
        path.pop()
        done.add(name)
        return None

    for name in sorted(graph):
        found = visit(name)
        if found:
            return found
    return None


def graph_of(package):
    known = modules(package)
    return {name: set(imports(name, path, known)) for name, path in known.items()}


def test_no_file_imports_itself_through_others():
    graph = graph_of(PACKAGE)
    assert "onelane._lane" in graph["onelane._proxy"], "the graph is not read as it is"
    found = circle(graph)
    assert found is None, " -> ".join(found)


def test_a_circle_is_found(tmp_path):
    package = tmp_path / "small"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "a.py").write_text("from small import b\n")
    (package / "b.py").write_text("def late():\n    from small.c import C\n")
    (package / "c.py").write_text(
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import small.a\n"
    )
    assert circle(graph_of(package)) == ["small.a", "small.b", "small.c", "small.a"]


# A finder of PyTorch whose import stands still: other threads see a module without members.
HALF_MADE = """
    import importlib.util
    import sys
    import threading

    import onelane

    begun, go_on = threading.Event(), threading.Event()

    class Halfway:
        def find_spec(self, name, path=None, target=None):
            return importlib.util.spec_from_loader(name, self) if name == "torch" else None

        def create_module(self, spec):
            return None

        def exec_module(self, module):
            begun.set()
            go_on.wait(60)
            raise ImportError("it was not made")

    sys.meta_path.insert(0, Halfway())

    def load():
        try:
            import torch
        except ImportError:
            pass

    loading = threading.Thread(target=load)
    loading.start()
    assert begun.wait(60)
    assert "torch" in sys.modules

    class Double:
        def __call__(self, items):
            return [2 * item for item in items]

    with onelane.executor("mlx", custom=True) as home:
        with onelane.BatchQueue(Double, home, onelane.Items()) as queue:
            assert queue(2) == 4
            assert queue([1, {"a": (2,)}]) == [1, {"a": (2,)}] * 2
            queue.stats()
        guarded = onelane.guard(dict, home)
        guarded["a"] = 1
        assert guarded["a"] == 1
    try:
        onelane.executor("nonsense")
    except ValueError as error:
        assert "custom=True" in str(error)
    else:
        raise AssertionError("it is no device")
    go_on.set()
    loading.join()
"""


def test_a_library_that_another_thread_is_importing_is_not_used():
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(HALF_MADE)],
        capture_output=True,
        text=True,
        timeout=110,
    )
    assert done.returncode == 0, done.stderr
