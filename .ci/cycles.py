"""Finds circles of imports, with those in functions and under TYPE_CHECKING.

    python .ci/cycles.py src wsgi_isr

What a package's ``__init__`` imports counts as an import of the package. That Python runs
``__init__`` before the package's modules does not: every re-export would be a circle.
"""

from __future__ import annotations

import sys

import grimp


def circles(imports: dict[str, set[str]]) -> list[list[str]]:
    """The groups of modules that import one another, however indirectly."""
    reached: dict[str, set[str]] = {}
    for start in imports:
        seen: set[str] = set()
        todo = list(imports[start])
        while todo:
            module = todo.pop()
            if module not in seen:
                seen.add(module)
                todo.extend(imports[module])
        reached[start] = seen
    groups = {
        tuple(sorted(other for other in reached[one] if one in reached[other])) for one in imports
    }
    return sorted(list(group) for group in groups if group)


def main(folder: str, package: str) -> int:
    sys.path.insert(0, folder)
    graph = grimp.build_graph(package, cache_dir=None)
    imports = {m: graph.find_modules_directly_imported_by(m) for m in graph.modules}
    found = circles(imports)
    for group in found:
        print("A circle of imports:")
        for module in group:
            print(f"  {module} imports {', '.join(sorted(imports[module] & {*group}))}")
    print(
        f"{len(imports)} modules, {sum(map(len, imports.values()))} imports, {len(found)} circles"
    )
    return bool(found)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
