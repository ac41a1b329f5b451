"""Many hands: nothing is lost on its way to the reader, whoever presses Ctrl-C and when."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Iterator

import pytest

from minipovid.common import pool
from minipovid.common.pool import Pool


@pytest.fixture(autouse=True)
def a_terminal() -> Iterator[None]:
    """A shell starts background jobs with Ctrl-C ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    after = signal.signal(signal.SIGINT, before)
    assert after is signal.default_int_handler, "the crew left its own handler behind"


def slow_square(number: int) -> int:
    time.sleep(0.002)
    return number * number


def test_every_item_becomes_a_result() -> None:
    with Pool(slow_square, iter(range(100)), 8) as crew:
        assert sorted(crew.results()) == [n * n for n in range(100)]


@pytest.mark.parametrize("pressed_at", [0, 1, 40])
def test_ctrl_c_while_a_result_is_noted_loses_none(pressed_at: int) -> None:
    """What was begun comes home, what was not is left alone."""
    begun: list[int] = []
    noted: list[int] = []
    told: list[str] = []

    def work(number: int) -> int:
        begun.append(number)
        time.sleep(0.002)
        return number

    with (
        pytest.raises(KeyboardInterrupt),
        Pool(work, iter(range(100)), 4, lambda: told.append("stop")) as crew,
    ):
        for result in crew.results():
            if len(noted) == pressed_at:
                signal.raise_signal(signal.SIGINT)
            noted.append(result)  # had the signal interrupted here, this one were lost
    assert sorted(noted) == sorted(begun) and len(noted) > pressed_at
    assert told == ["stop"] and len(begun) < 100


def test_ctrl_c_wakes_a_reader_that_waits() -> None:
    go = threading.Event()

    def work(number: int) -> int:
        go.wait(30)
        return number

    threading.Timer(0.1, signal.pthread_kill, (threading.main_thread().ident, signal.SIGINT)).start()
    noted: list[int] = []
    with pytest.raises(KeyboardInterrupt), Pool(work, iter(range(9)), 2, go.set) as crew:
        noted.extend(crew.results())
    assert sorted(noted) == [0, 1]


def test_ctrl_c_after_the_last_result_is_heard_too() -> None:
    with pytest.raises(KeyboardInterrupt), Pool(slow_square, iter(range(3)), 2) as crew:
        assert len(list(crew.results())) == 3
        signal.raise_signal(signal.SIGINT)


def test_a_second_ctrl_c_interrupts_at_once() -> None:
    noted: list[int] = []
    with pytest.raises(KeyboardInterrupt), Pool(slow_square, iter(range(50)), 2) as crew:
        for result in crew.results():
            signal.raise_signal(signal.SIGINT)
            noted.append(result)
    assert len(noted) == 1


def test_what_hangs_is_waited_for_no_longer_than_the_grace(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pool, "GRACE", 0.2)
    never = threading.Event()
    start = time.monotonic()
    with pytest.raises(KeyboardInterrupt), Pool(lambda item: never.wait(60), iter(range(2)), 2) as crew:
        signal.raise_signal(signal.SIGINT)
        assert list(crew.results()) == []
    assert 0.2 <= time.monotonic() - start < 20
    never.set()


def test_an_error_is_raised_when_what_was_in_hand_is_finished() -> None:
    noted: list[int] = []
    together = threading.Barrier(3)

    def work(number: int) -> int:
        together.wait(30)
        if number == 1:
            raise OSError("the disk is full")
        time.sleep(0.1)
        return number

    with pytest.raises(OSError, match="the disk is full"), Pool(work, iter(range(30)), 3) as crew:
        noted.extend(crew.results())
    assert sorted(noted) == [0, 2]


def test_a_reader_that_fails_sends_the_hands_home() -> None:
    begun: list[int] = []

    def work(number: int) -> int:
        begun.append(number)
        return slow_square(number)

    with pytest.raises(OSError, match="full"), Pool(work, iter(range(10_000)), 2) as crew:
        for _ in crew.results():
            raise OSError("full")
    time.sleep(0.05)
    count = len(begun)
    time.sleep(0.05)
    assert count == len(begun) < 1_000


def test_a_handler_that_is_not_pythons_own_stays() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with Pool(slow_square, iter(range(20)), 2) as crew:
            for _ in crew.results():
                assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
                signal.raise_signal(signal.SIGINT)
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def test_a_thread_may_lead_a_crew() -> None:
    found: list[int] = []

    def lead() -> None:
        with Pool(slow_square, iter(range(5)), 2) as crew:
            found.extend(crew.results())

    thread = threading.Thread(target=lead)
    thread.start()
    thread.join(30)
    assert sorted(found) == [0, 1, 4, 9, 16]
