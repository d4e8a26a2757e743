"""Being stopped: Ctrl-C and the signals that end a process, as one exception at a moment that does no harm.

The command line listens (:func:`listening`). A signal raises :class:`Stopped` where the main thread is, but not within
:func:`uninterrupted`: what stands there is done first, so that no transaction stays half open. The exception is none
that libraries catch: Lightning and Typer would turn a KeyboardInterrupt into an exit of their own.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any, NoReturn

SIGNALS = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name))
_IMPATIENT = 3  # signals, after which a process that finishes something first ends without it


class Stopped(BaseException):
    """The process was asked to end by the signal ``number``."""

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.number = number

    @property
    def status(self) -> int:
        """The exit status that shells know: 130 after Ctrl-C, 143 after SIGTERM."""
        return 128 + self.number

    def __str__(self) -> str:
        """One line for the person who stopped it."""
        by = "" if self.number == signal.SIGINT else f" by {signal.Signals(self.number).name}"
        return f"stopped{by}; {_state.afterwards}."


class _State:
    """Of the process: there is one main thread, and signals are its alone."""

    def __init__(self) -> None:
        self.depth = 0  # of uninterrupted blocks
        self.first: int | None = None  # the first signal that came
        self.waiting = False  # whether one came within an uninterrupted block
        self.count = 0
        self.afterwards = "the same command goes on where it was"  # what is said of a stop


_state = _State()


@contextmanager
def uninterrupted() -> Iterator[None]:
    """What stands in the block, or in a function that has this above it, is done before a signal stops the process.

    Raises:
        Stopped: at the end of the outermost block, where a signal came meanwhile.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    _state.depth += 1
    try:
        yield
    finally:
        _state.depth -= 1
        if not _state.depth and _state.waiting:
            _state.waiting = False
            raise Stopped(_state.first or signal.SIGINT)


def say_afterwards(words: str) -> None:
    """What a person is told who stops the command now: for one that does not go on where it was."""
    _state.afterwards = words


def check() -> None:
    """Raises Stopped where a signal came whose exception got lost, as in a finaliser or below a bare ``except``."""
    if _state.first is not None and not _state.depth and threading.current_thread() is threading.main_thread():
        raise Stopped(_state.first)


def answered() -> None:
    """A stop was what the command waited for, and it ends as it should."""
    _state.first = None


def cause_of(error: BaseException) -> BaseException:
    """The stop that came, or ``error``: a library that is stopped in the middle may raise an error of its own."""
    return error if _state.first is None or isinstance(error, Stopped) else Stopped(_state.first)


@contextmanager
def listening() -> Iterator[None]:
    """Signals raise Stopped for as long as the block runs. Those that are ignored (``nohup``) stay so."""
    global _state
    _state = _State()
    hook = sys.unraisablehook
    with _handled_by(_on_signal):
        sys.unraisablehook = lambda lost: None if isinstance(lost.exc_value, Stopped) else hook(lost)
        try:
            yield
        finally:
            sys.unraisablehook = hook
    _state = _State()


@contextmanager
def leaving_at_once() -> Iterator[None]:
    """Signals end the process within the block: nothing has begun."""
    with _handled_by(lambda number, frame: _leave(number)):
        yield


@contextmanager
def _handled_by(handler: Callable[[int, FrameType | None], None]) -> Iterator[None]:
    before: dict[int, Any] = {}
    if threading.current_thread() is threading.main_thread():
        before = {number: signal.getsignal(number) for number in SIGNALS}
        before = {number: handler for number, handler in before.items() if handler not in (signal.SIG_IGN, None)}
    try:
        for number in before:
            signal.signal(number, handler)
        yield
    finally:
        for number, old in before.items():
            signal.signal(number, old)


def ignore_signals() -> None:
    """From now on, while the process ends: it is stopping already."""
    for number in SIGNALS:
        if signal.getsignal(number) == _on_signal:
            signal.signal(number, signal.SIG_IGN)


def _on_signal(number: int, frame: FrameType | None) -> None:
    _state.count += 1
    if _state.first is None:
        _state.first = number
    if not _state.depth:
        raise Stopped(_state.first)
    _state.waiting = True
    if _state.count >= _IMPATIENT:  # what is finished first hangs, perhaps on a server; to be killed is harmless
        _leave(_state.first)


def _leave(number: int) -> NoReturn:
    stopped = Stopped(number)
    os.write(2, f"{stopped}\n".encode())
    os._exit(stopped.status)
