"""The service behind its HTTP paths: loading, grading, the alpha sweep, labels, the end."""

import asyncio
import gc
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from functools import partial
from hashlib import sha256
from pathlib import Path
from random import Random
from typing import Any, Literal, TypeVar

from starlette.exceptions import HTTPException

from petm._internal.spill import give_back_blocks
from petm.data.images import WORKERS
from petm.selective.audit import check_audit
from petm.selective.drift import SuspicionProfile
from petm.serving.batching import Batcher
from petm.serving.bodies import Bodies, Given
from petm.serving.engine import EngineEndedError, Verdict, verdicts
from petm.serving.engine_process import Engine
from petm.serving.label_file import LabelFile
from petm.serving.limits import AGAIN, Limits, Unreadable
from petm.serving.line_file import GradesFile
from petm.serving.queue import ReviewQueue
from petm.serving.reading import Content, Reader
from petm.serving.telemetry import Telemetry

T = TypeVar("T")
TIDY = 2.0
"""Seconds between two checks whether there is memory to give back and the engine runs."""
Answered = Verdict | str
"""The answer on one input: its verdict, or why it could not be read."""


class Service:
    """Grades inputs within limits, and keeps labels; its grader is loaded in the background, by ``load``.

    Attributes:
        state: ``loading``, ``ready``, ``stopping`` or ``failed``.
        takes_labels: Whether there is a labels file.
        has_queue: Whether there is a review queue.
        audit: Chance of each trusted input to be drawn for review; None draws none.
        failure: Why the service could not load or continue.
    """

    def __init__(
        self,
        load: Callable[[], Engine],
        limits: Limits,
        labels: Path | None = None,
        *,
        queue: Sequence[str] = (),
        grades: Path | None = None,
        audit: float | None = None,
    ) -> None:
        check_audit(audit)
        self._load, self.limits, self._labels_path = load, limits, labels
        self._queue_paths, self._grades_path, self.audit = queue, grades, audit
        self._queue: ReviewQueue | None = None
        self._grades_file: GradesFile | None = None
        self._random = Random()
        self.takes_labels, self.has_queue = labels is not None, bool(queue)
        self.state: Literal["loading", "ready", "stopping", "failed"] = "loading"
        self.failure: BaseException | None = None
        self.bodies, self.telemetry = Bodies(limits), Telemetry()
        self.telemetry.queue.set_function(lambda: self._accepted)
        self._label_file: LabelFile | None = None
        self._starting: Engine | None = None
        self._ready: tuple[Engine, Batcher[Any, Answered | None]] | None = None
        self._accepted, self._grown = 0, False

    @asynccontextmanager
    async def running(
        self, started: Callable[[], None] = lambda: None, failed: Callable[[], None] = lambda: None
    ) -> AsyncIterator[None]:
        """Loads the grader while the block runs, and ends all work after it; calls ``started`` or ``failed``."""
        self._started, self._failed = started, failed
        self._pool = ThreadPoolExecutor(WORKERS, thread_name_prefix="reading")
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="labels")
        loading, tidying = asyncio.create_task(self._start()), asyncio.create_task(self._tidy())
        try:
            yield
        finally:
            self.stop()
            tidying.cancel()
            # No request waits for an answer any more, and a pass that hangs must not delay the end.
            if self._starting is not None:
                await asyncio.to_thread(self._starting.close)
            await loading
            if self._ready is not None:
                await self._ready[1].close()
            self._pool.shutdown()
            self._writer.shutdown()
            for file in (self._label_file, self._grades_file):
                if file is not None:
                    file.close()

    def stop(self) -> None:
        """Ends readiness; requests are still answered."""
        if self.state in ("loading", "ready"):
            self.state = "stopping"

    async def _start(self) -> None:
        try:
            if self._labels_path is not None:
                self._label_file = await asyncio.to_thread(LabelFile, self._labels_path)
            if self._grades_path is not None:
                self._grades_file = await asyncio.to_thread(GradesFile, self._grades_path)
            engine = self._starting = await asyncio.to_thread(self._load)
            if self.state == "stopping":  # meanwhile
                engine.close()
            await asyncio.to_thread(engine.wait)
            if self._label_file is not None:
                self._label_file.check(engine.facts.classes)
            if self._queue_paths and self.state != "stopping":
                self._queue = await asyncio.to_thread(ReviewQueue, self._queue_paths, engine.facts, engine.reader)
        except Exception as error:
            self._fail(error)
            return
        # Objects made until now stay: the collector need not visit them again while requests wait.
        gc.collect()
        gc.freeze()
        self.telemetry.profile = SuspicionProfile.from_measured(engine.facts.measured)
        self.telemetry.threshold = engine.facts.threshold
        size, wait, seen = self.limits.batch, self.limits.wait, self.telemetry.sizes.observe
        self._ready = engine, Batcher(lambda inputs: verdicts(*engine.run(inputs)), size, wait, seen)
        if self.state == "loading":
            self.state = "ready"
            self._started()

    async def _tidy(self) -> None:
        """Gives memory back to the system after large bodies and images, and fails where the engine has ended."""
        while True:
            await asyncio.sleep(TIDY)
            if self._ready is not None and self.failure is None:
                try:
                    self.engine.check()
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
    def engine(self) -> Engine:
        """The engine; raises HTTPException where it is not loaded yet."""
        return self._loaded()[0]

    @property
    def labels(self) -> LabelFile:
        """The labels file; raises HTTPException where there is none."""
        if not self.takes_labels:
            raise HTTPException(404, "This service takes no labels. Start it with --labels-file.")
        self._loaded()
        assert self._label_file is not None
        return self._label_file

    async def grade(self, given: Sequence[Given]) -> list[Answered]:
        """Returns the verdict on each input, or why it could not be read, in their order.

        Raises:
            HTTPException: The queue is full, it took too long, or the engine has ended.
        """
        engine, batcher = self._loaded()

        async def one(content: Content) -> Answered:
            answer = await batcher.answer(content) if engine.reader.is_short(content) else None
            if answer is None:
                try:
                    with batcher.coming():
                        sample = await self._in_pool(engine.reader.read, content)
                except Unreadable as reason:
                    return str(reason)
                answer = await batcher.answer(sample)
                assert answer is not None
            return answer

        async with self._accept(len(given)):
            if len(given) == 1:  # without a task of its own
                answered = [await one(given[0].content)]
            else:
                answered = await asyncio.gather(*(one(each.content) for each in given))
        self.telemetry.graded(answered)
        return answered if self.audit is None else [self._drawn(answer) for answer in answered]

    def _drawn(self, answer: Answered) -> Answered:
        if isinstance(answer, str) or self.audit is None:
            return answer
        return answer._replace(drawn=answer.trusted and self._random.random() < self.audit)

    async def keep(self, rows: Sequence[dict[str, Any]], given: Sequence[Given]) -> None:
        """Appends rows of grades to the grades file, if there is one, with the hashes of their inputs.

        Raises:
            RunError: They could not be written.
        """
        if self._grades_file is not None:
            run = asyncio.get_running_loop().run_in_executor
            await run(self._writer, _append, self._grades_file, self.engine.reader, rows, given)

    @property
    def queue(self) -> ReviewQueue:
        """The review queue; raises HTTPException where there is none."""
        self._loaded()
        if self._queue is None:
            raise HTTPException(404, "This service has no queue. Start it with --queue.")
        return self._queue

    async def queued(self, start: int) -> dict[str, Any]:
        """Returns inputs of the queue that are not decided, as in `schemas.QueueAnswer`."""
        queue, decided = self.queue, self.labels.has_decision
        numbers, following = await self._in_pool(lambda: queue.ahead(start, decided))
        rows = [(number, queue.rows[number]) for number in numbers]
        labels = [{} if row.given is None else {"given": row.given, "suggested": row.suggested} for _, row in rows]
        items = [
            {"number": number, "input": row.input, **told} for (number, row), told in zip(rows, labels, strict=True)
        ]
        counts = {"total": len(queue.rows), "decided": queue.decided(decided), "lost": len(queue.lost)}
        return {**counts, "items": items, "next": following}

    async def queued_content(self, number: int) -> bytes:
        """Returns the content of an input of the queue; raises HTTPException where it is gone or changed."""
        queue = self.queue
        if number >= len(queue.rows):
            raise HTTPException(404, "The queue is shorter.")
        content = await self._in_pool(queue.content, number)
        if content is None:
            raise HTTPException(410, "This input is gone, or was changed after it was graded.")
        return content

    async def sweep(self, content: Content, alphas: Sequence[float]) -> list[list[float]]:
        """Returns the probabilities of the classes at each strength of the second opinion.

        Raises:
            HTTPException: The queue is full, the input cannot be read, there is no adapter, or the engine has ended.
        """
        engine, batcher = self._loaded()
        if not engine.facts.has_sweep:
            raise HTTPException(404, "sweep: expected a bundle with an adapter, got one without. Serve one.")
        async with self._accept(len(alphas)):
            sample = await self._read(engine.reader.read, content)
            return await batcher.alone(lambda: engine.sweep(sample, alphas))

    def figures(self) -> Callable[[], bytes]:
        """Returns the function that makes the page of figures, which takes a while, from what is known now."""
        labels = [] if self._label_file is None else self._label_file.standing
        return partial(self.telemetry.page, list(self.telemetry.window), labels)

    async def label(self, record: dict[str, Any], content: Content, digest: str | None) -> dict[str, Any]:
        """Returns the line that was appended to the labels file; ``record`` is as in `LabelFile.append`.

        ``digest`` is the sender's SHA-256 of the input; where it is absent, nothing is compared.

        Raises:
            HTTPException: The input cannot be read or has another hash, or there is no such class.
            RunError: The line could not be written.
        """
        labels, engine, label = self.labels, self.engine, record["label"]
        classes = engine.facts.classes
        if label is not None and label >= len(classes):
            raise HTTPException(400, f"label: expected a class from 0 to {len(classes) - 1}, or null.")
        name = None if label is None else classes[label]
        if label is not None and record.get("decision"):
            raise HTTPException(400, "decision: expected it beside a label of null only.")
        if record["label_name"] not in (None, name):
            raise HTTPException(400, "label_name: expected the name of the class. Does this grader have other classes?")
        record = record | {"label_name": name}
        await self._read(engine.reader.read, content)  # which checks it
        raw = await self._read(engine.reader.raw, content)
        if digest is not None and digest != sha256(raw).hexdigest():
            raise HTTPException(400, "sha256: expected the hash of the input. Was the input changed on the way?")
        return await asyncio.get_running_loop().run_in_executor(self._writer, labels.append, record, raw, classes)

    async def _read(self, how: Callable[[Content], T], content: Content) -> T:
        try:
            return await self._in_pool(how, content)
        except Unreadable as reason:
            raise HTTPException(422, str(reason)) from reason

    async def _in_pool(self, how: Callable[..., T], *arguments: Any) -> T:
        self._grown = True
        return await asyncio.get_running_loop().run_in_executor(self._pool, how, *arguments)

    @asynccontextmanager
    async def _accept(self, count: int) -> AsyncIterator[None]:
        """Holds ``count`` places in the queue while the block runs, at most until the time-out."""
        if self._accepted + count > self.limits.queue:
            raise HTTPException(429, "Too many inputs wait. Try again.", AGAIN)
        self._accepted += count
        try:
            async with asyncio.timeout(self.limits.timeout):
                yield
        except EngineEndedError as error:
            self._fail(error)
            raise HTTPException(503, "The service has failed and ends.") from error
        except TimeoutError as error:
            raise HTTPException(504, "It took too long. Try again with less.") from error
        finally:
            self._accepted -= count

    def _loaded(self) -> tuple[Engine, Batcher[Any, Answered | None]]:
        if self._ready is None:
            raise HTTPException(503, "The grader is being loaded. Try again.", AGAIN)
        return self._ready


def _append(file: GradesFile, reader: Reader, rows: Sequence[dict[str, Any]], given: Sequence[Given]) -> None:
    """Writes rows of grades; an input without a name is named by its hash."""
    lines = []
    for row, each in zip(rows, given, strict=True):
        try:
            digest = sha256(reader.raw(each.content)).hexdigest()
        except Unreadable:
            digest = None
        lines.append(row | {"sha256": digest, "input": row["input"] or digest or ""})
    file.append(lines)
