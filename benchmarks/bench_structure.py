"""房子的结构：房间、楼层、箭头、环、最满的文件夹、文件与函数的长短。只读源码（ast），不导入被量的代码。

一间房是一个文件夹，最上层的每个文件自成一间；箭头是房间之间的 import；楼层是箭头的最长链；环按文件数。
`python benchmarks/bench_structure.py [--repo 另一份检出]`，改架构的前后各跑一次。
"""

from __future__ import annotations

import argparse
import ast
import statistics
from pathlib import Path
from typing import Dict, Iterator, List, Set

PACKAGE = ("algorithm", "semantic_id")
SOURCES = (".py", ".cpp", ".h", ".js")


def modules_of(folder: Path) -> Dict[str, Path]:
    """模块名（不含包名）→ 文件，测试与门面除外。"""
    found = {}
    for path in sorted(folder.rglob("*.py")):
        parts = path.relative_to(folder).with_suffix("").parts
        if "tests" not in parts and parts[-1] not in ("__init__", "__main__"):
            found[".".join(parts)] = path
    return found


def targets_of(module: str, path: Path, modules: Dict[str, Path]) -> Set[str]:
    """这个文件 import 的自己人，不论写在哪里。"""
    found: Set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if not isinstance(node, ast.ImportFrom):
            continue
        base = [*PACKAGE, *module.split(".")][: -node.level] if node.level else []
        full = [*base, *(node.module or "").split(".")] if node.module else base
        if tuple(full[:2]) == PACKAGE:
            names = [".".join([*full[2:], alias.name]) for alias in node.names] + [".".join(full[2:])]
            found |= {name for name in names if name in modules}
    return found - {module}


def floors_of(arrows: Dict[str, Set[str]]) -> Dict[str, int]:
    """房间 → 楼层：一楼不 import 别的房间；环上的箭头只算一次。"""
    floors: Dict[str, int] = {}

    def floor(room: str, path: Set[str]) -> int:
        if room not in floors:
            below = [floor(other, path | {room}) for other in arrows[room] if other not in path | {room}]
            floors[room] = 1 + max(below, default=0)
        return floors[room]

    for room in sorted(arrows):
        floor(room, set())
    return floors


def circles_in(files: Dict[str, Set[str]]) -> List[List[str]]:
    """互相够得着的文件，一圈一组。"""

    def reach(start: str) -> Set[str]:
        seen, todo = set(), [start]
        while todo:
            for other in files[todo.pop()] - seen:
                seen.add(other)
                todo.append(other)
        return seen

    reached = {name: reach(name) for name in files}
    groups = {
        tuple(sorted({other for other in reached[name] if name in reached[other]} | {name}))
        for name in files
        if name in reached[name]
    }
    return [list(group) for group in sorted(groups)]


def functions_in(path: Path) -> Iterator[int]:
    """各函数的代码行数，文档字符串与注释、空行不算。"""
    lines = path.read_text(encoding="utf-8").splitlines()
    for node in ast.walk(ast.parse("\n".join(lines))):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            doc = ast.get_docstring(node) is not None
            first = node.body[0].end_lineno if doc else node.lineno - 1
            body = lines[first : node.end_lineno]
            yield sum(bool(line.strip()) and not line.strip().startswith("#") for line in body) + doc


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repo", type=Path, default=Path(__file__).resolve().parents[1])
    folder = parser.parse_args().repo.joinpath(*PACKAGE)
    modules = modules_of(folder)
    files = {name: targets_of(name, path, modules) for name, path in modules.items()}
    room = {name: name.rpartition(".")[0] or name for name in modules}
    arrows: Dict[str, Set[str]] = {r: set() for r in room.values()}
    for name, targets in files.items():
        arrows[room[name]] |= {room[other] for other in targets} - {room[name]}
    counts: Dict[str, int] = {}
    lengths: List[int] = []
    for path in folder.rglob("*"):
        parts = path.relative_to(folder).parts
        if path.suffix in SOURCES and path.name != "__init__.py" and "tests" not in parts and "uplot" not in parts:
            counts["/".join(parts[:-1]) or "."] = counts.get("/".join(parts[:-1]) or ".", 0) + 1
            lengths.append(path.read_text(encoding="utf-8").count("\n"))
    functions = sorted(length for path in modules.values() for length in functions_in(path))
    circles = circles_in(files)
    fullest = max(counts, key=lambda name: counts[name])
    print(f"rooms {len(arrows)}, floors {max(floors_of(arrows).values())}, arrows {sum(map(len, arrows.values()))}")
    print(f"circles between files {len(circles)} {circles or ''}")
    print(f"fullest folder {fullest} ({counts[fullest]} source files)")
    print(f"file length median {statistics.median(lengths):.0f}, max {max(lengths)}")
    print(f"function length p95 {functions[int(0.95 * len(functions))]}, max {functions[-1]} (code lines)")


if __name__ == "__main__":
    main()
