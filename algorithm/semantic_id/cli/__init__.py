"""命令 `semid` 的房间：一个命令一个文件。入口是 `main`。"""

from .app import main

__all__ = ["main"]
