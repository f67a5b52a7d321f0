import concurrent.futures
import io
import runpy
import sys
import threading
import types

import pytest
from rich.console import Console

import petm._internal.progress
from petm._internal.progress import track


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(petm._internal.progress, "console", Console(stderr=True, get_time=clock, width=100))
    return clock


def test_a_notebook_gets_no_bars(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")  # as the kernel does
    monkeypatch.delenv("TERM", raising=False)
    monkeypatch.delitem(sys.modules, "ipykernel", raising=False)
    assert runpy.run_path(petm._internal.progress.__file__)["console"].is_terminal
    monkeypatch.setitem(sys.modules, "ipykernel", types.ModuleType("ipykernel"))
    assert not runpy.run_path(petm._internal.progress.__file__)["console"].is_terminal


def test_a_short_step_leaves_no_line_without_a_terminal(clock: Clock, capfd: pytest.CaptureFixture[str]) -> None:
    with track("short", 3) as bar, track("inner", 2):
        bar.advance()
        clock.now += 1.9
    assert capfd.readouterr() == ("", "")


def test_a_long_step_leaves_one_line_on_standard_error(clock: Clock, capfd: pytest.CaptureFixture[str]) -> None:
    with track("train [A]", 3, done=1) as bar:
        bar.show(loss=0.123456, accuracy=1.0)
        bar.advance(2)
        clock.now += 61
    out, err = capfd.readouterr()
    assert out == ""
    assert err.split() == ["train", "[A]", "61.0", "s", "loss", "0.1235", "accuracy", "1"]
    assert err.count("\n") == 1


def test_an_exception_passes_and_leaves_no_bar_behind(clock: Clock, capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(KeyboardInterrupt), track("outer", 3), track("inner", 3):
        raise KeyboardInterrupt
    assert not petm._internal.progress._shown
    with track("next", 1) as bar:
        bar.advance()
        clock.now += 3
    assert capfd.readouterr().err.split() == ["next", "3.0", "s"]


def test_a_terminal_shows_bars_one_below_the_other(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    screen = io.StringIO()
    monkeypatch.setattr(petm._internal.progress, "console", Console(file=screen, force_terminal=True, width=100))
    with track("outer", 4, done=1) as outer:
        outer.advance()
        with track("inner", 7) as inner:
            inner.show(loss=0.25)
            petm._internal.progress._shown[0][0].refresh()
            print("a result")
    shown = screen.getvalue()
    assert "outer" in shown
    assert "2/4" in shown
    assert shown.index("outer") < shown.index("inner")
    assert "0/7" in shown
    assert "loss 0.25" in shown
    assert "a result" not in shown, "standard output stays the caller's"
    assert capsys.readouterr().out == "a result\n"


def test_threads_may_track_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(petm._internal.progress, "console", Console(file=io.StringIO(), force_terminal=True))
    failures: list[BaseException] = []

    def work() -> None:
        try:
            for _ in range(20):
                with track("work", 1) as bar:
                    bar.advance()
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert not petm._internal.progress._shown


def test_bars_of_several_threads_share_one_display() -> None:
    def work(number: int) -> None:
        with track(f"thread {number}", 20) as bar:
            for _ in range(20):
                bar.advance()

    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        assert len(list(pool.map(work, range(40)))) == 40
    assert not petm._internal.progress._shown
