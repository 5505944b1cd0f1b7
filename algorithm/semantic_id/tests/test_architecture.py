"""楼层图：谁可以 import 谁。多一支箭头就失败，少一支也失败，所以这张表永远是真的。

表从下往上写，一间房只能 import 写在它前面的房间，因此表本身就保证没有环。改动它是设计决定：先在 docs/decisions/
写半页，再改这里。只看源码（ast），函数里面的 import 也算；`if TYPE_CHECKING:` 里的只供类型检查，另列一张表。
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
    # 地基：契约、配置、检查、纯函数
    "interfaces": ("", "torch"),
    "__init__": ("", ""),
    "config": ("", ""),
    "checks": ("", "torch"),
    "metrics": ("", "numpy"),
    "neighbours": ("", "numpy"),
    "metrics_meaning": ("metrics neighbours", "numpy"),
    "verdict_sentences": ("", ""),
    "verdicts": ("verdict_sentences", ""),
    "evaluation_legend": ("", ""),
    "metrics_behaviour": ("metrics neighbours", "numpy"),
    "progress": ("", "rich"),
    "exact_linear": ("", "torch"),
    # 特征来源：一楼训练要读，二楼编码也要读，所以在两者之下（决定 0002）
    "vectors": ("", "numpy pyarrow"),
    "vectors_npy": ("vectors", "numpy"),
    "vectors_parquet": ("vectors", "numpy pyarrow"),
    # 一楼：模型
    "_search_native": ("", "torch"),
    "_search_tiles": ("", "numpy torch"),
    "search": ("_search_native _search_tiles", "numpy torch"),
    "_beam_scores": ("_search_tiles search", "numpy torch"),
    "_beam_tiles": ("_beam_scores _search_tiles search", "numpy torch"),
    "beam": ("_beam_scores _beam_tiles _search_native _search_tiles search", "torch"),
    "kmeans": ("search", "torch"),
    "codebook": ("search checks", "torch"),
    "rq_vae": ("beam codebook checks config", "torch"),
    "model_card": ("config", ""),
    "durable": ("", ""),
    "checkpoint": ("durable", "torch safetensors"),
    "encoder": (
        "interfaces checks checkpoint config exact_linear model_card rq_vae",
        "torch huggingface_hub",
    ),
    "training_rows": ("config vectors", "numpy torch"),
    "judge": ("encoder metrics", "numpy torch"),
    "refine": ("codebook rq_vae", "torch"),
    "epochs": ("config metrics progress refine rq_vae", "numpy torch"),
    "behaviour": ("progress vectors", "numpy pyarrow torch"),
    "initialize": ("behaviour config encoder kmeans progress training_rows", "torch"),
    "tracking": ("", "torch"),
    "trainer": (
        "behaviour checkpoint codebook config durable encoder epochs initialize judge progress refine"
        " tracking training_rows vectors",
        "numpy torch",
    ),
    # 二楼：物品。只认 interfaces 里的协议，不认模型
    "evaluation_folder": ("durable", "pyarrow"),
    "additive_means": ("vectors", "numpy"),
    "prefix_means": ("metrics_meaning vectors", "numpy"),
    "evaluation": (
        "interfaces additive_means metrics metrics_behaviour metrics_meaning neighbours prefix_means vectors",
        "numpy torch",
    ),
    "evaluation_inputs": ("vectors vectors_npy", "numpy pyarrow"),
    "evaluation_tables": ("evaluation_folder metrics_meaning neighbours", "numpy pyarrow"),
    "advise": ("kmeans neighbours search vectors", "numpy torch"),
    "catalog.manifest": ("durable", ""),
    "catalog.packing": ("", "numpy pyarrow"),
    "catalog.external_sort": ("", "numpy pyarrow"),
    "catalog.parts": ("durable catalog.manifest", "numpy pyarrow"),
    "catalog.index": ("catalog.manifest catalog.packing", "numpy pyarrow"),
    "catalog.index_build": (
        "durable catalog.external_sort catalog.index catalog.manifest catalog.packing catalog.parts",
        "numpy pyarrow",
    ),
    "catalog.table": ("catalog.index catalog.manifest catalog.packing catalog.parts", "numpy pyarrow"),
    "catalog.matching": ("", "numpy"),
    "catalog.assign": ("catalog.external_sort catalog.manifest catalog.matching catalog.packing", "numpy"),
    "catalog.candidates": ("interfaces catalog.assign", "numpy torch"),
    "catalog.shards": (
        "interfaces durable vectors catalog.assign catalog.candidates catalog.manifest catalog.parts",
        "numpy pyarrow torch",
    ),
    "catalog.seal": (
        "catalog.assign catalog.external_sort catalog.index_build catalog.manifest catalog.packing catalog.parts"
        " catalog.shards",
        "numpy pyarrow",
    ),
    "catalog.publish": ("durable catalog.manifest", ""),
    "catalog.encode": (
        "interfaces vectors catalog.assign catalog.candidates catalog.external_sort catalog.manifest"
        " catalog.packing catalog.publish catalog.seal catalog.shards",
        "numpy",
    ),
    # ray 只在这一间房里导入，而且在函数里面
    "catalog.encode_ray": ("interfaces catalog.encode catalog.manifest", "ray"),
    "catalog.update": (
        "interfaces durable vectors catalog.assign catalog.candidates catalog.external_sort catalog.index_build"
        " catalog.manifest catalog.packing catalog.parts catalog.shards catalog.table",
        "numpy pyarrow",
    ),
    "catalog.migrate": (
        "interfaces durable vectors catalog.matching catalog.shards catalog.table",
        "numpy pyarrow",
    ),
    "catalog.drift": (
        "interfaces vectors catalog.candidates catalog.parts catalog.shards catalog.table catalog.update",
        "numpy torch",
    ),
    "catalog.index_json": (
        "durable catalog.encode catalog.manifest catalog.parts catalog.publish catalog.seal catalog.shards"
        " catalog.table",
        "numpy pyarrow",
    ),
    "catalog.decode": (
        "interfaces durable vectors vectors_npy catalog.manifest catalog.parts catalog.table",
        "numpy pyarrow torch",
    ),
    "catalog": ("catalog.decode catalog.encode catalog.manifest catalog.table", ""),
    # 三楼：受约束的解码。只认整数数组，不认模型与物品表；transformers 只在 hf、tokenizers 只在 tokens
    "decoding.trie_build": ("", "numpy"),
    "decoding.trie_file": ("durable decoding.trie_build", "numpy safetensors"),
    "decoding.trie": ("decoding.trie_build decoding.trie_file", "numpy torch"),
    "decoding.top_k": ("", "torch"),
    "decoding.beam_decoding": ("decoding.top_k decoding.trie", "torch"),
    "decoding.tokens": ("decoding.trie_build", "tokenizers torch"),
    "decoding.embedding_rows": ("decoding.tokens", "torch"),
    "decoding.hf": ("decoding.beam_decoding decoding.tokens decoding.trie", "torch transformers"),
    "decoding.tokenizer_folder": (
        "durable decoding.embedding_rows decoding.tokens",
        "safetensors torch transformers",
    ),
    "decoding": ("decoding.beam_decoding decoding.tokens decoding.trie decoding.trie_file", ""),
    "showcase": ("metrics", "numpy"),
    "run_folder": ("", ""),
    # 命令行背后的动作：唯一同时认识两层楼的房间，把模型交给物品表
    "model_loading": ("encoder", "torch"),
    "commands_evaluate": (
        "__init__ additive_means advise catalog catalog.manifest encoder evaluation evaluation_folder evaluation_inputs"
        " evaluation_legend evaluation_tables metrics metrics_meaning model_loading progress vectors verdicts",
        "numpy pyarrow",
    ),
    # 报告：只读目录，不认模型；jinja2 只在 report
    "report_runs": ("evaluation_folder", "pyarrow"),
    "report_data": ("evaluation_tables report_runs", "numpy pyarrow"),
    "report_figures": ("", ""),
    "report": ("__init__ durable report_data report_figures report_runs", "jinja2"),
    "commands": (
        "__init__ commands_evaluate config durable progress vectors encoder trainer catalog model_loading"
        " catalog.assign catalog.encode catalog.encode_ray catalog.parts decoding.tokenizer_folder report showcase"
        " run_folder",
        "pyarrow",
    ),
    # faiss 只在这一间房里导入
    "faiss_model": ("config encoder", "numpy torch faiss"),
    "commands_catalog": (
        "durable faiss_model model_loading progress vectors catalog catalog.drift catalog.index_json"
        " catalog.migrate catalog.update",
        "torch",
    ),
}

# 往回指的箭头：只许出现在函数里，而且只有这几支。vectors 按扩展名挑读者，读者要用 vectors 的基类
LAZY = {("vectors", "vectors_npy"), ("vectors", "vectors_parquet")}
# 只供类型检查的箭头
TYPE_ONLY = {("_search_native", "search"), ("_search_tiles", "search")}

# 门面：可以 import 任何房间与这些包，但谁也不许 import 它
DOOR = "cli"
DOOR_PACKAGES = {"numpy", "pyarrow", "rich", "torch", "typer", "click"}

# 能执行代码的读取方式；模型与物品表只用 safetensors、JSON、Parquet 与不带 pickle 的 .npy
PICKLES = {"pickle", "cPickle", "_pickle", "cloudpickle", "dill", "joblib", "marshal", "shelve"}
MAX_PUBLIC_NAMES = 15


class Import(NamedTuple):
    """一处 import：目标（房间名或第三方包名）、种类（module、function、type）、行号。"""

    target: str
    is_room: bool
    kind: str
    line: int


def room_of(path: Path) -> str:
    """catalog/table.py → catalog.table，catalog/__init__.py → catalog，__init__.py → __init__。"""
    parts = path.relative_to(FOLDER).with_suffix("").parts
    return ".".join(parts[:-1] if len(parts) > 1 and parts[-1] == "__init__" else parts)


SOURCES: Dict[str, Path] = {
    room_of(path): path for path in sorted(FOLDER.rglob("*.py")) if "tests" not in path.relative_to(FOLDER).parts
}
SOURCES["interfaces"] = FOLDER.parent / "interfaces.py"


def is_door(room: str) -> bool:
    """命令行可以拆成 cli.py 与 cli_*.py 或 cli/，都算门面。"""
    top = room.split(".")[0]
    return top == DOOR or top.startswith(DOOR + "_")


def imports_of(room: str, source: str) -> List[Import]:
    """一个文件里的全部 import（标准库与 __future__ 除外）。"""
    found: List[Import] = []

    def walk(node: ast.AST, kind: str) -> None:
        for child in ast.iter_child_nodes(node):
            inner = kind
            if isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)):
                inner = "function"
            elif isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
                inner = "type"
            for name in _modules(room, child):
                target, is_room = _classify(name)
                if target and target != room:
                    found.append(Import(target, is_room, inner, child.lineno))  # type: ignore[attr-defined]
            walk(child, inner)

    walk(ast.parse(source), "module")
    return found


def _modules(room: str, node: ast.AST) -> Iterator[str]:
    """一条 import 语句涉及的模块全名；`from . import a, b` 是两个模块。"""
    if isinstance(node, ast.Import):
        yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
        base = node.module or ""
        if node.level:
            here = ["algorithm"] if room == "interfaces" else [*PACKAGE.split("."), *room.split(".")[:-1]]
            if SOURCES.get(room, Path()).name == "__init__.py" and room != "__init__":
                here = [*PACKAGE.split("."), *room.split(".")]
            here = here[: len(here) - node.level + 1]
            base = ".".join([*here, base] if base else here)
        for alias in node.names:
            full = f"{base}.{alias.name}"
            yield full if _classify(full)[0] in SOURCES and full.removeprefix(PACKAGE + ".") in SOURCES else base


def _classify(name: str) -> Tuple[str, bool]:
    """模块全名 → (房间, True) 或 (第三方包, False)；标准库为 ("", False)。"""
    if name == "algorithm.interfaces":
        return "interfaces", True
    if name == PACKAGE:
        return "__init__", True
    if name.startswith(PACKAGE + "."):
        return name.removeprefix(PACKAGE + "."), True
    top = name.split(".")[0]
    return ("", False) if top in sys.stdlib_module_names else (top, False)


def complaints(room: str, source: str) -> List[str]:
    """这个文件里表上没有的箭头，一句一条。"""
    rooms, packages = (set(part.split()) for part in ROOMS.get(room, ("", "")))
    out = []
    for item in imports_of(room, source):
        where = f"{room} line {item.line}"
        if is_door(room):
            if not item.is_room and item.target not in DOOR_PACKAGES:
                out.append(f"{where}: the command line may not import {item.target}")
        elif not item.is_room:
            if item.target not in packages:
                out.append(f"{where}: package {item.target} is not allowed in this room")
        elif item.kind == "type":
            if item.target not in rooms and (room, item.target) not in TYPE_ONLY:
                out.append(f"{where}: new type-only arrow {room} -> {item.target}")
        elif (room, item.target) in LAZY:
            if item.kind != "function":
                out.append(f"{where}: arrow {room} -> {item.target} points back and must stay inside a function")
        elif item.target not in rooms:
            out.append(f"{where}: new arrow {room} -> {item.target}")
    return out


def test_every_room_is_in_the_table() -> None:
    unknown = [room for room in SOURCES if room not in ROOMS and not is_door(room)]
    assert unknown == [], "draw the new rooms into ROOMS"
    assert [room for room in ROOMS if room not in SOURCES] == [], "these rooms are gone: take them out of ROOMS"


@pytest.mark.parametrize("room", sorted(SOURCES))
def test_no_new_arrow(room: str) -> None:
    assert complaints(room, SOURCES[room].read_text(encoding="utf-8")) == []


@pytest.mark.parametrize("room", [room for room in ROOMS if room in SOURCES])
def test_no_stale_arrow(room: str) -> None:
    found = imports_of(room, SOURCES[room].read_text(encoding="utf-8"))
    used = {item.target for item in found if item.kind != "type"} - {b for a, b in LAZY if a == room}
    type_used = {item.target for item in found if item.kind == "type"}
    allowed = {name for part in ROOMS[room] for name in part.split()}
    assert allowed - used - type_used == set(), f"{room} no longer imports these: take them out of ROOMS"
    assert {b for a, b in TYPE_ONLY if a == room} <= type_used


def test_arrows_point_down() -> None:
    below: Set[str] = set()
    for room, (rooms, _) in ROOMS.items():
        assert set(rooms.split()) <= below, f"{room} imports a room that is drawn above it"
        below.add(room)


def test_nobody_imports_the_command_line() -> None:
    for room, path in SOURCES.items():
        if not is_door(room):
            targets = [item.target for item in imports_of(room, path.read_text(encoding="utf-8"))]
            assert not any(is_door(target) for target in targets), f"{room} imports the command line"


@pytest.mark.parametrize(
    ("room", "line", "complaint"),
    [
        ("metrics", "from .trainer import judge", "new arrow metrics -> trainer"),
        ("metrics", "from . import encoder", "new arrow metrics -> encoder"),
        ("metrics", "def f():\n    import algorithm.semantic_id.rq_vae", "new arrow metrics -> rq_vae"),
        ("metrics", "from algorithm.semantic_id import SemanticIDEncoder", "new arrow metrics -> __init__"),
        (
            "evaluation",
            "from algorithm.semantic_id.encoder import SemanticIDEncoder",
            "new arrow evaluation -> encoder",
        ),
        ("catalog.table", "from ..encoder import SemanticIDEncoder", "new arrow catalog.table -> encoder"),
        ("catalog", "from ..trainer import judge", "new arrow catalog -> trainer"),
        ("decoding.trie", "from ..catalog import Catalog", "new arrow decoding.trie -> catalog"),
        ("decoding.tokens", "import transformers", "package transformers is not allowed"),
        ("config", "class C:\n    def f(self):\n        import torch", "package torch is not allowed"),
        ("trainer", "import pandas as pd", "package pandas is not allowed"),
        ("codebook", "from rich import print", "package rich is not allowed"),
        ("vectors", "from .vectors_npy import NpySource", "must stay inside a function"),
        ("checks", "if TYPE_CHECKING:\n    from .encoder import x", "new type-only arrow checks -> encoder"),
        ("cli", "import pandas", "the command line may not import pandas"),
    ],
)
def test_this_test_notices_a_new_arrow(room: str, line: str, complaint: str) -> None:
    source = SOURCES[room].read_text(encoding="utf-8") if room in SOURCES else ""
    before, after = complaints(room, source), complaints(room, f"{source}\n{line}\n")
    assert len(after) == len(before) + 1
    assert complaint in after[-1]


def test_algorithm_stays_a_namespace_package() -> None:
    # 有了 __init__.py，同事装在别处的 algorithm.xxx 就再也 import 不到
    assert not (FOLDER.parent / "__init__.py").exists()


@pytest.mark.parametrize("room", sorted(SOURCES))
def test_nothing_can_load_a_pickle(room: str) -> None:
    for node in ast.walk(ast.parse(SOURCES[room].read_text(encoding="utf-8"))):
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            names = {alias.name for alias in node.names} | {getattr(node, "module", None) or ""}
            assert not {name.split(".")[0] for name in names} & PICKLES, f"{room} line {node.lineno}"
        elif isinstance(node, ast.Attribute) and ast.unparse(node) in ("torch.load", "torch.save"):
            pytest.fail(f"{room} line {node.lineno}: {ast.unparse(node)} goes through pickle; use safetensors")
        elif isinstance(node, ast.keyword) and node.arg == "allow_pickle":
            assert isinstance(node.value, ast.Constant), f"{room} line {node.lineno}"
            assert node.value.value is False, f"{room} line {node.lineno}"


def test_public_surface_is_small_and_every_name_resolves() -> None:
    assert len(package.__all__) <= MAX_PUBLIC_NAMES
    assert sorted(package.__all__) == list(package.__all__)
    assert set(package.__all__) == set(package._ROOMS), "__all__ and _ROOMS must list the same names"
    for name in package.__all__:
        assert getattr(package, name).__name__ == name
    with pytest.raises(AttributeError, match="no_such_name"):
        _ = package.no_such_name


@pytest.mark.parametrize("module", [PACKAGE, *([f"{PACKAGE}.{DOOR}"] if DOOR in SOURCES else [])])
def test_light_imports_stay_light(module: str) -> None:
    # 导入 torch 要一到三秒；`semid --help` 不该等它
    heavy = "{'torch', 'pyarrow', 'numpy', 'safetensors', 'huggingface_hub'}"
    code = f"import sys, {module}; print(sorted({heavy} & set(sys.modules)))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=FOLDER.parents[1])
    assert result.returncode == 0, result.stderr
    assert result.stdout.strip() == "[]"
