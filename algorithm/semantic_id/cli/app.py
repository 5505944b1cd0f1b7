"""命令 `semid`：解析参数 → 调一个函数 → 打印。

一个命令一个文件，住在 `models/`、`catalogs/`、`quality/` 里，放进去就会被找到。一个命令文件里有：
`run(session, …)`，签名就是命令的参数，返回可写成 JSON 的字典；`show(result, page)`，怎样打印它；以及可选的
`exit_code(result)`、`GO_ON`（被打断之后怎样接着做）与 `Parser`（自己的解析）。说明写在 `text/` 的两个文件里。

退出码：0 成功；2 用户能改正的错误，stderr 上恰好一行 `error: …`；130 被 Ctrl-C、143 被 SIGTERM 打断；1 程序自身的缺陷
（带回溯）。顶部只 import typer、rich 与标准库：`semid --help` 一秒内回答；torch 在命令真正执行时才加载。
"""

from __future__ import annotations

import inspect
import logging
import os
import pkgutil
import sys
from importlib import import_module
from types import ModuleType
from typing import Annotated, Any, Callable, Iterator, List, Sequence, Tuple

import typer
from typer.core import TyperCommand

from .. import __version__
from . import catalogs, models, quality
from .errors import report
from .interrupts import Stopped, terminable
from .language import name_panels, take_lang, translate
from .notes import notes
from .options import Json, Lang, Quiet, Session
from .page import Page, json_line
from .text import TEXTS

__all__ = ["command_files", "main", "new_group"]

# 命令住的房间，依帮助里的次序
_ROOMS = (models, catalogs, quality)


def command_files() -> Iterator[Tuple[str, str, ModuleType]]:
    """找出每个命令文件：(命令名, 房间名, 模块)。有 `run` 的就是命令；与关键字同名的文件结尾多一个下划线。"""
    for room in _ROOMS:
        for found in pkgutil.iter_modules(room.__path__):
            module = import_module(f"{room.__name__}.{found.name}")
            if hasattr(module, "run"):
                yield found.name.rstrip("_"), room.__name__.rpartition(".")[2], module


def new_group(lang: str) -> Any:
    """全部命令组成的 click 命令组，说明是所选语言。

    Args:
        lang: zh 或 en。
    """
    app = typer.Typer(name="semid", add_completion=False, pretty_exceptions_enable=False)
    app.callback()(_root)
    for name, room, module in command_files():
        panel = TEXTS[lang][f"semid.{room}"]
        parser = getattr(module, "Parser", TyperCommand)
        app.command(name, cls=parser, rich_help_panel=panel)(_command(name, module))
    group = typer.main.get_command(app)
    translate(group, lang)
    name_panels(lang)
    return group


def main(argv: Sequence[str] | None = None) -> int:
    """入口：返回退出码，绝不让用户的错误变成回溯。

    Args:
        argv: 参数，不含程序名；None 取 `sys.argv`。
    """
    # OpenMP 默认让空等的线程自旋；机器忙时两个线程反而比一个慢十几倍。必须在 torch 加载之前设好；用户自己设的优先
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")  # 终端写不出中文时给问号，而不是崩溃
    # 训练器的提示会出现在结果里；不加处理器的话，logging 会自己把它们写到 stderr，--quiet 就不安静了
    logging.getLogger("algorithm.semantic_id").addHandler(logging.NullHandler())
    try:
        with terminable():
            return _dispatch(list(sys.argv[1:] if argv is None else argv))
    except BrokenPipeError:
        # 读者（如 head）先走了：不是错误，但退出时还会再刷一次 stdout
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except (Exception, KeyboardInterrupt) as error:
        return report(error)


def _dispatch(argv: List[str]) -> int:
    lang, arguments = take_lang(argv)
    group = new_group(lang)
    code = group.main(arguments or ["--help"], prog_name="semid", standalone_mode=False, obj=lang)
    return code if isinstance(code, int) else 0


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"semid {__version__}")
        raise typer.Exit


def _root(
    lang: Lang = "zh",
    version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True)] = False,
) -> None:
    # 两个参数都在别处生效（见 take_lang 与 _version）；放在这里是为了出现在帮助里
    pass


def _command(name: str, module: ModuleType) -> Callable[..., int]:
    """命令文件 → typer 认识的函数：参数是 `run` 的，再加上每个命令都有的 --json、--quiet、--lang。"""

    def command(context: typer.Context, json_: bool, quiet: bool, lang: str, **arguments: Any) -> int:
        session = Session(context.obj, progress=not (json_ or quiet))
        try:
            with notes(quiet):
                result = module.run(session, **arguments)
            if json_:
                print(json_line(result))
            elif not quiet:
                module.show(result, Page(session.lang))
        except KeyboardInterrupt as stop:  # 在这里拦下：click 会把它变成别的，也不知道是哪个命令
            raise Stopped(stop, f"run `semid {name}` again{getattr(module, 'GO_ON', '')}") from None
        return module.exit_code(result) if hasattr(module, "exit_code") else 0

    own = list(inspect.signature(module.run, eval_str=True).parameters.values())[1:]
    kind = inspect.Parameter.KEYWORD_ONLY
    shared = [
        inspect.Parameter("json_", kind, default=False, annotation=Json),
        inspect.Parameter("quiet", kind, default=False, annotation=Quiet),
        inspect.Parameter("lang", kind, default="zh", annotation=Lang),
    ]
    context = inspect.Parameter("context", kind, annotation=typer.Context)
    parameters = [context, *(parameter.replace(kind=kind) for parameter in own), *shared]
    command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    command.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return command


if __name__ == "__main__":
    sys.exit(main())
