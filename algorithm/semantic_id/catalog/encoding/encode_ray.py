"""在 Ray 上跑编码的两个映射：几个 actor 各持一份模型，一次领一个分片；写出的文件与本机逐字节相同。

只在这里导入 ray（附加依赖 `semid[ray]`）。各节点要装同样版本的本包，来源与输出都在大家看得到的文件系统上；GPU 节点各按
自己的设备算，候选按 float64 定义裁决，所以 ID 相同。

失败怎样处理：actor 死了（被杀、内存不够、机器没了）就换一个新的重领这个分片，同一个分片至多 `max_tries` 次；数据有错
（ValueError、TypeError）重试也没用，立刻抛出。无论哪种，封存都不会发生，也就没有清单。
"""

from __future__ import annotations

from typing import Any, Callable, Dict, Iterator, List, Sequence, Tuple

from algorithm.interfaces import SemanticIDModel

from ...errors import InputError
from ..format.manifest import CatalogError
from .encode import Engine

__all__ = ["RayEngine"]

_STORE_BYTES = 100 << 20  # 传的只有路径与行号，对象仓库用不了多少；默认会占三成内存


class _Worker:
    """一个 actor：模型只加载一次。"""

    def __init__(self, load_model: Callable[[], SemanticIDModel]) -> None:
        self._model = load_model()

    def run(self, function: Callable[..., None], *job: Any) -> None:
        """做一个任务。"""
        function(self._model, *job)


class RayEngine(Engine):
    """把任务分给 Ray 的 actor。

    Args:
        load_model: 在 actor 里调用一次，给出模型；须能被 Ray 送到别的节点，例如 `functools.partial`。
        address: 集群的地址；None 则在本机起一个（已经 `ray.init` 过就用现成的）。
        num_actors: 几个 actor；None 则每个 CPU（要 GPU 时每块 GPU）一个。
        num_gpus: 每个 actor 几块 GPU。
        max_tries: 一个任务至多试几次。

    Raises:
        ImportError: 没有装 ray。
    """

    def __init__(
        self,
        load_model: Callable[[], SemanticIDModel],
        *,
        address: str | None = None,
        num_actors: int | None = None,
        num_gpus: float = 0,
        max_tries: int = 3,
    ) -> None:
        try:
            import ray
        except ImportError:
            raise ImportError("--engine ray needs Ray; install it with: pip install 'semid[ray]'") from None
        if num_actors is not None and num_actors < 1:
            raise InputError(f"num_actors={num_actors} is out of range; use an int >= 1 or None")
        self._ray, self._load_model = ray, load_model
        self._address, self._num_actors, self._num_gpus, self._max_tries = address, num_actors, num_gpus, max_tries
        self._actors: List[Any] = []
        self._started = False

    def map(self, function: Callable[..., None], jobs: Sequence[Tuple[Any, ...]]) -> Iterator[int]:
        """跑完全部任务，逐个给出完成的任务序号；次序不定。

        Raises:
            ValueError, TypeError: 任务自己抛出的，原样。
            CatalogError: 一个任务试了 `max_tries` 次还不成。
        """
        if not jobs:
            return
        ray = self._ray
        if not ray.is_initialized():
            self._start()
            self._started = True
        while len(self._actors) < min(self._count(), len(jobs)):
            self._actors.append(self._new_actor())
        # 来源只送一次；在本机内存里的大数组也不会随每个任务再抄一遍
        source = ray.put(jobs[0][0])
        yield from self._share_out(function, [(source, *job[1:]) for job in jobs])

    def close(self) -> None:
        """停掉 actor；Ray 是我们起的就一并停掉。"""
        for actor in self._actors:
            self._ray.kill(actor)
        self._actors = []
        if self._started:
            self._ray.shutdown()
            self._started = False

    def _new_actor(self) -> Any:
        """一个新的 actor，加载模型要几秒，所以用到 `close` 为止。"""
        kind = self._ray.remote(_Worker)
        cpus = 0 if self._num_gpus else 1
        return kind.options(num_cpus=cpus, num_gpus=self._num_gpus, max_restarts=0).remote(self._load_model)

    def _start(self) -> None:
        """连上集群，或在本机起一个小的。"""
        quiet: Dict[str, Any] = {"log_to_driver": False, "logging_level": "ERROR"}
        if self._address is not None:
            self._ray.init(address=self._address, **quiet)
        else:
            self._ray.init(address="local", object_store_memory=_STORE_BYTES, include_dashboard=False, **quiet)

    def _count(self) -> int:
        """几个 actor。"""
        if self._num_actors is not None:
            return self._num_actors
        have = self._ray.cluster_resources()
        return max(1, int(have.get("GPU", 0) / self._num_gpus if self._num_gpus else have.get("CPU", 1)))

    def _share_out(self, function: Callable[..., None], jobs: Sequence[Tuple[Any, ...]]) -> Iterator[int]:
        """一个 actor 一次一个任务；死了就换新的，任务回到队首。"""
        ray, actors = self._ray, self._actors
        waiting, tries = list(range(len(jobs)))[::-1], [0] * len(jobs)
        running: Dict[Any, Tuple[int, int]] = {}  # 结果 → (任务, 第几个 actor)

        def hand_out(place: int) -> None:
            if waiting:
                job = waiting.pop()
                tries[job] += 1
                running[actors[place].run.remote(function, *jobs[job])] = (job, place)

        for place in range(len(actors)):
            hand_out(place)
        while running:
            (result,), _ = ray.wait(list(running), num_returns=1)
            job, place = running.pop(result)
            try:
                ray.get(result)
            except ray.exceptions.RayTaskError as error:
                if isinstance(error.cause, (ValueError, TypeError)):
                    raise error.cause from None
                self._again(job, tries, waiting, error)
            except ray.exceptions.RayError as error:
                self._again(job, tries, waiting, error)
                actors[place] = self._new_actor()
            else:
                yield job
            hand_out(place)

    def _again(self, job: int, tries: List[int], waiting: List[int], error: Exception) -> None:
        """放回队首，次数用完就放弃。"""
        if tries[job] >= self._max_tries:
            reason = " ".join(str(error).split())[-300:]
            raise CatalogError(f"shard job {job} failed {tries[job]} times on Ray; nothing was sealed: {reason}")
        waiting.append(job)
