"""Batches of the samples that wait, so that one pass answers several requests."""

import asyncio
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Generic, NamedTuple, TypeVar

S = TypeVar("S")
R = TypeVar("R")
T = TypeVar("T")


class _Waiting(NamedTuple, Generic[S, R]):
    sample: S
    answer: "asyncio.Future[R]"
    since: float


class Batcher(Generic[S, R]):
    """Runs samples in batches, one batch at a time, in one thread.

    A batch holds the samples that came while the one before it ran, so batches grow under load, and a sample that comes
    alone is run at once. A batch waits only for samples that are being read (`coming`), at most ``wait`` seconds from
    its oldest sample on.

    Args:
        run: Returns the answers to at least one sample, in their order.
        size: Largest number of samples of a batch.
        wait: Seconds; 0 waits for nothing.
        seen: Called with the size of each batch.
    """

    def __init__(
        self, run: Callable[[Sequence[S]], Sequence[R]], size: int, wait: float, seen: Callable[[int], None]
    ) -> None:
        self._run, self._size, self._wait, self._seen = run, size, wait, seen
        self._queue: deque[_Waiting[S, R]] = deque()
        self._coming = 0
        self._changed = asyncio.Event()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="inference")
        self._worker = asyncio.create_task(self._work())

    @contextmanager
    def coming(self) -> Iterator[None]:
        """Announces a sample while the block runs."""
        self._coming += 1
        try:
            yield
        finally:
            self._coming -= 1
            self._changed.set()

    async def answer(self, sample: S) -> R:
        """Returns the answer to a sample; raises what ``run`` raised for it."""
        loop = asyncio.get_running_loop()
        future: asyncio.Future[R] = loop.create_future()
        self._queue.append(_Waiting(sample, future, loop.time()))
        self._changed.set()
        return await future

    async def alone(self, work: Callable[[], T]) -> T:
        """Returns the result of ``work``, run between two batches."""
        return await asyncio.get_running_loop().run_in_executor(self._thread, work)

    async def close(self) -> None:
        """Ends the work; samples that still wait are not answered."""
        self._worker.cancel()
        await asyncio.gather(self._worker, return_exceptions=True)
        self._thread.shutdown()

    async def _work(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            while not self._queue:
                self._changed.clear()
                await self._changed.wait()
            await self._gather(loop)
            batch: list[_Waiting[S, R]] = []
            while self._queue and len(batch) < self._size:
                waiting = self._queue.popleft()
                if not waiting.answer.done():  # its request was given up
                    batch.append(waiting)
            if batch:
                self._seen(len(batch))
                await self._answer(loop, batch)

    async def _gather(self, loop: asyncio.AbstractEventLoop) -> None:
        """Waits for announced samples, as long as the oldest sample may wait."""
        until = self._queue[0].since + self._wait
        while self._coming > 0 and len(self._queue) < self._size and (left := until - loop.time()) > 0:
            self._changed.clear()
            try:
                async with asyncio.timeout(left):
                    await self._changed.wait()
            except TimeoutError:
                return

    async def _answer(self, loop: asyncio.AbstractEventLoop, batch: list[_Waiting[S, R]]) -> None:
        try:
            answers = await loop.run_in_executor(self._thread, self._run, [waiting.sample for waiting in batch])
        except Exception as error:
            if len(batch) > 1:  # one may have failed the others
                for waiting in batch:
                    await self._answer(loop, [waiting])
            elif not batch[0].answer.done():
                batch[0].answer.set_exception(error)
            return
        for waiting, answer in zip(batch, answers, strict=True):
            if not waiting.answer.done():
                waiting.answer.set_result(answer)
