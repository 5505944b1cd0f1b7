"""楼层图：哪间房可以 import 哪间房，每间房可以用哪些第三方包。

一间房是一个文件夹，最上层的文件按用途并成几间。表从下往上写：一间房只能 import 写在它前面的房间，所以箭头只往下。
文件之间不许有环，函数里的、只供类型检查的 import 也算。改表是设计决定：先在 docs/decisions/ 写半页。只看源码（ast）。
"""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path
from typing import Dict, Iterator, List, NamedTuple, Set, Tuple

import pytest

import algorithm.semantic_id as package

PACKAGE = "algorithm.semantic_id"
FOLDER = Path(package.__file__).parent

# 房间 → (可以 import 的房间, 可以 import 的第三方包)；标准库不限
ROOMS: Dict[str, Tuple[str, str]] = {
    "base": ("", "numpy torch"),
    "search": ("base", "numpy torch"),
    "files": ("base", "numpy pyarrow torch safetensors rich"),
    # 只认数组与编号，不认模型：训练与编码把行为行递给它
    "behaviour": ("base search files", "numpy pyarrow scipy torch"),
    "metrics": ("base files", "numpy"),
    "model": ("base search files", "torch huggingface_hub"),
    "catalog.format": ("base files", "numpy pyarrow"),
    "catalog.index": ("base files catalog.format", "numpy pyarrow"),
    "catalog.unique": ("base catalog.format", "numpy torch"),
    "catalog": ("base files catalog.format catalog.index", "numpy pyarrow torch"),
    "catalog.encoding": (
        "base files catalog.format catalog.index catalog.unique",
        "numpy pyarrow torch ray",
    ),
    "catalog.changes": (
        "base files catalog catalog.format catalog.index catalog.unique catalog.encoding",
        "numpy pyarrow torch",
    ),
    "catalog.exchange": ("base files catalog catalog.format catalog.encoding", "numpy pyarrow faiss"),
    # 只认整数数组，不认模型与物品表
    "decoding": ("base files", "numpy torch safetensors tokenizers transformers"),
    "training": ("base search files metrics model", "numpy torch pyarrow"),
    # 只认 interfaces 里的协议，不认模型
    "evaluation": ("base files metrics behaviour", "numpy pyarrow torch"),
    "report": ("base files metrics evaluation", "numpy pyarrow jinja2"),
    "cli": (
        "base files model catalog catalog.format catalog.encoding catalog.changes"
        " catalog.exchange decoding training evaluation report",
        "pyarrow rich torch typer",
    ),
}
# 最上层的文件住在哪间房
TOP = {
    "interfaces": "base",
    "limits": "base",
    "code_keys": "base",
    "token_text": "base",
    "__init__": "base",
    "config": "base",
    "checks": "base",
    "errors": "base",
    "exact_linear": "model",
    "codebook": "model",
    "rq_vae": "model",
    "encoder": "model",
    "trainer": "training",
    "__main__": "cli",
}
# 附加依赖只在一个文件里导入：换掉它时知道要改哪里
ONE_FILE = {"faiss", "jinja2", "ray", "rich", "scipy", "huggingface_hub"}

# 能执行代码的读取方式；模型与物品表只用 safetensors、JSON、Parquet 与不带 pickle 的 .npy
PICKLES = {"pickle", "cPickle", "_pickle", "cloudpickle", "dill", "joblib", "marshal", "shelve"}
MAX_PUBLIC_NAMES = 15
MAX_FILES = 12  # 一个文件夹里的源文件（.py .cpp .h .js，不算 __init__）


class Import(NamedTuple):
    """一处 import：目标（模块名或第三方包名）、是不是自己的模块、行号。"""

    target: str
    is_ours: bool
    line: int


def module_of(path: Path) -> str:
    """catalog/table.py → catalog.table，catalog/__init__.py → catalog，__init__.py → __init__。"""
    parts = path.relative_to(FOLDER).with_suffix("").parts
    return ".".join(parts[:-1] if len(parts) > 1 and parts[-1] == "__init__" else parts)


SOURCES: Dict[str, Path] = {
    module_of(path): path for path in sorted(FOLDER.rglob("*.py")) if "tests" not in path.relative_to(FOLDER).parts
}
SOURCES["interfaces"] = FOLDER.parent / "interfaces.py"


def room_of(module: str) -> str:
    """模块住在哪间房：最上层的查 `TOP`，其余是表里最长的那个文件夹。"""
    if module in TOP:
        return TOP[module]
    parts = module.split(".")
    for length in range(len(parts), 0, -1):
        if ".".join(parts[:length]) in ROOMS:
            return ".".join(parts[:length])
    return ""


def imports_of(module: str, source: str) -> List[Import]:
    """一个文件里的全部 import（标准库与 __future__ 除外），不论写在哪里。"""
    found: List[Import] = []
    for node in ast.walk(ast.parse(source)):
        for name in _modules(module, node):
            target, is_ours = _classify(name)
            if target and target != module:
                found.append(Import(target, is_ours, node.lineno))  # type: ignore[attr-defined]
    return found


def _modules(module: str, node: ast.AST) -> Iterator[str]:
    """一条 import 语句涉及的模块全名；`from . import a, b` 是两个模块。"""
    if isinstance(node, ast.Import):
        yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
        base = node.module or ""
        if node.level:
            here = ["algorithm"] if module == "interfaces" else [*PACKAGE.split("."), *module.split(".")[:-1]]
            if SOURCES.get(module, Path()).name == "__init__.py" and module != "__init__":
                here = [*PACKAGE.split("."), *module.split(".")]
            here = here[: len(here) - node.level + 1]
            base = ".".join([*here, base] if base else here)
        for alias in node.names:
            if base == PACKAGE and alias.name in package._ROOMS:  # 从门面拿的名字，算在它真正住的房间
                yield f"{PACKAGE}.{package._ROOMS[alias.name]}"
                continue
            full = f"{base}.{alias.name}"
            yield full if full.removeprefix(PACKAGE + ".") in SOURCES else base


def _classify(name: str) -> Tuple[str, bool]:
    """模块全名 → (模块, True) 或 (第三方包, False)；标准库为 ("", False)。"""
    if name == "algorithm.interfaces":
        return "interfaces", True
    if name == PACKAGE:
        return "__init__", True
    if name.startswith(PACKAGE + "."):
        return name.removeprefix(PACKAGE + "."), True
    top = name.split(".")[0]
    return ("", False) if top in sys.stdlib_module_names else (top, False)


def complaints(module: str, source: str) -> List[str]:
    """这个文件里表上没有的箭头，一句一条。"""
    room = room_of(module)
    rooms, packages = (set(part.split()) for part in ROOMS.get(room, ("", "")))
    if SOURCES[module].name == "__init__.py":  # 门面把自己楼里的名字转交出去
        # 最上面的门面转交全部房间的名字，只供类型检查；运行时不加载由 test_light_imports_stay_light 看着
        rooms |= {other for other in ROOMS if other.startswith(module + ".") or module == "__init__"}
    out = []
    for item in imports_of(module, source):
        there = room_of(item.target) if item.is_ours else ""
        if item.is_ours and there != room and there not in rooms:
            out.append(f"{module} line {item.line}: new arrow {room} -> {there} ({item.target})")
        elif not item.is_ours and item.target not in packages:
            out.append(f"{module} line {item.line}: package {item.target} is not allowed in {room}")
    return out


def circle_in(arrows: Dict[str, Set[str]]) -> List[str]:
    """有环就返回环上的文件，没有为空。"""
    done: Set[str] = set()

    def walk(node: str, path: List[str]) -> List[str]:
        if node in path:
            return [*path[path.index(node) :], node]
        if node not in done:
            for other in sorted(arrows.get(node, ())):
                found = walk(other, [*path, node])
                if found:
                    return found
            done.add(node)
        return []

    for start in sorted(arrows):
        found = walk(start, [])
        if found:
            return found
    return []


def arrows_between_files() -> Dict[str, Set[str]]:
    """文件 → 它 import 的文件。门面 `__init__` 只按名字转交，不算箭头的终点。"""
    return {
        module: {item.target for item in imports_of(module, path.read_text(encoding="utf-8")) if item.is_ours}
        - {"__init__"}
        for module, path in SOURCES.items()
        if module != "__init__"
    }


def test_every_file_has_a_room() -> None:
    assert [module for module in SOURCES if not room_of(module)] == [], "draw the new room into ROOMS"
    assert set(ROOMS) == {room_of(module) for module in SOURCES}, "these rooms are gone: take them out of ROOMS"


@pytest.mark.parametrize("module", sorted(SOURCES))
def test_no_new_arrow(module: str) -> None:
    assert complaints(module, SOURCES[module].read_text(encoding="utf-8")) == []


@pytest.mark.parametrize("room", ROOMS)
def test_no_stale_arrow(room: str) -> None:
    used: Set[str] = set()
    for module, path in SOURCES.items():
        if room_of(module) == room and path.name != "__init__.py":
            for item in imports_of(module, path.read_text(encoding="utf-8")):
                used.add(room_of(item.target) if item.is_ours else item.target)
    allowed = {name for part in ROOMS[room] for name in part.split()}
    assert allowed - used == set(), f"{room} no longer imports these: take them out of ROOMS"


def test_arrows_point_down() -> None:
    below: Set[str] = set()
    for room, (rooms, _) in ROOMS.items():
        assert set(rooms.split()) <= below, f"{room} imports a room that is drawn above it"
        below.add(room)


def test_no_circle_between_files() -> None:
    assert circle_in(arrows_between_files()) == []
    assert circle_in({"a": {"b"}, "b": {"c"}, "c": {"a"}}) == ["a", "b", "c", "a"]


def test_folders_stay_small() -> None:
    counts: Dict[str, int] = {}
    for path in FOLDER.rglob("*"):
        parts = path.relative_to(FOLDER).parts
        if path.suffix in (".py", ".cpp", ".h", ".js") and path.name != "__init__.py" and "tests" not in parts:
            folder = "/".join(parts[:-1])
            counts[folder] = counts.get(folder, 0) + ("uplot" not in parts)
    assert {folder: count for folder, count in counts.items() if count > MAX_FILES} == {}


@pytest.mark.parametrize("extra", sorted(ONE_FILE))
def test_an_extra_lives_in_one_room(extra: str) -> None:
    users = {
        room_of(module)
        for module, path in SOURCES.items()
        if any(item.target == extra and not item.is_ours for item in imports_of(module, path.read_text("utf-8")))
    }
    assert len(users) <= (2 if extra == "rich" else 1), f"{extra} is imported in {sorted(users)}"


@pytest.mark.parametrize(
    ("module", "line", "complaint"),
    [
        ("metrics.codes", "from ..trainer import judge", "new arrow metrics -> training"),
        ("metrics.codes", "from .. import encoder", "new arrow metrics -> model"),
        ("metrics.codes", "def f():\n    import algorithm.semantic_id.rq_vae", "new arrow metrics -> model"),
        ("metrics.codes", "from algorithm.semantic_id import SemanticIDEncoder", "new arrow metrics -> model"),
        ("evaluation.measure", "from algorithm.semantic_id.encoder import x", "new arrow evaluation -> model"),
        ("catalog.table", "from ..encoder import SemanticIDEncoder", "new arrow catalog -> model"),
        ("catalog.format.parts", "from ..table import Catalog", "new arrow catalog.format -> catalog"),
        ("decoding.trie", "from ..catalog import Catalog", "new arrow decoding -> catalog"),
        ("config", "class C:\n    def f(self):\n        import pyarrow", "package pyarrow is not allowed in base"),
        ("trainer", "import pandas as pd", "package pandas is not allowed in training"),
        ("codebook", "from rich import print", "package rich is not allowed in model"),
        ("checks", "if TYPE_CHECKING:\n    from .encoder import x", "new arrow base -> model"),
        ("encoder", "from .cli.app import main", "new arrow model -> cli"),
        ("cli.app", "import pandas", "package pandas is not allowed in cli"),
    ],
)
def test_this_test_notices_a_new_arrow(module: str, line: str, complaint: str) -> None:
    source = SOURCES[module].read_text(encoding="utf-8")
    before, after = complaints(module, source), complaints(module, f"{source}\n{line}\n")
    assert len(after) == len(before) + 1
    assert complaint in after[-1]


def test_algorithm_stays_a_namespace_package() -> None:
    # 有了 __init__.py，同事装在别处的 algorithm.xxx 就再也 import 不到
    assert not (FOLDER.parent / "__init__.py").exists()


@pytest.mark.parametrize("module", sorted(SOURCES))
def test_nothing_can_load_a_pickle(module: str) -> None:
    for node in ast.walk(ast.parse(SOURCES[module].read_text(encoding="utf-8"))):
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            names = {alias.name for alias in node.names} | {getattr(node, "module", None) or ""}
            assert not {name.split(".")[0] for name in names} & PICKLES, f"{module} line {node.lineno}"
        elif isinstance(node, ast.Attribute) and ast.unparse(node) in ("torch.load", "torch.save"):
            pytest.fail(f"{module} line {node.lineno}: {ast.unparse(node)} goes through pickle; use safetensors")
        elif isinstance(node, ast.keyword) and node.arg == "allow_pickle":
            assert isinstance(node.value, ast.Constant), f"{module} line {node.lineno}"
            assert node.value.value is False, f"{module} line {node.lineno}"


def test_public_surface_is_small_and_every_name_resolves() -> None:
    assert len(package.__all__) <= MAX_PUBLIC_NAMES
    assert sorted(package.__all__) == package.__all__ == list(package._ROOMS)
    for name in package.__all__:
        assert getattr(package, name).__name__ == name
    with pytest.raises(AttributeError, match="no_such_name"):
        _ = package.no_such_name


def test_typed_names_are_the_names_of_run_time() -> None:
    face = ast.parse(SOURCES["__init__"].read_text("utf-8")).body
    (block,) = [node for node in face if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"]
    typed: Dict[str, str] = {}
    for node in block.body:
        assert isinstance(node, ast.ImportFrom)
        for alias in node.names:
            assert alias.asname == alias.name, "`import x as x` hands the name on under mypy --strict"
            typed[alias.name] = node.module or ""
    assert typed == package._ROOMS


@pytest.mark.parametrize("module", [PACKAGE, f"{PACKAGE}.cli"])
def test_light_imports_stay_light(module: str) -> None:
    # 导入 torch 要一到三秒；`semid --help` 不该等它
    heavy = "{'torch', 'pyarrow', 'numpy', 'safetensors', 'huggingface_hub'}"
    code = f"import sys, {module}; print(sorted({heavy} & set(sys.modules)))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=FOLDER.parents[1])
    assert result.returncode == 0, result.stderr
    assert result.stdout.strip() == "[]"
