"""What the service does, whatever speaks HTTP around it."""

import asyncio
import gc
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from hashlib import sha256
from pathlib import Path
from typing import Any, Literal, TypeVar

from petm._internal.spill import give_back_blocks
from petm.data.images import WORKERS
from petm.selective.drift import SuspicionProfile
from petm.serving.batching import Batcher
from petm.serving.bodies import Bodies, Given
from petm.serving.engine import Engine, EngineEndedError, Verdict, verdicts
from petm.serving.label_file import LabelFile
from petm.serving.limits import Limits, Refusal, Unreadable, busy
from petm.serving.reading import Content
from petm.serving.telemetry import Telemetry

T = TypeVar("T")
TIDY = 2.0
"""Seconds between two looks whether there is memory to give back, and the engine lives."""
Answered = Verdict | str
"""Of one input: what the grader says, or why it could not be read."""


class Service:
    """Grades what it is given, within limits; loads its grader in the background, and ends in an orderly way.

    Args:
        load: Makes the engine; called in a thread of its own.
        limits: What it bears.
        labels: The file for what people say; absent takes no labels.

    Attributes:
        state: ``loading``, ``ready``, ``stopping`` or ``failed``.
        failure: Why it could not load, or go on.
    """

    def __init__(self, load: Callable[[], Engine], limits: Limits, labels: Path | None = None) -> None:
        self._load, self.limits, self._labels_path = load, limits, labels
        self.state: Literal["loading", "ready", "stopping", "failed"] = "loading"
        self.failure: BaseException | None = None
        self.bodies, self.telemetry = Bodies(limits), Telemetry()
        self.telemetry.queue(lambda: self._accepted)
        self.labels: LabelFile | None = None
        self._starting: Engine | None = None
        self._engine: Engine | None = None
        self._batcher: Batcher[Any, Answered | None] | None = None
        self._accepted, self._grown = 0, False

    @asynccontextmanager
    async def running(self, failed: Callable[[], None] = lambda: None) -> AsyncIterator[None]:
        """Loads the grader while the block runs, and ends all work behind it.

        Args:
            failed: Called where it cannot be loaded, or its engine ends.
        """
        self._failed = failed
        self._pool = ThreadPoolExecutor(WORKERS, thread_name_prefix="reading")
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="labels")
        loading, tidying = asyncio.create_task(self._start()), asyncio.create_task(self._tidy())
        try:
            yield
        finally:
            self.stop()
            tidying.cancel()
            # Nothing waits for an answer any more, and what does not answer must not hold up the end.
            if self._starting is not None:
                await asyncio.to_thread(self._starting.close)
            await loading
            if self._batcher is not None:
                await self._batcher.close()
            self._pool.shutdown()
            self._writer.shutdown()
            if self.labels is not None:
                self.labels.close()

    def stop(self) -> None:
        """Says that the end is near: readiness ends, what comes is answered still."""
        if self.state in ("loading", "ready"):
            self.state = "stopping"

    async def _start(self) -> None:
        try:
            if self._labels_path is not None:
                self.labels = await asyncio.to_thread(LabelFile, self._labels_path)
            self._starting = await asyncio.to_thread(self._load)
            if self.state == "stopping":  # meanwhile
                self._starting.close()
            await asyncio.to_thread(self._starting.wait)
        except Exception as error:
            self._fail(error)
            return
        self._engine = self._starting
        # What is there by now stays: the collector need not look through it again while requests wait.
        gc.collect()
        gc.freeze()
        engine, limits, seen = self._engine, self.limits, self.telemetry.batch
        self.telemetry.profile = SuspicionProfile.from_measured(engine.facts.measured)
        run = lambda inputs: verdicts(engine.run(inputs))  # noqa: E731 - it has no better name
        self._batcher = Batcher(run, size=limits.batch, wait=limits.wait, seen=seen)
        if self.state == "loading":
            self.state = "ready"

    async def _tidy(self) -> None:
        """Gives memory back to the system after large bodies and images, and sees to it that the engine lives."""
        while True:
            await asyncio.sleep(TIDY)
            if self._engine is not None and self.failure is None:
                try:
                    self._engine.check()
                except EngineEndedError as error:
                    self._fail(error)
            if self._grown or self.bodies.grown:
                self._grown = self.bodies.grown = False
                await asyncio.to_thread(give_back_blocks)

    def _fail(self, error: Exception) -> None:
        if self.failure is None and self.state != "stopping":
            self.state, self.failure = "failed", error
            self._failed()

    @property
    def takes_labels(self) -> bool:
        """Whether there is a file for labels."""
        return self._labels_path is not None

    @property
    def engine(self) -> Engine:
        """The engine.

        Raises:
            Refusal: It is not loaded yet.
        """
        return self._loaded()[0]

    async def grade(self, given: Sequence[Given]) -> list[Answered]:
        """Returns what is said of each input, in their order.

        Raises:
            Refusal: The queue is full, it took too long, or the engine has ended.
        """
        engine, batcher = self._loaded()

        async def one(content: Content) -> Answered:
            said = await batcher.answer(content) if engine.reader.is_short(content) else None
            if said is None:
                try:
                    with batcher.coming():
                        sample = await self._in_pool(engine.reader.read, content)
                except Unreadable as reason:
                    return str(reason)
                said = await batcher.answer(sample)
                assert said is not None
            return said

        async with self._accept(len(given)):
            if len(given) == 1:
                answered = [await one(given[0].content)]
            else:
                answered = await asyncio.gather(*(one(each.content) for each in given))
        self.telemetry.graded(answered)
        return answered

    async def turn(self, content: Content, alphas: Sequence[float]) -> list[list[float]]:
        """Returns the probabilities of the classes at each strength of the adapter.

        Raises:
            Refusal: The queue is full, the input cannot be read, the grader has no sweep, or the engine has ended.
        """
        engine, batcher = self._loaded()
        if not engine.facts.has_sweep:
            raise Refusal(404, "An exported graph has no sweep. Serve the bundle.")
        async with self._accept(len(alphas)):
            sample = await self.read(engine.reader.read, content)
            return await batcher.alone(lambda: engine.turn(sample, alphas))

    async def label(self, record: dict[str, Any], content: Content, digest: str | None) -> dict[str, Any]:
        """Returns the line that was appended to the labels file.

        Args:
            record: As `LabelFile.append` takes it.
            content: The input.
            digest: Its SHA-256 as the sender knows it; absent checks nothing.

        Raises:
            Refusal: The input cannot be read or has another hash, or there is no such class.
            RunError: The line could not be written.
        """
        labels, engine = self._labels(), self.engine
        if record["label"] is not None and record["label"] >= len(engine.facts.classes):
            raise Refusal(400, f"label: expected a class from 0 to {len(engine.facts.classes) - 1}, or null.")
        await self.read(engine.reader.read, content)
        raw = await self.read(engine.reader.raw, content)
        if digest is not None and digest != sha256(raw).hexdigest():
            raise Refusal(400, "sha256: expected that of the input. Was it changed on the way?")
        return await asyncio.get_running_loop().run_in_executor(
            self._writer, lambda: labels.append(record, raw, engine.facts.classes)
        )

    def said(self) -> list[dict[str, Any]]:
        """Returns the lines of the labels file, the oldest first.

        Raises:
            Refusal: There is none.
        """
        return self._labels().lines()

    async def read(self, how: Callable[[Content], T], content: Content) -> T:
        """Returns what a reader makes of one input, in a thread.

        Raises:
            Refusal: It cannot be read.
        """
        try:
            return await self._in_pool(how, content)
        except Unreadable as reason:
            raise Refusal(422, str(reason)) from reason

    async def _in_pool(self, how: Callable[[Content], T], content: Content) -> T:
        self._grown = True
        return await asyncio.get_running_loop().run_in_executor(self._pool, how, content)

    @asynccontextmanager
    async def _accept(self, count: int) -> AsyncIterator[None]:
        """Holds some places in the queue while the block runs, and lets it run so long."""
        if self._accepted + count > self.limits.queue:
            raise busy("Too many inputs wait. Try again.")
        self._accepted += count
        try:
            async with asyncio.timeout(self.limits.timeout):
                yield
        except EngineEndedError as error:
            self._fail(error)
            raise Refusal(503, "The service has failed, and ends.") from error
        except TimeoutError as error:
            raise Refusal(504, "It took too long. Try again with less.") from error
        finally:
            self._accepted -= count

    def _labels(self) -> LabelFile:
        if self._labels_path is None:
            raise Refusal(404, "This service takes no labels. Start it with --labels-file.")
        self._loaded()
        assert self.labels is not None
        return self.labels

    def _loaded(self) -> tuple[Engine, Batcher[Any, Answered | None]]:
        if self._engine is None or self._batcher is None:
            raise Refusal(503, "The grader is being loaded. Try again.", {"Retry-After": "1"})
        return self._engine, self._batcher
