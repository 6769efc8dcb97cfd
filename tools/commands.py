"""Commands that a tool runs beside each other: their lines with times, their ends, and a stop of all of them."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from time import monotonic, sleep, time
from types import TracebackType

__all__ = ["Command", "CommandError", "Commands"]

_PATIENCE_S = 30.0
"""Seconds that a command has to end after SIGTERM, before it is killed."""
_SHOWN = 15
"""Lines of a failed command that are shown."""


class CommandError(RuntimeError):
    """Command that failed, ended too early, or did not do in time what was waited for."""


class Command:
    """Running command of gemel. Its output goes to a log, and line by line to a function.

    Args:
        name: name in messages, and of the log.
        arguments: command, such as ``gemel pull ...``; it is found beside the running Python.
        log: file for the output.
        folder: folder in which the command runs.
        environment: environment variables in addition to those of this process.
        heard: function called with the Unix time of each line, and the line; on a thread of its own.
    """

    def __init__(
        self,
        name: str,
        arguments: Sequence[str | Path],
        log: Path,
        folder: Path,
        environment: Mapping[str, str],
        heard: Callable[[float, str], None],
    ) -> None:
        self.name, self.begun = name, time()
        self._log, self._heard, self._last = log, heard, deque[str](maxlen=_SHOWN)
        program, *rest = map(str, arguments)
        # A session of its own: Ctrl-C reaches the tool alone, which stops all in order.
        self.process = subprocess.Popen(
            [str(Path(sys.executable).parent / program), *rest],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            text=True,
            errors="replace",
            env={**os.environ, "PYTHONUNBUFFERED": "1", **environment},
            start_new_session=True,
            cwd=folder,
        )
        self.trouble: Exception | None = None
        """What failed when a line was heard."""
        self._reader = threading.Thread(target=self._read, name=name, daemon=True)
        self._reader.start()

    @property
    def last_lines(self) -> str:
        """The last lines of the command, indented."""
        return "".join(f"    {line}\n" for line in self._last)

    def wait(self) -> None:
        """Wait for the end of the command.

        Raises:
            CommandError: its exit status is not 0.
        """
        status = self.process.wait()
        self._reader.join()
        if status:
            raise CommandError(f"{self.name}: ended with status {status}:\n{self.last_lines}")

    def stop(self, allowed: Sequence[int] = (0,)) -> None:
        """Stop the command with SIGTERM, if it still runs.

        Args:
            allowed: exit statuses that are in order.

        Raises:
            CommandError: it had to be killed, or its exit status is not allowed.
        """
        self.process.terminate()
        try:
            status = self.process.wait(_PATIENCE_S)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
            raise CommandError(f"{self.name}: did not stop within {_PATIENCE_S:.0f} s:\n{self.last_lines}") from None
        self._reader.join()
        if status not in allowed:
            raise CommandError(f"{self.name}: ended with status {status}:\n{self.last_lines}")

    def _read(self) -> None:
        assert self.process.stdout is not None
        with self._log.open("a", encoding="utf-8") as log:
            for raw in self.process.stdout:
                line = raw.rstrip()
                self._last.append(line)
                log.write(f"{time():.3f} {line}\n")
                log.flush()
                try:
                    self._heard(time(), line)
                except Exception as error:
                    # Otherwise nobody would read on, and the command would wait for ever.
                    self.trouble = error


class Commands:
    """Commands that run beside each other, all of which are stopped at the end of the ``with`` block.

    Args:
        folder: folder in which the commands run, and in which ``logs`` has what they print.
        heard: function called with the name of a command, the Unix time of a line, and the line.
    """

    def __init__(self, folder: Path, heard: Callable[[str, float, str], None]) -> None:
        self._folder, self._heard = folder, heard
        self._running: dict[str, Command] = {}
        (folder / "logs").mkdir(parents=True, exist_ok=True)

    def __enter__(self) -> Commands:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for command in self._running.values():
            command.process.terminate()
        end = monotonic() + _PATIENCE_S
        while monotonic() < end and any(each.process.poll() is None for each in self._running.values()):
            sleep(0.1)
        for command in self._running.values():
            command.process.kill()
            command.process.wait()
        self._running.clear()

    def start(self, name: str, *arguments: str | Path, **environment: str) -> Command:
        """Start a command that goes on beside the others."""
        made = Command(
            name,
            arguments,
            self._folder / "logs" / f"{name}.log",
            self._folder,
            environment,
            lambda at, line: self._heard(name, at, line),
        )
        self._running[name] = made
        return made

    def run(self, name: str, *arguments: str | Path, until: float = 3600.0, **environment: str) -> None:
        """Run a command to its end, while the others must go on.

        Args:
            name: name of the command.
            arguments: the command.
            until: maximum seconds that it may take.
            environment: environment variables for it.

        Raises:
            CommandError: it failed, or another command ended.
        """
        self.start(name, *arguments, **environment)
        self.finish(name, until)

    def finish(self, name: str, seconds: float) -> None:
        """Wait for the end of a command, while the others must go on.

        Raises:
            CommandError: it failed, takes too long, or another command ended.
        """
        command = self._running[name]
        self.wait_for(lambda: command.process.poll() is not None, seconds, f"the end of {name}", ends=name)
        del self._running[name]
        command.wait()

    def stop(self, name: str, allowed: Sequence[int] = (0,)) -> None:
        """Stop a command; see :meth:`Command.stop`."""
        self._running.pop(name).stop(allowed)

    def wait_for(
        self, done: Callable[[], bool], seconds: float, what: str, *, ends: str | None = None, poll: float = 0.2
    ) -> None:
        """Wait until a condition holds, while all commands go on.

        Args:
            done: function that returns whether the condition holds.
            seconds: maximum time to wait.
            what: the condition in words.
            ends: name of a command that may end meanwhile.
            poll: seconds between two looks.

        Raises:
            CommandError: the time is over, or a command has ended.
        """
        began = monotonic()
        while not done():
            for name, command in self._running.items():
                if command.trouble is not None:
                    raise command.trouble
                if name != ends and command.process.poll() is not None:
                    status = command.process.returncode
                    raise CommandError(f"{name}: ended with status {status}, too early:\n{command.last_lines}")
            if monotonic() - began > seconds:
                tails = "".join(f"  {name}:\n{each.last_lines}" for name, each in self._running.items())
                raise CommandError(f"no sign of {what} within {seconds:.0f} s; the last lines are\n{tails}")
            sleep(poll)
