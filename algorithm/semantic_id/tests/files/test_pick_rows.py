"""从流里挑行：与直接下标一致，与分块无关，只在要求的范围里读。"""

from __future__ import annotations

import numpy as np
import pytest

from algorithm.semantic_id.files.source import pick_rows
from algorithm.semantic_id.files.vectors import open_vectors

X = np.arange(80, dtype=np.float32).reshape(20, 4)


@pytest.mark.parametrize("block_rows", [1, 7, 20, 100])
@pytest.mark.parametrize("rows", [[], [0], [19], [0, 6, 7, 13, 19], list(range(20))])
def test_agrees_with_indexing(block_rows, rows):
    parts = list(pick_rows(open_vectors(X), np.array(rows, dtype=np.int64), block_rows))
    assert all(len(numbers) == len(vectors) > 0 for numbers, vectors in parts)
    assert [n for numbers, _ in parts for n in numbers.tolist()] == rows
    assert [v for _, vectors in parts for v in vectors.tolist()] == X[rows].tolist()


def test_reads_the_asked_range_only():
    bad = X.copy()
    bad[15] = np.nan  # 读到它就报错
    (part,) = pick_rows(open_vectors(bad), np.array([11, 14]), 5, 10, 15)
    assert part[0].tolist() == [11, 14]
    assert part[1].tolist() == X[[11, 14]].tolist()
    with pytest.raises(ValueError, match="row 15 has nan"):
        list(pick_rows(open_vectors(bad), np.array([11, 14]), 5, 10))
