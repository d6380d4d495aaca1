"""Figures on how clear the tree is: import arrows, circular imports, and indefinite pronouns in the docs.

``python -m tools.clarity_figures [ROOT]`` prints them for a checkout. It reads both layouts: the one with
prefixed packages (``api/modelmill_api``) and the one before it (``api``, with ``modelmill/cli``), so that
one script gives the figures of an old and a new commit.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable, Iterator, Mapping, Set
from itertools import permutations
from pathlib import Path
from typing import NamedTuple

import grimp

Edges = Mapping[str, Set[str]]
"""For each node, the nodes that it imports."""

FOLDERS = ("api", "backends", "cli", "tasks", "worker")
"""Folders at the top of the tree that hold, or are, one package each."""

LAYERS = (("modelmill",), ("tasks",), ("backends",), ("worker", "api"), ("cli",))
"""From the lowest layer to the highest. A package may import those below it, and none of its own layer."""

PRONOUNS = re.compile(r"\b(nobody|somebody|whoever|whichever|whatever|anybody)\b", re.IGNORECASE)
WORD = re.compile(r"[A-Za-z0-9][\w'’-]*")
FENCE = re.compile(r"^(```|~~~).*?^\1[^\n]*$", re.MULTILINE | re.DOTALL)


class Arrows(NamedTuple):
    """The imports between the direct children of one package."""

    package: str
    children: int
    arrows: int
    """Ordered pairs of children with an import from the first to the second."""


def main() -> None:
    """Prints the figures of the tree that the first argument names, of the current folder without one."""
    root = Path(sys.argv[1] if len(sys.argv) > 1 else ".").resolve()
    sys.stdout.write("\n".join(report(root)) + "\n")


def report(root: Path) -> Iterator[str]:
    """The figures as a table, and below it what was found."""
    packages = find_packages(root)
    imports = read_imports(packages)
    words, pronouns = count_prose(find_pages(root))
    circles = find_circles(imports)
    upward = find_upward(imports)

    yield "| figure | value |"
    yield "| --- | ---: |"
    yield f"| words of prose in README and docs | {words:,} |"
    yield f"| indefinite pronouns | {pronouns} |"
    yield f"| indefinite pronouns per 1,000 words | {1000 * pronouns / max(words, 1):.2f} |"
    for name in packages:
        found = arrows_within(name, imports)
        possible = found.children * (found.children - 1) // 2
        yield f"| import arrows in `{name}`, of {possible} possible | {found.arrows} |"
    yield f"| circular imports | {len(circles)} |"
    yield f"| arrows from a package to a higher one | {len(upward)} |"
    apart = find_upward(imports, apart={"modelmill.cli"})
    yield f"| the same, with `modelmill.cli` as a package of its own | {len(apart)} |"
    yield from (f"\ncircle: {', '.join(circle)}" for circle in circles)
    yield from (f"\nup: {importer} → {imported}" for importer, imported in upward)


def find_pages(root: Path) -> list[Path]:
    """README and docs, without ``docs/tasks``: those pages are made from docstrings."""
    docs = root / "docs"
    pages = [page for page in sorted(docs.rglob("*.md")) if page.parent != docs / "tasks"]
    return [root / "README.md", *pages]


def find_packages(root: Path) -> list[str]:
    """The packages of the tree, which become importable from there."""
    found = ["modelmill"]
    paths = [str(root)]
    for folder in FOLDERS:
        if (root / folder / f"modelmill_{folder}").is_dir():
            found.append(f"modelmill_{folder}")
            paths.append(str(root / folder))
        elif (root / folder / "__init__.py").is_file():
            found.append(folder)
    # First, since the packages of another checkout may be installed beside this interpreter.
    sys.path[:0] = paths
    return found


def read_imports(packages: Iterable[str]) -> dict[str, set[str]]:
    """Which module imports which, within these packages. Imports for type checkers only do not count."""
    graph = grimp.build_graph(*packages, exclude_type_checking_imports=True, cache_dir=None)
    return {module: set(graph.find_modules_directly_imported_by(module)) for module in graph.modules}


def arrows_within(package: str, imports: Edges) -> Arrows:
    """The arrows between the direct children of a package."""
    children = _between_children(package, imports)
    return Arrows(package, len(children), sum(len(targets) for targets in children.values()))


def find_circles(imports: Edges) -> list[tuple[str, ...]]:
    """Groups that import each other: modules, and the children of each package taken as one node each."""
    packages = {package for module in imports for package in _packages_of(module)}
    graphs = [imports, *(_between_children(package, imports) for package in sorted(packages))]
    found = {circle for graph in graphs for circle in _components(graph)}
    return sorted(found)


def find_upward(imports: Edges, apart: Set[str] = frozenset()) -> list[tuple[str, str]]:
    """The packages that import a higher one, or another one of their own layer: importer and imported.

    Args:
        imports: Which module imports which.
        apart: Packages within others that count as the highest layer.
    """
    places = [
        (_layer_of(importer, apart), _layer_of(imported, apart))
        for importer, targets in imports.items()
        for imported in targets
    ]
    return sorted(
        {
            (importer, imported)
            for (low, importer), (high, imported) in places
            if importer != imported and low <= high
        }
    )


def count_prose(pages: Iterable[Path]) -> tuple[int, int]:
    """The words and the indefinite pronouns of Markdown pages, without code blocks, tables and headings."""
    words = pronouns = 0
    for page in pages:
        text = prose_of(page.read_text(encoding="utf-8"))
        words += len(WORD.findall(text))
        pronouns += len(PRONOUNS.findall(text))
    return words, pronouns


def prose_of(markdown: str) -> str:
    """The paragraphs and lists of a Markdown page."""
    lines = FENCE.sub("", markdown).splitlines()
    return "\n".join(line for line in lines if not line.lstrip().startswith(("|", "#")))


def _layer_of(module: str, apart: Set[str]) -> tuple[int, str]:
    if any(f"{module}.".startswith(f"{package}.") for package in apart):
        return len(LAYERS) - 1, "cli"
    name = module.partition(".")[0].removeprefix("modelmill_")
    return next((rank, name) for rank, names in enumerate(LAYERS) if name in names)


def _packages_of(module: str) -> Iterator[str]:
    """The packages around a module, with the empty name for the packages at the top."""
    while module:
        module = module.rpartition(".")[0]
        yield module


def _between_children(package: str, imports: Edges) -> dict[str, set[str]]:
    found: dict[str, set[str]] = {}
    for importer, targets in imports.items():
        child = _child(package, importer)
        if child is not None:
            others = {_child(package, target) for target in targets}
            found.setdefault(child, set()).update(other for other in others if other not in (None, child))
    return found


def _child(package: str, module: str) -> str | None:
    prefix = f"{package}." if package else ""
    if not module.startswith(prefix):
        return None
    return prefix + module[len(prefix) :].partition(".")[0]


def _components(graph: Edges) -> list[tuple[str, ...]]:
    """The strongly connected components of more than one node."""
    reachable = {node: _reachable(node, graph) for node in graph}
    mutual = {node: {node} for node in graph}
    for one, other in permutations(graph, 2):
        if other in reachable[one] and one in reachable[other]:
            mutual[one].add(other)
    return sorted({tuple(sorted(group)) for group in mutual.values() if len(group) > 1})


def _reachable(start: str, graph: Edges) -> set[str]:
    seen: set[str] = set()
    waiting = [start]
    while waiting:
        for target in graph.get(waiting.pop(), ()):
            if target not in seen:
                seen.add(target)
                waiting.append(target)
    return seen


if __name__ == "__main__":
    main()
