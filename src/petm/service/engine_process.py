"""An engine in a process of its own, so that HTTP and inference do not wait for each other's Python."""

import atexit
import multiprocessing
import pickle
import signal
from collections.abc import Callable, Sequence
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection
from typing import Any

from petm.errors import ModelError
from petm.service.engine import Engine, EngineEndedError, Opinions

_PATIENCE = 5.0
"""Seconds in which the process may end by itself."""
_SIGNALS = {signal.SIGINT, signal.SIGTERM}


class EngineProcess:
    """Asks an engine that runs in another process, which ends when this one does, however that is.

    Args:
        make: Makes the engine, there: a function that can be pickled.

    Attributes:
        reader: The engine's.
        facts: The engine's.

    Raises:
        EngineEndedError: The process has ended before it was ready.
        Exception: What ``make`` raised.
    """

    def __init__(self, make: Callable[[], Engine]) -> None:
        self._pipe, there = multiprocessing.Pipe()
        context = multiprocessing.get_context("spawn")
        self._process = context.Process(target=_work, args=(there, make), name="petm inference", daemon=True)
        # Who ends the service with its whole group of processes would end inference before the last answers. Python's
        # tracker of resources lets the signals through again where it is started; so it is started before.
        resource_tracker.ensure_running()
        before = signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
        self._process.start()
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        there.close()
        atexit.register(self.close)
        try:
            self.reader, self.facts = self._received()
        except BaseException:
            self.close()
            raise

    def run(self, inputs: Sequence[Any]) -> Opinions:
        """As in `Engine`."""
        said: Opinions = self._asked("run", inputs)
        return said

    def turn(self, sample: Any, alphas: Sequence[float]) -> list[list[float]]:
        """As in `Engine`."""
        turned: list[list[float]] = self._asked("turn", sample, alphas)
        return turned

    def check(self) -> None:
        """As in `Engine`."""
        if not self._process.is_alive():
            raise self._gone()

    def close(self) -> None:
        """As in `Engine`."""
        atexit.unregister(self.close)
        self._pipe.close()  # by which it ends
        self._process.join(_PATIENCE)
        self._process.kill()
        self._process.join()

    def _asked(self, name: str, *arguments: Any) -> Any:
        try:
            self._pipe.send((name, arguments))
        except OSError as error:
            raise self._gone() from error
        return self._received()

    def _received(self) -> Any:
        try:
            answer, error = self._pipe.recv()
        except (EOFError, OSError) as gone:
            raise self._gone() from gone
        if error is not None:
            raise error
        return answer

    def _gone(self) -> EngineEndedError:
        self._process.join(_PATIENCE)
        return EngineEndedError(
            f"inference: expected its process to run, got its end with exit code {self._process.exitcode}. "
            f"Is there memory enough? Start the service again."
        )


def _work(pipe: Connection, make: Callable[[], Engine]) -> None:
    engine, failed = None, None
    try:
        engine = make()
    except Exception as error:
        failed = error
    _send(pipe, None if engine is None else (engine.reader, engine.facts), failed)
    while engine is not None:
        try:
            name, arguments = pipe.recv()
        except EOFError:
            return
        try:
            answer, failed = getattr(engine, name)(*arguments), None
        except Exception as error:
            answer, failed = None, error
        _send(pipe, answer, failed)


def _send(pipe: Connection, answer: Any, failed: Exception | None) -> None:
    try:
        pickle.loads(pickle.dumps(failed))
    except Exception:  # of another library, and not made to travel
        failed = ModelError(f"model: expected an answer, got {type(failed).__name__}: {failed}.")
    pipe.send((answer, failed))
