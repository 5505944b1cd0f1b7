"""一个真的无头 Chromium，经 DevTools 协议的管道驱动：只用标准库，不需要驱动程序、端口与网络。

`--remote-debugging-pipe`：浏览器从描述符 3 读、往 4 写，一条消息一个 JSON，以 NUL 结尾。
"""

from __future__ import annotations

import base64
import fcntl
import json
import os
import select
import shutil
import signal
import tempfile
import time
from pathlib import Path
from typing import Any, Dict, List, Set

__all__ = ["Chromium", "find_chromium"]

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
FLAGS = (
    "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--hide-scrollbars",
    "--disable-background-networking", "--disable-component-update", "--disable-sync", "--disable-extensions",
    "--disable-dev-shm-usage", "--font-render-hinting=none", "--remote-debugging-pipe",
)  # fmt: skip


def find_chromium() -> str | None:
    """SEMID_CHROMIUM 指明的，或 PATH 上的；没有就是 None。"""
    return os.environ.get("SEMID_CHROMIUM") or next(filter(None, map(shutil.which, NAMES)), None)


class Chromium:
    """一个浏览器、一个标签页。

    Args:
        path: 可执行文件。
        timeout: 一次问答最多等几秒。
    """

    def __init__(self, path: str, timeout: float = 60.0):
        self.path, self.timeout = path, timeout
        self.errors: List[str] = []  # 控制台的错误与没接住的异常
        self.requests: List[str] = []  # 页面发出的请求，含 file: 与 data:
        self._events: Set[str] = set()
        self._buffer = b""
        self._next = 0
        self._session = ""

    def __enter__(self) -> Chromium:
        self.profile = tempfile.mkdtemp(prefix="semid-chromium-")
        to_read, self._writer = os.pipe()
        self._reader, to_write = os.pipe()
        # 先挪到高处：它们自己可能恰好是 3 或 4
        ends = [fcntl.fcntl(end, fcntl.F_DUPFD_CLOEXEC, 64) for end in (to_read, to_write)]
        null = os.open(os.devnull, os.O_RDWR)
        actions = [(os.POSIX_SPAWN_DUP2, null, fd) for fd in (0, 1, 2)]
        actions += [(os.POSIX_SPAWN_DUP2, ends[0], 3), (os.POSIX_SPAWN_DUP2, ends[1], 4)]
        command = [self.path, *FLAGS, f"--user-data-dir={self.profile}", "about:blank"]
        self.pid = os.posix_spawn(self.path, command, dict(os.environ), file_actions=actions, setpgroup=0)
        for end in (to_read, to_write, null, *ends):
            os.close(end)
        try:
            target = self.send("Target.createTarget", url="about:blank")["targetId"]
            attached = self.send("Target.attachToTarget", targetId=target, flatten=True)
            self._session = attached["sessionId"]
            for domain in ("Page", "Runtime", "Log", "Network"):
                self.send(f"{domain}.enable")
            # 拦在出口：有请求就记下；真连出去也会失败，但那已经太晚
            self.send(
                "Network.emulateNetworkConditions", offline=True, latency=0, downloadThroughput=0, uploadThroughput=0
            )
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._writer)
        os.close(self._reader)
        try:
            os.killpg(self.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
        os.waitpid(self.pid, 0)
        for _ in range(50):  # 子进程可能还在收尾，目录要过一会儿才删得干净
            shutil.rmtree(self.profile, ignore_errors=True)
            if not os.path.exists(self.profile):
                return
            time.sleep(0.02)

    def send(self, method: str, **params: Any) -> Dict[str, Any]:
        """发一条命令，等它的回答；途中的事件记下来。"""
        self._next += 1
        message: Dict[str, Any] = {"id": self._next, "method": method, "params": params}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._writer, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._receive()
            if answer.get("id") == message["id"]:
                if "error" in answer:
                    raise RuntimeError(f"{method}: {answer['error']}")
                return answer["result"]
            self._note(answer)

    def _receive(self) -> Dict[str, Any]:
        deadline = time.monotonic() + self.timeout
        while b"\0" not in self._buffer:
            if not select.select([self._reader], [], [], max(0.0, deadline - time.monotonic()))[0]:
                raise TimeoutError(f"Chromium did not answer within {self.timeout} s")
            data = os.read(self._reader, 1 << 20)
            if not data:
                raise RuntimeError("Chromium closed the pipe; it probably crashed at start")
            self._buffer += data
        head, _, self._buffer = self._buffer.partition(b"\0")
        return json.loads(head)

    def _note(self, event: Dict[str, Any]) -> None:
        method, params = event.get("method"), event.get("params", {})
        self._events.add(str(method))
        if method == "Runtime.exceptionThrown":
            details = params["exceptionDetails"]
            self.errors.append(details.get("exception", {}).get("description") or details.get("text", ""))
        elif method == "Runtime.consoleAPICalled" and params["type"] in ("error", "assert", "warning"):
            self.errors.append(json.dumps(params["args"]))
        elif method == "Log.entryAdded" and params["entry"]["level"] in ("error", "warning"):
            self.errors.append(params["entry"]["text"])
        elif method == "Network.requestWillBeSent":
            self.requests.append(params["request"]["url"])

    def evaluate(self, expression: str) -> Any:
        """在页面里求值，等它的 Promise。"""
        answer = self.send("Runtime.evaluate", expression=expression, awaitPromise=True, returnByValue=True)
        if "exceptionDetails" in answer:
            raise RuntimeError(answer["exceptionDetails"].get("exception", {}).get("description", str(answer)))
        return answer["result"].get("value")

    def wait_for(self, expression: str) -> Any:
        """等页面里的表达式为真，逐帧看；返回它的值。"""
        body = "const v = (" + expression + "); if (v) done(v); else requestAnimationFrame(look);"
        return self.evaluate(f"new Promise((done) => {{ const look = () => {{ {body} }}; look(); }})")

    def open(
        self, page: Path, width: int = 1440, height: int = 900, *, dark: bool = False, mobile: bool = False
    ) -> float:
        """打开磁盘上的一页，等它画完；返回页面自己量的毫秒。"""
        self.resize(width, height, mobile=mobile)
        features = [{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}]
        self.send("Emulation.setEmulatedMedia", features=features)
        self.errors, self.requests, self._events = [], [], set()
        self.send("Page.navigate", url=page.resolve().as_uri())
        while "Page.loadEventFired" not in self._events:
            self._note(self._receive())
        ready = self.wait_for("document.documentElement.dataset.ready || !document.getElementById('trouble').hidden")
        if ready is True:
            raise RuntimeError(f"the page did not start: {self.errors}")
        return float(ready)

    def resize(self, width: int, height: int, *, mobile: bool = False) -> None:
        """视口。"""
        scale = 2 if mobile else 1
        self.send(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=scale, mobile=mobile
        )

    def click(self, x: float, y: float) -> None:
        """真的鼠标按下再抬起，视口坐标。"""
        for kind in ("mouseMoved", "mousePressed", "mouseReleased"):
            self.send("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=1)

    def click_on(self, selector: str) -> None:
        """滚到看得见再点它的中心。"""
        x, y = self.evaluate(
            f"(() => {{ const e = document.querySelector({json.dumps(selector)});"
            " e.scrollIntoView({block: 'center'}); const b = e.getBoundingClientRect();"
            " return [b.x + b.width / 2, b.y + b.height / 2]; })()"
        )
        self.click(x, y)

    def type(self, text: str) -> None:
        """往有焦点的地方打字。"""
        self.send("Input.insertText", text=text)

    def screenshot(self, path: Path, *, full: bool = True) -> None:
        """整页截图，供人看。"""
        path.write_bytes(base64.b64decode(self.send("Page.captureScreenshot", captureBeyondViewport=full)["data"]))

    def print_pdf(self) -> bytes:
        """打印成 PDF。"""
        return base64.b64decode(self.send("Page.printToPDF", printBackground=False, preferCSSPageSize=True)["data"])
