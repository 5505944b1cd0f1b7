"""二楼：物品表，即 item_id ↔ 语义 ID。只认 `interfaces` 里的协议，从不 import 模型。"""

from .decode import decode_codes_file
from .encoding.encode import encode_catalog
from .format.manifest import CatalogError
from .table import Catalog

__all__ = ["Catalog", "CatalogError", "decode_codes_file", "encode_catalog"]
