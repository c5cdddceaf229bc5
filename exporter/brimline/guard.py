"""Who may ask our port, by the file of `--web.config.file`, which is read again while the port is open."""

from __future__ import annotations

import asyncio
import base64
import binascii
import contextlib
import hashlib
import hmac
import logging
import math
import os
import secrets
import ssl
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from aiohttp import web

from brimline.errors import ConfigError
from brimline.files import stamp
from brimline.threads import in_daemon_thread
from brimline.web_config import WebConfig, certificate_names, load_web_config

logger = logging.getLogger(__name__)

LOOK_EVERY_SECONDS = 1.0
# A request waits so long for the files to be looked at; a dead file system must not keep it longer.
LOOK_PATIENCE_SECONDS = 1.0
# A look that takes longer is told as a fault, and a reload waits so long for one.
HANGS_AFTER_SECONDS = 5.0
MAX_COMPARES = 16  # in flight and waiting; each costs a processor 60 ms and more
MAX_COMPARES_OF_AN_ADDRESS = 4
SAY_EVERY_SECONDS = 60.0
_BCRYPT_BYTES = 72  # what the hash looks at; bcrypt's own commands cut the rest off without a word
_NICENESS = 10

Check = Callable[[bytes, bytes], bool]


class PortGuard:
    """Admits connections and requests by what the file says now.

    A new file that is wrong leaves the one before it in force, and `problem` says what is wrong with it. So
    does one that protects less: a file is empty or cut short while it is written.
    """

    def __init__(
        self,
        path: Path,
        *,
        monotonic: Callable[[], float] = time.monotonic,
        check: Check | None = None,
    ) -> None:
        """Raises ConfigError."""
        self._path = path
        self._monotonic = monotonic
        self._config = load_web_config(path)
        self._signature = _signature(self._config.paths)
        self._looked = -math.inf  # when the last look began, or never where the next one is due at once
        self._looking: asyncio.Future[tuple[Any, WebConfig] | None] | None = None
        self._looking_since = -math.inf
        self._passwords = Passwords(check or _check)
        self._passwords.take(self._config.users)
        self._bucket = _Bucket(monotonic)
        self._turned_away = _Seldom(monotonic)
        self._mistake: str | None = None
        self._hangs = False
        self.told: Callable[[str | None], None] = lambda _problem: None

    @property
    def config(self) -> WebConfig:
        """What is in force."""
        return self._config

    @property
    def scheme(self) -> str:
        """https or http."""
        return "http" if self._config.tls is None else "https"

    # --- the files ---

    @property
    def problem(self) -> str | None:
        """Why the files of now are not in force; None where they are."""
        if self._hangs:
            return (
                f"{self._path}: not read within {HANGS_AFTER_SECONDS:g} s; a file system may hang, and what "
                "was read before stays in force"
            )
        return self._mistake

    def expire(self) -> None:
        """Look at the files at the next opportunity, however short ago that was done."""
        self._looked = -math.inf

    async def reload(self) -> None:
        """Look at the files as they are from now on, and wait for it; `problem` says what came of it."""
        self.expire()
        await self.refresh(HANGS_AFTER_SECONDS)

    async def refresh(self, patience: float = LOOK_PATIENCE_SECONDS) -> None:
        """Take note of files that have changed; at most once a second, and in a thread that may hang."""
        for _ in range(2):  # a look in flight may have seen files that are older than what expired
            if self._looking is None:
                now = self._monotonic()
                if now - self._looked < LOOK_EVERY_SECONDS:
                    return
                self._looked = self._looking_since = now
                self._looking = in_daemon_thread(self._look, "web-config")
                self._looking.add_done_callback(self._take)
            if not await self._ends_within(self._looking, patience):
                return

    async def _ends_within(self, looking: asyncio.Future[Any], patience: float) -> bool:
        """True where the look ends before it has taken so long in all."""
        taken = self._monotonic() - self._looking_since
        left = max(0.0, patience - taken)
        done, _ = await asyncio.wait([looking], timeout=left)
        if done:
            await asyncio.sleep(0)  # it may have ended just now: then what it saw is taken first
        elif taken + left >= HANGS_AFTER_SECONDS and not self._hangs:
            self._hangs = True
            logger.error("web_config=%s state=hanging detail=%r", self._path, self.problem)
            self.told(self.problem)
        return bool(done)

    def _look(self) -> tuple[Any, WebConfig] | None:
        """The files' state and what they say; None where nothing has changed. Raises ConfigError."""
        signature = _signature(self._config.paths)
        if signature == self._signature and self._mistake is None:
            return None
        config = load_web_config(self._path)
        if config.paths != self._config.paths:
            signature = _signature(config.paths)
            config = load_web_config(self._path)  # once more, so that it is not older than the signature
        lost = _lost(self._config, config)
        if lost is not None:
            raise ConfigError(
                f"{self._path}: the file has lost {lost}, as where it is cut short, and what it said before "
                "stays in force; restart Brimline where that is meant"
            )
        return signature, config

    def _take(self, looked: asyncio.Future[tuple[Any, WebConfig] | None]) -> None:
        self._looking = None
        hung, self._hangs = self._hangs, False
        if looked.cancelled():
            return
        error = looked.exception()
        if error is not None:
            self._refuse(str(error) if isinstance(error, ConfigError) else f"{self._path}: {error!r}")
            return
        found = looked.result()
        if found is not None:
            self._signature, self._config = found
            self._passwords.take(self._config.users)
            self._mistake = None
            logger.info("web_config=%s reload=done", self._path)
            self.say_notes()
        if found is not None or hung:
            self.told(self.problem)

    def _refuse(self, mistake: str) -> None:
        if mistake != self._mistake:
            logger.error("web_config=%s reload=refused detail=%r", self._path, mistake)
        self._mistake = mistake
        self.told(self.problem)

    def say_notes(self) -> None:
        """Log what the file asks for in vain, and that its certificate ends."""
        for note in self._config.notes:
            logger.warning("web_config=%s ignored=%r", self._path, note)
        if (doubt := self._config.certificate_doubt(time.time())) is not None:
            logger.warning("web_config=%s detail=%r", self._path, doubt)

    # --- connections and requests ---

    def tls(self) -> ssl.SSLContext | None:
        """The TLS settings of a new connection; None for plain HTTP."""
        return self._config.tls

    def headers(self) -> Mapping[str, str]:
        """Headers of every answer; an empty one is left out."""
        return self._config.headers

    def certificate_problem(self, certificate: Mapping[str, Any] | None) -> str | None:
        """Why the client that showed this certificate is sent away; None for one that may ask."""
        wanted = self._config.client_names
        if wanted is None or (certificate and certificate_names(certificate) & wanted):
            return None
        return "its certificate bears none of the names of client_allowed_sans"

    def turned_away(self, address: Any, why: str) -> None:
        """Take note of a TLS connection that came to nothing."""
        self._turned_away.say("connection", address, why)

    async def refusal(self, request: web.Request) -> web.Response | None:
        """The answer to a request that may not be handled; None for one that may."""
        config = self._config
        if config.refill_seconds is not None and not self._bucket.takes(config.refill_seconds, config.burst):
            self._turned_away.say("rate", request.remote, "more requests than rate_limit allows")
            return _too_many("Too many requests: see rate_limit.\n", config.refill_seconds)
        if not config.users:
            return None
        given = _credentials(request.headers.get("Authorization", ""))
        if given is not None:
            address = str(request.remote)
            try:
                if await self._passwords.are_right(*given, address):
                    return None
            except TooManyCompares:
                self._turned_away.say("password", address, "too many passwords wait to be compared")
                return _too_many("Too many passwords to compare; try again.\n", 1.0)
            self._turned_away.say("request", address, "wrong user name or password")
        return web.Response(
            status=401,
            text="Unauthorized\n",
            headers={"WWW-Authenticate": 'Basic realm="Brimline", charset="UTF-8"'},
        )


def _signature(paths: tuple[Path, ...]) -> tuple[Any, ...]:
    """Differs once a file was written or replaced."""
    found: list[Any] = []
    for path in paths:
        try:
            found.append(stamp(path))
        except OSError as error:
            found.append(error.errno)
    return tuple(found)


def _lost(before: WebConfig, now: WebConfig) -> str | None:
    """What protected the port before and does not now; None for nothing."""
    if before.tls is not None and now.tls is None:
        return "tls_server_config"
    if before.verifies_clients and not now.verifies_clients:
        return "client_auth_type: RequireAndVerifyClientCert"
    if before.client_names is not None and now.client_names is None:
        return "client_allowed_sans"
    if before.users and not now.users:
        return "basic_auth_users"
    if before.refill_seconds is not None and now.refill_seconds is None:
        return "rate_limit"
    return None


def _credentials(header: str) -> tuple[str, bytes] | None:
    """User name and password of an Authorization header; None where it holds none."""
    kind, _, encoded = header.partition(" ")
    if kind.lower() != "basic":
        return None
    try:
        pair = base64.b64decode(encoded.strip(), validate=True)
    except (binascii.Error, ValueError):
        return None
    name, separator, password = pair.partition(b":")
    return (name.decode("utf-8", "replace"), password) if separator else None


def _too_many(text: str, seconds: float) -> web.Response:
    return web.Response(status=429, text=text, headers={"Retry-After": str(max(1, math.ceil(seconds)))})


# --- passwords ---


class TooManyCompares(Exception):  # noqa: N818 - what it is, not what went wrong
    """So many passwords wait to be compared that this one is not."""


def _check(password: bytes, hashed: bytes) -> bool:
    import bcrypt

    # Of this thread only: whoever tries passwords must not take the processor from scrapes.
    with contextlib.suppress(OSError):
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _NICENESS)
    try:
        return bcrypt.checkpw(password, hashed)
    except ValueError:
        return False


@dataclass(eq=False, slots=True)
class _Compare:
    """A password that waits to be compared. is_reserved: it has the place that its user always has."""

    digest: bytes
    name: str
    address: str
    password: bytes
    hashed: bytes
    is_reserved: bool
    is_right: asyncio.Future[bool] = field(default_factory=lambda: asyncio.get_running_loop().create_future())


class Passwords:
    """Compares passwords with bcrypt hashes, one at a time; one that was right is known from then on.

    An unknown user costs what the dearest known one does, so that the time tells nobody who exists. Addresses
    take turns, and each user has a place of its own: a flood of wrong passwords keeps nobody from
    being compared who comes with a right one.
    """

    def __init__(self, check: Check) -> None:
        self._check = check
        self._users: Mapping[str, bytes] = {}
        self._nobody = b""
        self._key = secrets.token_bytes(32)
        self._right: dict[str, bytes] = {}  # at most one of each user
        self._pending: dict[bytes, _Compare] = {}  # the one in flight, and those that wait
        self._waiting: dict[str, deque[_Compare]] = {}  # by address; whose turn it is comes first
        self._of_address: Counter[str] = Counter()
        self._of_user: Counter[str] = Counter()
        self._comparing: asyncio.Task[None] | None = None

    def take(self, users: Mapping[str, bytes]) -> None:
        """Put other users in force."""
        self._users = users
        self._right = {name: digest for name, digest in self._right.items() if name in users}
        if users:
            # Here also because it is found to be missing now rather than at the first password.
            import bcrypt

            cost = max(int(hashed[4:6]) for hashed in users.values())
            # As dear as a real one, and no password has it: who would know what to look for?
            self._nobody = bcrypt.gensalt(cost) + secrets.token_hex(16)[:31].encode()

    async def are_right(self, name: str, password: bytes, address: str) -> bool:
        """True for a user's password. Raises TooManyCompares where too many wait."""
        hashed = self._users.get(name)
        digest = self._digest(name, hashed or self._nobody, password)
        if hmac.compare_digest(self._right.get(name, self._key), digest):
            return True
        pending = self._pending.get(digest)
        if pending is None:
            is_reserved = hashed is not None and not self._of_user[name]
            if not is_reserved:
                self._make_room(address)
            pending = _Compare(digest, name, address, password, hashed or self._nobody, is_reserved)
            self._line_up(pending)
        # What was asked for is compared once for all who ask it meanwhile, also where one of them leaves.
        is_right = await asyncio.shield(pending.is_right)
        if not is_right or hashed is None or self._users.get(name) != hashed:
            return False
        self._right[name] = digest
        return True

    def _make_room(self, address: str) -> None:
        """Send away the newest of the address with most, for one with fewer. Raises TooManyCompares."""
        held = self._of_address[address]
        if held >= MAX_COMPARES_OF_AN_ADDRESS:
            raise TooManyCompares
        if len(self._pending) < MAX_COMPARES:
            return
        ordinary = {
            other: [each for each in queue if not each.is_reserved] for other, queue in self._waiting.items()
        }
        most = max(
            (other for other in ordinary if ordinary[other]),
            key=lambda other: self._of_address[other],
            default=None,
        )
        if most is None or self._of_address[most] <= held + 1:
            raise TooManyCompares
        newest = ordinary[most][-1]
        self._waiting[most].remove(newest)
        if not self._waiting[most]:
            del self._waiting[most]
        self._end(newest, TooManyCompares())

    def _line_up(self, compare: _Compare) -> None:
        self._pending[compare.digest] = compare
        self._of_address[compare.address] += 1
        self._of_user[compare.name] += 1
        queue = self._waiting.setdefault(compare.address, deque())
        if compare.is_reserved:
            queue.appendleft(compare)  # of its own address only, so that nobody else waits longer for it
        else:
            queue.append(compare)
        if self._comparing is None:
            self._comparing = asyncio.ensure_future(self._compare_all())

    async def _compare_all(self) -> None:
        try:
            while self._waiting:
                address = next(iter(self._waiting))
                queue = self._waiting.pop(address)
                compare = queue.popleft()
                if queue:
                    self._waiting[address] = queue  # behind all others
                try:
                    self._end(compare, await self._compared(compare))
                except Exception as error:  # noqa: BLE001 - whatever fails is of those who wait for this one
                    self._end(compare, error)
        finally:
            self._comparing = None

    async def _compared(self, compare: _Compare) -> bool:
        password = compare.password[:_BCRYPT_BYTES]
        return await in_daemon_thread(lambda: self._check(password, compare.hashed), "password")

    def _end(self, compare: _Compare, result: bool | Exception) -> None:
        del self._pending[compare.digest]
        for counter, key in ((self._of_address, compare.address), (self._of_user, compare.name)):
            counter[key] -= 1
            if not counter[key]:
                del counter[key]
        if compare.is_right.done():
            return
        if isinstance(result, Exception):
            compare.is_right.set_exception(result)
            compare.is_right.exception()  # known to whoever waits; nobody may
        else:
            compare.is_right.set_result(result)

    def _digest(self, name: str, hashed: bytes, password: bytes) -> bytes:
        # A digest of fixed length each, so that no two triples read alike.
        parts = (hashlib.sha256(part).digest() for part in (name.encode(), hashed, password))
        return hmac.digest(self._key, b"".join(parts), "sha256")


# --- how much, and how often ---


class _Bucket:
    """Tokens of a rate limit: one more each interval, up to the burst."""

    def __init__(self, monotonic: Callable[[], float]) -> None:
        self._monotonic = monotonic
        self._tokens: float | None = None
        self._filled = 0.0

    def takes(self, refill_seconds: float, burst: int) -> bool:
        """True where there was a token, which is gone then."""
        now = self._monotonic()
        held = float(burst) if self._tokens is None else self._tokens + (now - self._filled) / refill_seconds
        self._filled = now
        self._tokens = min(held, float(burst))
        if self._tokens < 1:
            return False
        self._tokens -= 1
        return True


class _Seldom:
    """Logs what clients do wrong, at most once a minute: a port scanner must not fill the log."""

    def __init__(self, monotonic: Callable[[], float]) -> None:
        self._monotonic = monotonic
        self._said: dict[str, float] = {}
        self._unsaid: Counter[str] = Counter()

    def say(self, what: str, address: Any, why: str) -> None:
        now = self._monotonic()
        if now - self._said.get(what, -math.inf) < SAY_EVERY_SECONDS:
            self._unsaid[what] += 1
            return
        host = address[0] if isinstance(address, tuple) else address
        more = self._unsaid.pop(what, 0)
        logger.warning("%s=refused from=%s detail=%r not_logged_before=%d", what, host, why, more)
        self._said[what] = now
