"""The files of the package import each other in no circle: each can be read after what it uses."""

import ast
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
