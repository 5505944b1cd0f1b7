"""读物品表：不是、没写完、被改过的一律拒绝。"""

from __future__ import annotations

import shutil

import numpy as np
import pyarrow.parquet as pq
import pytest

from algorithm.semantic_id.catalog import Catalog, CatalogError, encode_catalog
from algorithm.semantic_id.catalog.format import parts
from algorithm.semantic_id.files.sealed import seal, unseal
from algorithm.semantic_id.files.vectors import open_vectors
from algorithm.semantic_id.tests.catalog.test_catalog import X, write
from algorithm.semantic_id.tests.fake_model import FakeModel


def edit_manifest(folder, **changes):
    path = folder / "MANIFEST.json"
    manifest = unseal(path.read_bytes(), path.name)[0]
    path.write_bytes(seal({**manifest, **changes}))  # 伪造得自洽：校验和也重新算过


def test_open_refuses_what_is_no_catalog(tmp_path):
    with pytest.raises(FileNotFoundError, match="does not exist"):
        Catalog.open(tmp_path / "nowhere")
    with pytest.raises(CatalogError, match="has no MANIFEST"):
        Catalog.open(tmp_path)
    (tmp_path / "MANIFEST.json").write_text('{"format": ')
    with pytest.raises(CatalogError, match="not valid JSON"):
        Catalog.open(tmp_path)
    for text, complaint in (("[1]", "must hold a JSON object"), ("{}", "not a catalog"), ('{"format": "x"}', "not a")):
        (tmp_path / "MANIFEST.json").write_text(text)
        with pytest.raises(CatalogError, match=complaint):
            Catalog.open(tmp_path)


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"format_version": 4}, "format_version=4; this semid reads 1, 2, 3"),
        ({"format_version": 2}, "its checksum is gone"),
        ({"needs": ["segments"]}, "needs 'segments', which this semid does not know; upgrade semid"),
        ({"next_part": 0}, "has next_part=0, which its parts contradict"),
        ({"generation": True}, "no valid 'generation'"),
        ({"max_suffix": 1 << 31}, "max_suffix=2147483648 is out of range"),
        ({"index": {}}, r"lists an index of \[\]"),
        ({"num_items": 12}, "says num_items=12, but its parts have 11 rows"),
        ({"num_items": "11"}, "no valid 'num_items'"),
        ({"codebook_sizes": [4, "3"]}, "codebook_sizes must be an int, got str"),
        ({"codebook_sizes": [4, 1 << 40]}, "codebook_sizes=1099511627776 is out of range"),
        ({"codebook_sizes": [4, 3, 2]}, "contradict its codebook_sizes"),
        ({"parts": ["part-00000.parquet"]}, "malformed part 'part-00000"),
        ({"parts": [{"name": "../../etc/passwd", "rows": 11, "bytes": 1, "sha256": ""}]}, "parts must be plain files"),
        ({"parts": [{"name": "/part-00000.parquet", "rows": 11, "bytes": 1, "sha256": ""}]}, "must be plain files"),
        ({"parts": [{"name": "part-00000.parquet\n", "rows": 11, "bytes": 1, "sha256": ""}]}, "must be plain files"),
        ({"parts": [{"name": "part-00009.parquet", "rows": 11, "bytes": 1, "sha256": ""}]}, "lacks 'part-00009"),
    ],
)
def test_manifest_doors(changes, text, tmp_path):
    write(tmp_path / "cat")
    edit_manifest(tmp_path / "cat", **changes)
    with pytest.raises(CatalogError, match=text):
        Catalog.open(tmp_path / "cat")


def test_a_part_that_links_out_of_the_folder_is_refused(tmp_path):
    write(tmp_path / "cat")
    part = tmp_path / "cat" / "part-00000.parquet"
    shutil.move(part, tmp_path / "outside.parquet")
    part.symlink_to(tmp_path / "outside.parquet")
    with pytest.raises(CatalogError, match="must be plain files"):
        Catalog.open(tmp_path / "cat")


@pytest.mark.parametrize("damage", ["flip", "cut", "grow"])
def test_any_change_of_a_part_is_noticed(damage, tmp_path):
    write(tmp_path / "cat", rows_per_part=4)
    part = tmp_path / "cat" / "part-00001.parquet"
    data = bytearray(part.read_bytes())
    data[len(data) // 2] ^= damage == "flip"
    part.write_bytes(data[:-1] if damage == "cut" else data + b"x" if damage == "grow" else data)
    tables = Catalog.open(tmp_path / "cat").tables()
    assert next(tables).num_rows == 4
    with pytest.raises(CatalogError, match=r"part-00001\.parquet does not match its SHA-256"):
        next(tables)


def test_page_checksums_are_written_for_other_readers(tmp_path):
    # 别的程序不看我们的清单；页校验和让它们也能发现坏页
    x = np.tile(X, (3000, 1))
    write(tmp_path / "cat", features=x)
    part = tmp_path / "cat" / "part-00000.parquet"
    column = pq.ParquetFile(part).metadata.row_group(0).column(0)
    data = bytearray(part.read_bytes())
    data[column.data_page_offset + column.total_compressed_size // 2] ^= 1
    part.write_bytes(data)
    with pytest.raises(OSError, match=r"(?i)crc"):
        pq.read_table(part, columns=["item_id"], page_checksum_verification=True)


def test_a_consistent_forgery_with_codes_out_of_range_is_refused(tmp_path):
    write(tmp_path / "cat")
    edit_manifest(tmp_path / "cat", codebook_sizes=[3, 3])
    with pytest.raises(CatalogError, match=r"row 3 has L1 code 3; codes must be in \[0, 3\)"):
        Catalog.open(tmp_path / "cat").read()


def test_more_than_nine_levels_keep_their_order(tmp_path):
    sizes = tuple(range(2, 14))
    x = np.stack([np.arange(12) % 2 + i * 0 for i in range(12)], axis=1).astype(np.float32) * np.arange(12)
    encode_catalog(FakeModel(sizes, 12), open_vectors(x), tmp_path / "cat")
    got = Catalog.open(tmp_path / "cat").read()
    assert got.column_names == ["item_id", *[f"l{i}" for i in range(1, 13)]]
    np.testing.assert_array_equal(parts.codes_of(got)[1], np.arange(12))
