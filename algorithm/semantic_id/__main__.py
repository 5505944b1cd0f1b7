"""`python -m algorithm.semantic_id` 等同于命令 `semid`。"""

import sys

from .cli import main

sys.exit(main())
