"""评估什么：一份请求进来，打开并验收过的全部输入出去；行数与编号在这里对上，到这里为止还没有花时间。

只认协议：模型与物品表由调用者（命令行）给出打开它们的函数，这里不 import 它们。
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Callable, NamedTuple, Protocol, Tuple

import numpy as np
import pyarrow as pa

from algorithm.interfaces import SemanticIDModel

from ..behaviour.reader import HeldOut, read_held_out
from ..errors import InputError
from ..files.source import VectorSource
from ..files.vectors import open_vectors
from ..metrics.additive_means import MAX_TABLE_BYTES
from .given_codes import GivenCodes, read_codes
from .inputs import ItemFacts, read_item_facts, source_ids

__all__ = ["Inputs", "ItemCatalog", "Request", "open_inputs"]


class ItemCatalog(Protocol):
    """评估对物品表的全部要求：说得出是谁写的，按物品编号查得到完整的 ID。"""

    @property
    def folder(self) -> Path:
        """物品表的目录，写进错误信息。"""

    @property
    def fingerprint(self) -> str:
        """写它的模型的指纹。"""

    @property
    def codebook_sizes(self) -> Tuple[int, ...]:
        """各层码本大小 (K_1, …, K_L)。"""

    def find(self, item_ids: pa.Array) -> np.ndarray:
        """(n,) 物品编号 → (n, L[+1]) 编码与去重位；没有的整行是 −1。"""


@dataclass(frozen=True)
class Request:
    """评估什么。

    Attributes:
        features: 物品特征。
        load_model: 打开模型的函数；评别人的编码时为 None。
        codes: 别人的编码，(N, L) 整数 `.npy` 或含 l1…lL 的 Parquet；评模型时为 None。
        codebook_sizes: 与 `codes` 一起给的各层大小；None 由编码的最大值推出，结果里会说。
        items: 物品信息（title 与标签列）；None 时若 `features` 是一个 Parquet 文件就用它自己。
        labels: 标签列的名字。
        interactions: 用户行为。
        pairs_of: 用每人的哪一对，见 `behaviour.reader.PAIRS_OF`；没给行为时不起作用。
        open_catalog: 打开物品表的函数，量去重之后的冲突；None 则不量。
        unseen: 没见过的物品的特征，量泛化。
        id_column: 各文件的物品编号列。
        vector_column: 特征的向量列。
    """

    features: Path
    load_model: Callable[[], SemanticIDModel] | None = None
    codes: Path | None = None
    codebook_sizes: Tuple[int, ...] | None = None
    items: Path | None = None
    labels: str | None = None
    interactions: Path | None = None
    pairs_of: str = "valid"
    open_catalog: Callable[[], ItemCatalog] | None = None
    unseen: Path | None = None
    id_column: str = "item_id"
    vector_column: str = "embedding"

    def __post_init__(self) -> None:
        if (self.load_model is None) == (self.codes is None):
            raise InputError("give a MODEL folder or --codes FILE, exactly one of them")
        if self.codes is None and self.codebook_sizes is not None:
            raise InputError("--codebook-sizes is only for --codes; a model knows its sizes")
        if self.unseen is not None and self.load_model is None:
            raise InputError("--unseen needs a MODEL: codes given by --codes say nothing about new items")


class Inputs(NamedTuple):
    """打开并验收过的全部输入。

    Attributes:
        source: 物品特征。
        model: 模型；评别人的编码时为 None。
        codes: 别人的编码；评模型时为 None。
        sizes: 各层码本大小。
        sizes_inferred: 大小是由编码的最大值推出来的；真正的码本可能更大。
        facts: 物品信息。
        interactions: 用户行为。
        catalog: 物品表。
        unseen: 没见过的物品的特征。
    """

    source: VectorSource
    model: SemanticIDModel | None
    codes: GivenCodes | None
    sizes: Tuple[int, ...]
    sizes_inferred: bool
    facts: ItemFacts | None
    interactions: HeldOut | None
    catalog: ItemCatalog | None
    unseen: VectorSource | None


def open_inputs(request: Request) -> Inputs:
    """打开并验收每个文件。

    Raises:
        FileNotFoundError, TypeError, ValueError: 哪个文件、哪里不对、怎么改。
    """
    model = None if request.load_model is None else request.load_model()
    id_column, dim = request.id_column, None if model is None else model.embedding_dim
    columns = {"id_column": id_column, "vector_column": request.vector_column}
    source = open_vectors(request.features, expected_dim=dim, **columns)
    codes = None if request.codes is None else read_codes(request.codes, source, id_column)
    sizes = _sizes(model, None if codes is None else codes.codes, request.codebook_sizes, source.dim)
    facts = _facts(request, source)
    behaviour = None
    if request.interactions is not None:
        ids = source_ids(source)
        behaviour = read_held_out(request.interactions, ids, pairs_of=request.pairs_of, id_column=id_column)
    catalog = None if request.open_catalog is None else request.open_catalog()
    if catalog is not None:
        _check_catalog(catalog, model, sizes)
    unseen = None if request.unseen is None else open_vectors(request.unseen, expected_dim=dim, **columns)
    inferred = model is None and request.codebook_sizes is None
    return Inputs(source, model, codes, sizes, inferred, facts, behaviour, catalog, unseen)


def _facts(request: Request, source: VectorSource) -> ItemFacts | None:
    """物品信息；没有另给时，特征若是一个 Parquet 文件就用它自己，行本来就对着。"""
    own = request.features.suffix == ".parquet" and request.features.is_file()
    if request.items is None and not own:
        if request.labels is not None:
            raise InputError("--labels needs --items FILE, the Parquet file that has the column")
        return None
    items = request.items or request.features
    facts = read_item_facts(items, source, label_column=request.labels, id_column=request.id_column)
    return facts if request.items is not None else facts._replace(matched_by="self")


def _sizes(
    model: SemanticIDModel | None, codes: np.ndarray | None, given: Tuple[int, ...] | None, dim: int
) -> Tuple[int, ...]:
    """各层码本大小：模型自己知道；别人的编码以给的为准，没给就由最大值推出。"""
    if model is not None:
        return tuple(int(size) for size in model.codebook_sizes)
    assert codes is not None
    needed = tuple(int(top) + 1 for top in codes.max(axis=0))
    if sum(needed) * dim * 8 > MAX_TABLE_BYTES:
        raise InputError(
            f"--codes has a code as large as {max(needed) - 1}, too many codewords for vectors of width "
            f"{dim}; renumber the codes of each level from 0"
        )
    if given is None:
        return needed
    if len(given) != len(needed) or any(size < need for size, need in zip(given, needed, strict=True)):
        raise InputError(
            f"--codebook-sizes {','.join(map(str, given))} does not fit the codes, which need at least "
            f"{','.join(map(str, needed))}"
        )
    return given


def _check_catalog(catalog: ItemCatalog, model: SemanticIDModel | None, sizes: Tuple[int, ...]) -> None:
    """物品表须是这个模型写的；只有编码时至少层数要相同。"""
    if model is not None and catalog.fingerprint != model.fingerprint():
        raise InputError(
            f"catalog {str(catalog.folder)!r} was written by another model (fingerprint {catalog.fingerprint[:12]}…, "
            f"this one is {model.fingerprint()[:12]}…); use the model that wrote it"
        )
    if len(catalog.codebook_sizes) != len(sizes):
        raise InputError(
            f"catalog {str(catalog.folder)!r} has {len(catalog.codebook_sizes)} levels, but the codes have {len(sizes)}"
        )
