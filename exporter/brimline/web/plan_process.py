"""The process that computes for the planning page: started when it is wanted, ended when it is not."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import struct
import sys
from asyncio.subprocess import DEVNULL, PIPE, Process
from collections.abc import Sequence

from brimline.errors import BrimlineError

logger = logging.getLogger(__name__)

# -P: what lies in the working directory is never imported.
COMMAND = (sys.executable, "-P", "-m", "brimline.footprint.worker")
MAX_ANSWER_BYTES = 8 << 20
_LENGTH = struct.Struct(">I")


class PlanTimeoutError(BrimlineError):
    """The computation took longer than it may."""


class PlanUnavailableError(BrimlineError):
    """There is no process to compute, or it broke off."""


class PlanProcess:
    """One process, asked one question at a time.

    It is killed where an answer takes longer than `limit_seconds`, and when nobody has asked for
    `idle_seconds`; the next question starts another. Callers take turns: see Planner.
    """

    def __init__(
        self,
        command: Sequence[str] = COMMAND,
        *,
        limit_seconds: float = 5.0,
        idle_seconds: float = 60.0,
    ) -> None:
        self.limit_seconds = limit_seconds
        self._idle_seconds = idle_seconds
        self._command = tuple(command)
        self._process: Process | None = None
        self._ending: Process | None = None
        self._idle: asyncio.TimerHandle | None = None
        self._closed = False

    @property
    def pid(self) -> int | None:
        """Of the process that runs; None while there is none."""
        return None if self._process is None else self._process.pid

    async def ask(self, question: bytes) -> bytes:
        """The answer. Raises PlanTimeoutError and PlanUnavailableError."""
        if self._idle is not None:
            self._idle.cancel()
            self._idle = None
        try:
            async with asyncio.timeout(self.limit_seconds):
                return await self._ask(question)
        except TimeoutError:
            self._kill()
            raise PlanTimeoutError(
                f"the computation took longer than {self.limit_seconds:g} s and was stopped"
            ) from None
        except (OSError, asyncio.IncompleteReadError):
            self._kill()
            raise PlanUnavailableError("the process that computes has ended; try again") from None
        except BaseException:  # a cancelled question leaves half an answer behind
            self._kill()
            raise
        finally:
            if self._process is not None:
                self._idle = asyncio.get_running_loop().call_later(self._idle_seconds, self._kill)

    async def _ask(self, question: bytes) -> bytes:
        process = await self._running()
        if process.stdin is None or process.stdout is None:
            raise RuntimeError("the process was started with pipes")
        process.stdin.write(_LENGTH.pack(len(question)))
        process.stdin.write(question)
        await process.stdin.drain()
        (length,) = _LENGTH.unpack(await process.stdout.readexactly(_LENGTH.size))
        if not 0 < length <= MAX_ANSWER_BYTES:
            raise asyncio.IncompleteReadError(b"", None)
        return await process.stdout.readexactly(length)

    async def _running(self) -> Process:
        if self._closed:
            raise PlanUnavailableError("the exporter is ending")
        if self._process is not None and self._process.returncode is not None:
            self._process = None
        if self._process is None:
            await self._let_the_last_one_end()
            try:
                self._process = await asyncio.create_subprocess_exec(
                    *self._command, stdin=PIPE, stdout=PIPE, stderr=DEVNULL, limit=1 << 16
                )
            except OSError as error:
                logger.warning("plan_process=not_started detail=%r", str(error))
                raise PlanUnavailableError(
                    f"no process can be started to compute ({error.strerror})"
                ) from None
            logger.debug("plan_process=started pid=%d", self._process.pid)
        return self._process

    async def _let_the_last_one_end(self) -> None:
        """Where it hangs in a dead file system, it cannot be killed; a second one would hang there too."""
        if self._ending is None:
            return
        try:
            async with asyncio.timeout(1.0):
                await self._ending.wait()
        except TimeoutError:
            raise PlanUnavailableError(
                "the last computation hangs where it reads the model's files; see to their file system"
            ) from None
        self._ending = None

    def _kill(self) -> None:
        process, self._process = self._process, None
        if self._idle is not None:
            self._idle.cancel()
            self._idle = None
        if process is None or process.returncode is not None:
            return
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        self._ending = process

    async def close(self) -> None:
        """End the process, and start no other."""
        self._closed = True
        self._kill()
        with contextlib.suppress(PlanUnavailableError):
            await self._let_the_last_one_end()
