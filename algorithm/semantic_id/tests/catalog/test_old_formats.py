"""每个写过的版本都读得懂：`old_formats/` 里每个版本一个小目录，由当时的代码写成。

版本 1 是 12 个物品、没有去重；版本 2、3 是同样的物品、去重位、两代，i03 与 i08 已退役。
"""

from __future__ import annotations

import logging
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from algorithm.semantic_id.catalog import Catalog, CatalogError
from algorithm.semantic_id.catalog.changes.retired import read_retired
from algorithm.semantic_id.catalog.changes.update import update_catalog
from algorithm.semantic_id.cli import app as cli
from algorithm.semantic_id.decoding import PrefixTrie
from algorithm.semantic_id.tests.catalog.test_update import MODEL, source_of

FOLDERS = Path(__file__).with_name("old_formats")
ITEMS = [f"i{k:02d}" for k in range(12)]
CODES = {item: (k % 2, k % 2, k % 5) for k, item in enumerate(ITEMS)}
SUFFIX = {"i10": 1, "i11": 1}  # i00 与 i10、i01 与 i11 同码；其余独占
IDS = {item: (*CODES[item], SUFFIX.get(item, 0)) for item in ITEMS if item not in ("i03", "i08")}


def expected(version):
    return CODES if version == 1 else IDS


@pytest.mark.parametrize("version", [1, 2, 3])
def test_every_version_gives_its_answers(version, caplog):
    caplog.set_level(logging.WARNING)
    want = expected(version)
    catalog = Catalog.open(FOLDERS / f"version_{version}")
    assert [record.message for record in caplog.records] == ([] if version == 3 else [catalog.format_note])
    if version < 3:
        assert f"has the old format {version}: no checksum of its MANIFEST.json" in catalog.format_note
        assert "writes format 3" in catalog.format_note
    catalog.verify()
    assert {item: tuple(row) for item, row in zip(want, catalog.find(list(want)).tolist(), strict=True)} == want
    assert (catalog.find(["nope"]) == -1).all()
    assert sorted(catalog.read().column("item_id").to_pylist()) == sorted(want)
    under = catalog.items_under([[0, 0], [1, 1]]).to_pylist()
    assert [sorted(items) for items in under] == [sorted(i for i in want if want[i][:2] == p) for p in ((0, 0), (1, 1))]
    assert catalog.items_of(list(want.values())).to_pylist()[0] == "i00"
    assert PrefixTrie.build(catalog).num_items == len(want)
    assert sorted(read_retired(catalog).items.to_pylist()) == ([] if version == 1 else ["i03", "i08"])


@pytest.mark.parametrize("version", [1, 2, 3])
def test_an_update_of_an_old_catalog_writes_format_3_and_changes_no_id(version, tmp_path):
    folder = tmp_path / "cat"
    shutil.copytree(FOLDERS / f"version_{version}", folder)
    update_catalog(MODEL, folder, source_of(tmp_path, {"new": [0, 0, 31]}), retire=pa.array(["i05"]))
    after = Catalog.open(folder)
    assert (after.manifest["format_version"], after.format_note) == (3, None)
    want = {item: code for item, code in expected(version).items() if item != "i05"}
    np.testing.assert_array_equal(after.find(list(want)), list(want.values()))
    assert after.find(["new"])[0, 2] == 31
    after.verify()


def test_fields_this_version_does_not_know_are_kept(tmp_path):
    from algorithm.semantic_id.tests.catalog.test_catalog_read import edit_manifest

    folder = tmp_path / "cat"
    shutil.copytree(FOLDERS / "version_3", folder)
    edit_manifest(folder, lineage={"parent": "abc"}, later=[1, 2])
    update_catalog(MODEL, folder, None, retire=pa.array(["i05"]))
    manifest = Catalog.open(folder).manifest
    assert (manifest["lineage"], manifest["later"]) == ({"parent": "abc"}, [1, 2])


def test_a_whole_index_of_version_2_is_checked_before_its_first_use(tmp_path):
    folder = tmp_path / "cat"
    shutil.copytree(FOLDERS / "version_2", folder)
    path = folder / "index-00001-codes.npy"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    with pytest.raises(CatalogError, match=r"index-00001-codes\.npy: the lookup index of the catalog is damaged"):
        Catalog.open(folder).find(["i00"])


def test_the_command_line_says_so_and_goes_on(capsys):
    assert cli.main(["lookup", str(FOLDERS / "version_2"), "--item", "i00", "--json"]) == 0
    out, err = capsys.readouterr()
    assert '"id": [\n' in out or '"id": [0' in out
    assert err.startswith("note: catalog ")
    assert err.count("\n") == 1
    assert cli.main(["lookup", str(FOLDERS / "version_3"), "--item", "i00", "--json"]) == 0
    assert capsys.readouterr().err == ""
