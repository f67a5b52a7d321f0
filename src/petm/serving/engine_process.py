"""An engine in a process of its own, so that HTTP and inference do not wait for each other's Python."""

import atexit
import multiprocessing
import pickle
import signal
import sys
import traceback
from collections.abc import Callable, Sequence
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection
from typing import Any, cast

from petm.errors import ModelError
from petm.serving.engine import EngineEndedError, Facts, GraderEngine, Opinions, Unread
from petm.serving.reading import Reader

_GRACE = 5.0
"""Seconds that a process which has closed its pipe has to end."""
_SIGNALS = {signal.SIGINT, signal.SIGTERM}


class EngineProcess:
    """An engine that runs in another process, which ends when this one does, in whatever way.

    ``reader`` and ``facts`` exist once `wait` has returned. Every method but `close` raises EngineEndedError where the
    process has ended unexpectedly.

    Args:
        make: Makes the engine in the other process: a function that can be pickled.
        make_reader: Makes its reader in this process: one of foreign code may not be picklable.
        patience: Seconds after which an engine that does not answer is ended.
    """

    reader: Reader
    facts: Facts

    def __init__(
        self, make: Callable[[], GraderEngine], make_reader: Callable[[Facts], Reader], *, patience: float
    ) -> None:
        self._make_reader, self._patience = make_reader, patience
        self._pipe, there = multiprocessing.Pipe()
        context = multiprocessing.get_context("spawn")
        self._process = context.Process(target=_work, args=(there, make), name="petm inference", daemon=True)
        # A signal to the whole group of processes would end inference before the last answers, so it is blocked there.
        # Python's resource tracker unblocks signals when it is started, so it is started before.
        if sys.platform != "win32":  # which has no signals to groups
            resource_tracker.ensure_running()
            before = signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
        self._process.start()
        if sys.platform != "win32":
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
        there.close()
        atexit.register(self.close)

    def wait(self) -> None:
        """Returns when the engine is ready to grade; raises what ``make`` raised."""
        self.facts = self._received()
        self.reader = self._make_reader(self.facts)

    def run(self, inputs: Sequence[Any]) -> tuple[Unread, Opinions | None]:
        """As in `GraderEngine`."""
        return cast(tuple[Unread, Opinions | None], self._asked("run", inputs))

    def sweep(self, sample: Any, alphas: Sequence[float]) -> list[list[float]]:
        """As in `GraderEngine`."""
        return cast(list[list[float]], self._asked("sweep", sample, alphas))

    def check(self) -> None:
        """Returns where the process runs."""
        if not self._process.is_alive():
            raise self._gone()

    def close(self) -> None:
        """Ends the engine at once, also during a pass, from any thread."""
        atexit.unregister(self.close)
        self._process.kill()
        self._process.join()

    def _asked(self, name: str, *arguments: Any) -> Any:
        try:
            self._pipe.send((name, arguments))
            if not self._pipe.poll(self._patience):
                self._process.kill()
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
        self._process.join(_GRACE)
        self.close()
        return EngineEndedError(
            f"inference: expected its process to run and to answer within {self._patience:g} s, got its end with "
            f"exit code {self._process.exitcode}. Is there memory enough? Start the service again."
        )


Engine = GraderEngine | EngineProcess
"""Grades batches, in one thread at a time."""


def _work(pipe: Connection, make: Callable[[], GraderEngine]) -> None:
    engine, failed = None, None
    try:
        engine = make()
    except Exception as error:
        failed = error
    _send(pipe, engine and engine.facts, failed)
    while engine is not None:
        try:
            name, arguments = pipe.recv()
        except EOFError:
            return
        try:
            answer, failed = getattr(engine, name)(*arguments), None
        except Exception as error:
            error.add_note(f"In the inference process:\n{traceback.format_exc()}")
            answer, failed = None, error
        _send(pipe, answer, failed)


def _send(pipe: Connection, answer: Any, failed: Exception | None) -> None:
    try:
        pickle.loads(pickle.dumps(failed))
    except Exception:  # of another library, that cannot be unpickled
        failed = ModelError(f"model: expected an answer, got {type(failed).__name__}: {failed}.")
    pipe.send((answer, failed))
