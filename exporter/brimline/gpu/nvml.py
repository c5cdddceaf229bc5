"""GPU memory through NVML: the only module that imports pynvml.

A call into the driver may fail or never come back, for one GPU or for all. Hence one daemon thread per GPU
(and per MIG instance) does that GPU's calls, a supervising one loads and starts the library, and read() puts
together what they have published without calling NVML. A thread that hangs is left alone until its call comes
back; no second call is made on its GPU meanwhile. That holds over reloads too: process_sampler() hands a
closed sampler out again, with the threads that still hang, the GPUs it knows and their peaks, instead of a
new one that would ask the same GPU.

Rows: one for each GPU, or for each instance where MIG is on and instances can be reached; then the GPU itself
has none, so that nothing is counted twice. A GPU that was seen and is gone keeps its row, with a problem. One
that cannot even tell its UUID has a row with the UUID `index:N`.
"""

from __future__ import annotations

import logging
import threading
import time
from _ctypes import dlclose
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from typing import Any

import msgspec
import pynvml

from brimline.errors import GpuError
from brimline.readings import DeviceReading, GpuReading, Uuid

logger = logging.getLogger(__name__)

CLOSE_SECONDS = 0.15

REASONS: dict[int, str] = {
    pynvml.NVML_ERROR_UNINITIALIZED: "uninitialized",
    pynvml.NVML_ERROR_NOT_SUPPORTED: "not_supported",
    pynvml.NVML_ERROR_NO_PERMISSION: "no_permission",
    pynvml.NVML_ERROR_OPERATING_SYSTEM: "no_permission",
    pynvml.NVML_ERROR_NOT_FOUND: "gpu_lost",
    pynvml.NVML_ERROR_GPU_NOT_FOUND: "gpu_lost",
    pynvml.NVML_ERROR_GPU_IS_LOST: "gpu_lost",
    pynvml.NVML_ERROR_RESET_REQUIRED: "gpu_lost",
    pynvml.NVML_ERROR_DRIVER_NOT_LOADED: "driver_not_loaded",
    pynvml.NVML_ERROR_LIB_RM_VERSION_MISMATCH: "driver_mismatch",
    pynvml.NVML_ERROR_LIBRARY_NOT_FOUND: "library_not_found",
    pynvml.NVML_ERROR_FUNCTION_NOT_FOUND: "old_driver",
    pynvml.NVML_ERROR_ARGUMENT_VERSION_MISMATCH: "old_driver",
}

# Nothing works until the library is started anew.
_NEEDS_RESTART = {
    pynvml.NVML_ERROR_UNINITIALIZED,
    pynvml.NVML_ERROR_DRIVER_NOT_LOADED,
    pynvml.NVML_ERROR_LIB_RM_VERSION_MISMATCH,
}
# The driver may be replaced on disk meanwhile, and the library with it.
_NEEDS_RELOAD = {
    pynvml.NVML_ERROR_DRIVER_NOT_LOADED,
    pynvml.NVML_ERROR_LIB_RM_VERSION_MISMATCH,
    pynvml.NVML_ERROR_FUNCTION_NOT_FOUND,
}
_LACKS_MEMORY_V2 = {
    pynvml.NVML_ERROR_FUNCTION_NOT_FOUND,
    pynvml.NVML_ERROR_ARGUMENT_VERSION_MISMATCH,
    pynvml.NVML_ERROR_NOT_SUPPORTED,
}
_LASTING = {"not_supported", "old_driver"}  # a new handle would not help
_MENDED_BY_RESTART = {"gpu_lost", "unknown"}

_NOT_AVAILABLE = pynvml.NVML_VALUE_NOT_AVAILABLE_ulonglong.value
_CODE_NAMES: dict[int, str] = {
    getattr(pynvml, name): name.removeprefix("NVML_ERROR_")
    for name in dir(pynvml)
    if name.startswith("NVML_ERROR_")
}


class _CallError(GpuError):
    """NVML answered with an error code."""

    def __init__(self, function: str, code: int) -> None:
        # str(NVMLError) is not used: for a code that the binding does not know it calls into the library.
        super().__init__(
            REASONS.get(code, "unknown"), f"{function}: {_CODE_NAMES.get(code, 'error')} ({code})"
        )
        self.code = code


def _call(function: str, *arguments: Any) -> Any:
    try:
        return getattr(pynvml, function)(*arguments)
    except pynvml.NVMLError as error:
        raise _CallError(function, error.value) from None


class _Gate:
    """Lets calls into the library pass side by side; holds them back while it is shut down or unloaded.

    A call is made within `with`.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._changed = threading.Condition(self._lock)
        self._inside = 0
        self._shut = False

    def __enter__(self) -> None:
        with self._lock:
            if self._shut:
                self._changed.wait_for(lambda: not self._shut)
            self._inside += 1

    def __exit__(self, *_failure: object) -> None:
        with self._lock:
            self._inside -= 1
            if self._shut:
                self._changed.notify_all()

    @contextmanager
    def shut(self, patience: float) -> Iterator[bool]:
        """True inside where all calls had come back within `patience` seconds; else the gate stays open."""
        with self._changed:
            self._changed.wait_for(lambda: not self._shut)
            self._shut = True
            quiet = self._changed.wait_for(lambda: not self._inside, patience)
            self._shut = quiet
            self._changed.notify_all()
        try:
            yield quiet
        finally:
            if quiet:
                with self._changed:
                    self._shut = False
                    self._changed.notify_all()


# One for the process, like the library: unloading it under a call that an earlier sampler left hanging
# would crash.
_GATE = _Gate()


def _unload() -> None:
    """Drop the library, so that the next start loads the file that then lies on disk."""
    library = pynvml.nvmlLib
    pynvml.nvmlLib = None
    pynvml._nvmlGetFunctionPointer_cache.clear()  # else calls would go on into the old one
    if library is not None:
        dlclose(library._handle)  # else the loader hands out the old one again


class _Backoff:
    """Seconds to wait before each next try: doubling, from `first` to `longest`."""

    def __init__(self, first: float, longest: float) -> None:
        self._first = first
        self._longest = longest
        self.reset()

    def reset(self) -> None:
        self._next = min(self._first, self._longest)

    def next(self) -> float:
        pause = self._next
        self._next = min(2 * pause, self._longest)
        return pause


Peaks = tuple[tuple[float, int], ...]  # falling values, each with its time


class _PeakWindow:
    """The highest value of the last seconds."""

    def __init__(self) -> None:
        self._falling: deque[tuple[float, int]] = deque()  # a value is out once a later one is as high

    def add(self, now: float, value: int, seconds: float) -> Peaks:
        """Take in a value; what is highest in the last `seconds`, and in each shorter while up to now."""
        while self._falling and self._falling[-1][1] <= value:
            self._falling.pop()
        self._falling.append((now, value))
        while self._falling[0][0] < now - seconds:
            self._falling.popleft()
        return tuple(self._falling)


def _highest_since(start: float, peaks: Peaks) -> int | None:
    """The highest value since then, the newest at least: a sample grows older while it is shown."""
    return next((value for time, value in peaks if time >= start), peaks[-1][1] if peaks else None)


class _Memory(msgspec.Struct, frozen=True):
    api: str
    total_bytes: int
    used_bytes: int
    free_bytes: int | None
    reserved_bytes: int | None


def _read_memory(handle: Any, *, lacks_v2: bool) -> _Memory:
    """The memory of a device, by version 2 of the call unless that is lacking. Raises GpuError."""
    if not lacks_v2:
        try:
            return _memory("v2", _call("nvmlDeviceGetMemoryInfo", handle, pynvml.nvmlMemory_v2))
        except _CallError as failure:
            if failure.code not in _LACKS_MEMORY_V2:
                raise
    return _memory("v1", _call("nvmlDeviceGetMemoryInfo", handle))


def _memory(api: str, answer: Any) -> _Memory:
    def stated(name: str) -> int | None:
        value: int | None = getattr(answer, name, None)
        return None if value == _NOT_AVAILABLE else value

    total, used = stated("total"), stated("used")
    # GPUs that share the main memory (GB10, Jetson) answer with an error, with zeros or with nonsense.
    if not total or used is None or used > total:
        raise GpuError("not_supported", f"nvmlDeviceGetMemoryInfo: {used} of {total} bytes used")
    return _Memory(api, total, used, stated("free"), stated("reserved"))


def _read_processes(handle: Any) -> dict[int, int | None] | None:
    """The processes on a device with their memory; None where they cannot be listed.

    The memory is None where the driver does not tell it (WDDM, MIG without permission, another namespace).
    """
    try:
        # By the names with a version: those without hide a missing function behind another exception.
        listed = [
            *_call("nvmlDeviceGetComputeRunningProcesses_v3", handle),
            *_call("nvmlDeviceGetGraphicsRunningProcesses_v3", handle),
        ]
    except _CallError:
        return None
    found: dict[int, int | None] = {}
    for process in listed:
        # One that computes and draws stands on both lists with the same memory.
        found[process.pid] = found.get(process.pid) or process.usedGpuMemory
    return found


def _read_power_limit(handle: Any) -> float | None:
    """Watts that a device may draw, by whichever limit is the lowest; None where the driver does not tell."""
    try:
        milliwatts: int = _call("nvmlDeviceGetEnforcedPowerLimit", handle)
    except _CallError:
        return None
    return milliwatts / 1000 if milliwatts > 0 else None


@dataclass(frozen=True, slots=True)
class _Identity:
    uuid: Uuid
    index: str
    name: str | None


class _Sample(msgspec.Struct, frozen=True):
    """What the last try to read a device gave. time: when the try began; the memory is no older than that."""

    time: float
    memory: _Memory | None = None
    peaks: Peaks = ()
    processes: Mapping[int, int | None] | None = None
    power_limit_watts: float | None = None
    problem: str | None = None
    detail: str = ""


@dataclass(frozen=True, slots=True)
class _Library:
    """The state of the library. generation: counts up whenever handles taken before may be worthless.

    restarting: it is being shut down and started anew, which the last values may outlive.
    since: when it was last started.
    """

    ready: bool = False
    restarting: bool = False
    generation: int = 0
    since: float = 0.0
    driver: str | None = None
    count: int = 0
    problem: str | None = "uninitialized"
    detail: str = "the library is being started"


class _Wake:
    """Wakes the one thread that waits, or the next time that it is to wait.

    An Event makes a lock for each wait, and a dozen calls, which at rest is a third of all that is done.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._lock.acquire()

    def set(self) -> None:
        with suppress(RuntimeError):  # it is set
            self._lock.release()

    def wait(self, timeout: float | None) -> None:
        self._lock.acquire(timeout=-1 if timeout is None else timeout)


class _Device:
    """A GPU or MIG instance and the thread that reads it. Only that thread writes; anybody reads."""

    def __init__(self, sampler: NvmlSampler, name: str) -> None:
        self.identity: _Identity | None = None
        self.sample: _Sample | None = None
        self.api = "none"  # the last one that worked, so that a lost GPU keeps its labels
        self.busy_since: float | None = None
        self.retired = False
        self.wake = _Wake()
        self.running = False
        self._running_lock = threading.Lock()
        self._name_of_thread = name
        self._sampler = sampler
        self._backoff = sampler.backoff()
        self._peak = _PeakWindow()
        self._v2_lacking_since: float | None = None
        self._processes: dict[int, int | None] | None = None
        self._processes_time: float | None = None
        self._power_limit_watts: float | None = None
        self._power_limit_time: float | None = None

    def run(self) -> None:
        """See to it that one thread reads the device; one that hangs is that thread."""
        with self._running_lock:
            if self.running:
                return
            self.running = True
        threading.Thread(target=self._run, name=self._name_of_thread, daemon=True).start()

    def _run(self) -> None:
        while self._goes_on():
            pause = self._try()
            self.wake.wait(pause)

    def _goes_on(self) -> bool:
        # In one step with run(): else a sampler that is used again just now might be left without a thread.
        with self._running_lock:
            self.running = not (self.retired or self._sampler.stopping.is_set())
            return self.running

    def _try(self) -> float | None:
        """Read the device once; the seconds until the next try, or None to wait until woken."""
        started = self._sampler.clock()
        self.busy_since = started
        library = self._sampler.library
        try:
            with _GATE:
                library = self._sampler.library
                return self._visit(library, started) if library.ready else None
        except GpuError as failure:
            return self._failed(failure, library, started)
        except Exception as error:  # noqa: BLE001 - the edge of a source: a defect here must show as a problem
            return self._failed(GpuError("unknown", repr(error)), library, started)
        finally:
            self.busy_since = None

    def _visit(self, library: _Library, started: float) -> float | None:
        raise NotImplementedError

    def _read(self, handle: Any, started: float) -> float:
        since = self._v2_lacking_since
        # Asked again now and then: the two versions count different bytes as used.
        lacks_v2 = since is not None and started - since < self._sampler.recount_interval
        memory = _read_memory(handle, lacks_v2=lacks_v2)
        self.api = memory.api
        if not lacks_v2:
            self._v2_lacking_since = started if memory.api == "v1" else None
        interval = self._sampler.process_interval
        if interval is None:
            self._processes, self._processes_time = None, None
        elif self._processes_time is None or started - self._processes_time >= interval:
            self._processes, self._processes_time = _read_processes(handle), started
        # It changes by an administrator's hand, if ever.
        asked = self._power_limit_time
        if asked is None or started - asked >= self._sampler.recount_interval:
            self._power_limit_watts, self._power_limit_time = _read_power_limit(handle), started
        self._backoff.reset()
        peaks = self._peak.add(started, memory.used_bytes, self._sampler.peak_window)
        self.sample = _Sample(started, memory, peaks, self._processes, self._power_limit_watts)
        interval = self._sampler.sample_interval
        return min(max(interval - (self._sampler.clock() - started), 0.0), interval)

    def _failed(self, failure: GpuError, library: _Library, started: float) -> float:
        self.sample = _Sample(started, problem=failure.reason, detail=str(failure))
        self._processes_time = self._power_limit_time = None
        if isinstance(failure, _CallError) and failure.code in _NEEDS_RESTART:
            self._sampler.ask_restart(failure.code, library.generation)
        if failure.reason in _LASTING:
            self.api = "none"
            self._v2_lacking_since = None
            return self._sampler.sample_interval
        return self._backoff.next()


class _Instance(_Device):
    """A MIG instance; its GPU finds it and gives it its handle."""

    def __init__(self, sampler: NvmlSampler, card: _Card, identity: _Identity) -> None:
        super().__init__(sampler, f"nvml-{identity.index}")
        self.uuid = identity.uuid
        self.index = identity.index
        self.identity = identity
        self._card = card
        self._given: tuple[int, Any] | None = None  # generation and handle, exchanged in one go

    def give(self, identity: _Identity, generation: int, handle: Any) -> None:
        self.index = identity.index
        self.identity = identity
        self._given = (generation, handle)
        self.wake.set()

    def _visit(self, library: _Library, started: float) -> float | None:
        if self._given is None or self._given[0] != library.generation:
            self._card.look_again()
            return None
        return self._read(self._given[1], started)

    def _failed(self, failure: GpuError, library: _Library, started: float) -> float:
        if failure.reason not in _LASTING:
            self._given = None
        return super()._failed(failure, library, started)


class _Card(_Device):
    """The GPU at one NVML index, or the instances that it is cut into."""

    def __init__(self, sampler: NvmlSampler, number: int) -> None:
        super().__init__(sampler, f"nvml-{number}")
        self.number = number
        self.instances: tuple[_Instance, ...] = ()
        self._stuck: list[_Instance] = []
        self._handle: Any = None
        self._generation: int | None = None
        self._mig_on: bool | None = None
        self._looked = 0.0

    def look_again(self) -> None:
        """Take a new handle and find the instances anew, at the next try."""
        self._generation = None
        self.wake.set()

    def _visit(self, library: _Library, started: float) -> float | None:
        if self.number >= library.count:
            return None
        if self._generation != library.generation:
            self._acquire(library, started)
        elif self._mig_on is not None and started - self._looked >= self._sampler.recount_interval:
            self._looked = started
            if self._mig_on or self._has_mig_on(self._handle):
                self._acquire(library, started)
        if self.instances:
            self._backoff.reset()
            self.sample = None
            return self._sampler.recount_interval
        return self._read(self._handle, started)

    def _failed(self, failure: GpuError, library: _Library, started: float) -> float:
        if failure.reason not in _LASTING or self._generation is None:
            self._generation = None
            self._sampler.ask_recount()
        return super()._failed(failure, library, started)

    def _acquire(self, library: _Library, started: float) -> None:
        self._generation = None  # stays so where any of this fails
        handle = _call("nvmlDeviceGetHandleByIndex", self.number)
        uuid = Uuid(_call("nvmlDeviceGetUUID", handle))
        if self.identity is not None and self.identity.uuid != uuid:
            # Another GPU has this index now.
            self._peak = _PeakWindow()
            self._retire(self.instances)
            self.sample = None
            self.api = "none"
        identity = _Identity(uuid, str(self.number), self._name(handle))
        self._v2_lacking_since = None
        self._mig_on = self._has_mig_on(handle)
        self._find_instances(handle, library.generation)
        self.identity = identity
        if self.instances:
            self._sampler.forget(uuid)
        else:
            self._sampler.remember(identity)
        self._handle, self._generation, self._looked = handle, library.generation, started

    def _name(self, handle: Any) -> str | None:
        try:
            return str(_call("nvmlDeviceGetName", handle))
        except _CallError:
            return None

    def _has_mig_on(self, handle: Any) -> bool | None:
        """Whether MIG is on; None where this GPU has no such mode."""
        try:
            current, _pending = _call("nvmlDeviceGetMigMode", handle)
        except _CallError as failure:
            if failure.reason == "no_permission":
                return True  # the instances may be readable where their GPU is not
            if self.instances and failure.code != pynvml.NVML_ERROR_NOT_SUPPORTED:
                raise
            return None
        return bool(current)

    def _find_instances(self, handle: Any, generation: int) -> None:
        found: dict[Uuid, tuple[_Identity, Any]] = {}
        refused: set[str] = set()
        if self._mig_on:
            try:
                most = _call("nvmlDeviceGetMaxMigDeviceCount", handle)
            except _CallError:
                if self.instances:
                    raise
                most = 0
            for number in range(most):
                index = f"{self.number}.{number}"
                try:
                    instance = _call("nvmlDeviceGetMigDeviceHandleByIndex", handle, number)
                    identity = _Identity(
                        Uuid(_call("nvmlDeviceGetUUID", instance)), index, self._name(instance)
                    )
                except _CallError as failure:
                    if failure.code != pynvml.NVML_ERROR_NOT_FOUND:
                        refused.add(index)
                    continue
                found[identity.uuid] = (identity, instance)
        # One that did not answer may be back; one whose place is empty was taken away by the administrator.
        gone = [one for one in self.instances if one.uuid not in found and one.index not in refused]
        self._retire(gone)
        for one in gone:
            self._sampler.forget(one.uuid)
        kept = {one.uuid: one for one in self.instances}
        self._stuck = [one for one in self._stuck if one.running]
        for uuid, (identity, instance) in found.items():
            if any(one.uuid == uuid for one in self._stuck):
                continue  # its old thread still hangs in a call; a second one is not sent after it
            self._sampler.remember(identity)
            if uuid not in kept:
                kept[uuid] = _Instance(self._sampler, self, identity)
            kept[uuid].give(identity, generation, instance)
            kept[uuid].run()
        self.instances = tuple(kept.values())

    def _retire(self, instances: Sequence[_Instance]) -> None:
        for one in instances:
            one.retired = True
            one.wake.set()
        self._stuck.extend(instances)
        self.instances = tuple(one for one in self.instances if one not in instances)


class NvmlSampler:
    """Samples the memory of every GPU each `sample_interval` seconds, on its own threads.

    clock: seconds that only go forward.
    first_retry, longest_retry: pauses after failures, doubling in between.
    recount_interval: how often the GPUs are counted; when one has been lost for as long, the library is
    started anew for its sake.
    """

    def __init__(
        self,
        sample_interval: float,
        peak_window: float,
        *,
        clock: Callable[[], float] = time.monotonic,
        process_interval: float | None = None,
        first_retry: float = 1.0,
        longest_retry: float = 30.0,
        recount_interval: float = 60.0,
    ) -> None:
        self.sample_interval = sample_interval
        self.peak_window = peak_window
        self.clock = clock
        self.process_interval = process_interval
        self.recount_interval = recount_interval
        self.stopping = threading.Event()
        self.library = _Library()
        self._first_retry = first_retry
        self._longest_retry = longest_retry
        self._cards: tuple[_Card, ...] = ()
        self._known: dict[Uuid, _Identity] = {}
        self._lock = threading.Lock()
        self._asked = threading.Event()
        self._restart_wanted: tuple[int, int] | None = None  # error code, generation
        self._busy_since: float | None = None
        self._restart_for_lost_at: float | None = None
        self._restart_for_lost = _Backoff(recount_interval, 10 * recount_interval)
        self._reopened_at = 0.0
        self._supervisor: threading.Thread | None = None  # None once it has decided to end
        self._log_lock = threading.Lock()
        # Whether it is up, and the reason that it is not or not quite.
        self._logged: dict[str | None, tuple[bool, str | None]] = {}

    @property
    def _oldest_seconds(self) -> float:
        """How old a value may be."""
        # The half second is for a machine whose processors are all taken.
        return max(2 * self.sample_interval, self.sample_interval + 0.5)

    def start(self) -> None:
        """Begin to load the library and to sample; returns at once."""
        if self.stopping.is_set():
            return
        if self.library.ready:
            # close() could not shut the library down under a call that hangs, or is about to. The call may be
            # the supervisor's own, so that it would not start the GPUs' threads again.
            self._run_devices()
        with self._lock:
            if self._supervisor is not None:
                return
            self._supervisor = supervisor = threading.Thread(target=self._supervise, name="nvml", daemon=True)
        supervisor.start()

    def close(self) -> None:
        """Stop sampling. Threads whose call hangs are left behind; they do not keep the process alive."""
        self.stopping.set()
        self._asked.set()
        self._wake_devices()
        supervisor = self._supervisor
        if supervisor is not None:
            supervisor.join(CLOSE_SECONDS)

    def reopen(self, sample_interval: float, peak_window: float, *, process_interval: float | None) -> None:
        """Take other settings after close(), for the next start()."""
        self.sample_interval = sample_interval
        self.peak_window = peak_window
        self.process_interval = process_interval
        self._reopened_at = self.clock()
        self.stopping.clear()

    # What the devices' threads ask for.

    def backoff(self) -> _Backoff:
        """Pauses after failures, from the beginning."""
        return _Backoff(self._first_retry, self._longest_retry)

    def ask_restart(self, code: int, generation: int) -> None:
        """The library of that generation gave an error that only starting it anew cures."""
        with self._lock:
            self._restart_wanted = (code, generation)
        self._asked.set()

    def ask_recount(self) -> None:
        """A GPU could not be reached; it may be gone."""
        self._asked.set()

    def remember(self, identity: _Identity) -> None:
        """This device has a row from now on, also when it is lost."""
        with self._lock:
            self._known = {**self._known, identity.uuid: identity}

    def forget(self, uuid: Uuid) -> None:
        """This device has a row no more."""
        with self._lock:
            self._known = {known: identity for known, identity in self._known.items() if known != uuid}

    # The supervisor: loads, starts, counts, starts anew.

    def _supervise(self) -> None:
        while True:
            self._supervise_until_closed()
            with self._lock:
                if self.stopping.is_set():
                    self._supervisor = None
                    return

    def _supervise_until_closed(self) -> None:
        backoff = self.backoff()
        if self.library.ready:
            self._publish_ready(self.library.count, self.library.driver)
        while not self.stopping.is_set():
            if self.library.ready and self.library.problem is None:
                pause = self.recount_interval
                backoff.reset()
            else:
                pause = backoff.next()
            if self.library.ready:
                self._asked.wait(pause)
                self._asked.clear()
                if not self.stopping.is_set():
                    self._guarded(self._look_after)
            elif not self._guarded(self._initialise):
                self._asked.wait(pause)
                self._asked.clear()
        with _GATE.shut(CLOSE_SECONDS / 2) as quiet:
            if quiet and self.library.ready:
                self.library = replace(self.library, ready=False, restarting=True, problem=None, detail="")
                with suppress(_CallError):
                    _call("nvmlShutdown")

    def _guarded(self, step: Callable[[], bool]) -> bool:
        """Do one step of the supervisor; False where it failed or did nothing."""
        self._busy_since = self.clock()
        try:
            return step()
        except Exception as error:  # noqa: BLE001 - the edge of a source: a defect here must show as a problem
            self.library = replace(self.library, restarting=False, problem="unknown", detail=repr(error))
            return False
        finally:
            self._busy_since = None

    def _initialise(self) -> bool:
        started = False
        try:
            with _GATE:
                _call("nvmlInit")
                started = True
                count = _call("nvmlDeviceGetCount")
                driver = self._driver()
            if not count:
                raise GpuError("no_gpus", "nvmlDeviceGetCount: 0")
        except GpuError as failure:
            self.library = replace(
                self.library, restarting=False, problem=failure.reason, detail=str(failure)
            )
            self._take_down(failure.code if isinstance(failure, _CallError) else None, started=started)
            return False
        self._publish_ready(count, driver)
        return True

    def _driver(self) -> str | None:
        try:
            return str(_call("nvmlSystemGetDriverVersion"))
        except _CallError:
            return None

    def _publish_ready(self, count: int, driver: str | None) -> None:
        if len(self._cards) < count:
            self._cards += tuple(_Card(self, number) for number in range(len(self._cards), count))
        self.library = _Library(
            ready=True,
            generation=self.library.generation + 1,
            since=self.clock(),
            driver=driver,
            count=count,
            problem=None,
            detail="",
        )
        self._run_devices()

    def _look_after(self) -> bool:
        """Start the library anew where that is asked for and safe; else count the GPUs."""
        with self._lock:
            wanted, self._restart_wanted = self._restart_wanted, None
        if wanted is not None and wanted[1] == self.library.generation:
            return self._restart(wanted[0])
        if self._lost_one_is_due():
            return self._restart(None)
        try:
            with _GATE:
                count = _call("nvmlDeviceGetCount")
        except _CallError as failure:
            if failure.code in _NEEDS_RESTART:
                return self._restart(failure.code)
            self.library = replace(self.library, problem=failure.reason, detail=str(failure))
            return False
        if not count:
            self.library = replace(self.library, problem="no_gpus", detail="nvmlDeviceGetCount: 0")
            return self._restart(None)
        if count != self.library.count:
            self._publish_ready(count, self.library.driver)
        elif self.library.problem is not None:
            self.library = replace(self.library, problem=None, detail="")
        return True

    def _lost_one_is_due(self) -> bool:
        """True when a GPU has been lost for long enough that all others may be disturbed for its sake."""
        lost = any(
            device.sample is not None and device.sample.problem in _MENDED_BY_RESTART
            for card in self._cards[: self.library.count]
            for device in (card, *card.instances)
        )
        if not lost:
            self._restart_for_lost_at = None
            self._restart_for_lost.reset()
            return False
        now = self.clock()
        due = self._restart_for_lost_at is not None and now >= self._restart_for_lost_at
        if due or self._restart_for_lost_at is None:
            self._restart_for_lost_at = now + self._restart_for_lost.next()
        return due

    def _restart(self, code: int | None) -> bool:
        """Shut the library down and start it; False where a hanging call forbids it, or the start fails."""
        if not self._take_down(code, started=True):
            if code != pynvml.NVML_ERROR_UNINITIALIZED:
                return False
            # The library says of itself that it is not started: there is nothing to shut down under the call.
            self.library = replace(self.library, ready=False, restarting=True)
        return self._initialise()

    def _take_down(self, code: int | None, *, started: bool) -> bool:
        """Shut the library down, and unload it where its file may be replaced; False where a call hangs."""
        with _GATE.shut(min(self.sample_interval, 0.5)) as quiet:
            if quiet:
                if self.library.ready:
                    self.library = replace(self.library, ready=False, restarting=True)
                if started:
                    with suppress(_CallError):
                        _call("nvmlShutdown")
                if code in _NEEDS_RELOAD:
                    _unload()
            return quiet

    def _run_devices(self) -> None:
        for card in self._cards:
            for device in (card, *card.instances):
                device.run()
        self._wake_devices()

    def _wake_devices(self) -> None:
        for card in self._cards:
            for device in (card, *card.instances):
                device.wake.set()

    # The reader's side.

    def read(self) -> GpuReading:
        """The newest samples, each at most two sample intervals old. Never calls NVML, never waits.

        Up while any GPU's memory is known: what is wrong with the library then, such as a count that hangs,
        is in `detail` only.
        """
        now = self.clock()
        library = self.library
        busy_since = self._busy_since
        reason, detail = library.problem, library.detail
        if busy_since is not None and now - busy_since > self._oldest_seconds:
            reason, detail = "hang", "a call that concerns all GPUs has not come back"
        elif self.stopping.is_set():
            reason, detail = "uninitialized", "closed"
        rows = self._rows(now, library, reason, detail)
        if reason is None and not any(card.identity is not None for card in self._cards):
            problems = [row for row in rows.values() if row.problem is not None]
            reason = (problems[0].problem if problems else None) or "uninitialized"
            detail = problems[0].detail if problems else "the GPUs are being read for the first time"
        devices = sorted(rows.values(), key=lambda row: [int(part) for part in row.index.split(".")])
        up = reason is None or any(device.used_bytes is not None for device in devices)
        problem = None if up else reason
        reading = GpuReading(up=up, problem=problem, detail=detail, devices=tuple(devices))
        self._log_changes(reading, reason, library)
        return reading

    def _rows(
        self, now: float, library: _Library, problem: str | None, detail: str
    ) -> dict[Uuid, DeviceReading]:
        rows: dict[Uuid, DeviceReading] = {}
        for card in self._cards[: library.count]:
            for device in card.instances or (card,):
                row = self._row(device, card, now, library, problem, detail)
                if row is not None and (row.uuid not in rows or row.used_bytes is not None):
                    rows[row.uuid] = row
        for uuid, identity in self._known.items():
            if uuid not in rows:
                rows[uuid] = DeviceReading(
                    uuid=uuid, index=identity.index, name=identity.name, driver=library.driver,
                    problem="gpu_lost", detail="the driver no longer lists it",
                )  # fmt: skip
        return rows

    def _row(
        self, device: _Device, card: _Card, now: float, library: _Library, problem: str | None, detail: str
    ) -> DeviceReading | None:
        # Each once: the device's thread writes them meanwhile.
        identity, sample, busy_since = device.identity, device.sample, device.busy_since
        index = identity.index if identity is not None else str(card.number)

        def row(memory_api: str = device.api, **more: Any) -> DeviceReading:
            return DeviceReading(
                uuid=identity.uuid if identity is not None else Uuid(f"index:{index}"),
                index=index,
                name=identity.name if identity is not None else None,
                driver=library.driver,
                memory_api=memory_api,
                **more,
            )

        if not library.ready and problem is not None:
            # Of a driver that lists no GPU, each one that was there is lost.
            return row(problem="gpu_lost" if problem == "no_gpus" else problem, detail=detail)
        memory = sample.memory if sample is not None else None
        if sample is not None and memory is not None and now - sample.time <= self._oldest_seconds:
            return row(
                memory.api,
                total_bytes=memory.total_bytes,
                used_bytes=memory.used_bytes,
                free_bytes=memory.free_bytes,
                reserved_bytes=memory.reserved_bytes,
                used_peak_bytes=_highest_since(now - self.peak_window, sample.peaks),
                power_limit_watts=sample.power_limit_watts,
                processes=sample.processes,
            )
        if busy_since is not None and library.ready and now - busy_since > self._oldest_seconds:
            return row(problem="hang", detail=f"a call on GPU {index} has not come back")
        if sample is not None and sample.problem is not None:
            return row(problem=sample.problem, detail=sample.detail)
        if device is not card and card.sample is not None and card.sample.problem is not None:
            return row(problem=card.sample.problem, detail=card.sample.detail)
        if library.restarting:
            return row(problem="uninitialized", detail="the library is being restarted")
        if sample is None and identity is None:
            return None
        if sample is None or sample.time < max(library.since, self._reopened_at):
            return row(problem="uninitialized", detail="not read since the sampling was started")
        return row(problem="hang", detail=f"the last answer of GPU {index} was asked for too long ago")

    def _log_changes(self, reading: GpuReading, reason: str | None, library: _Library) -> None:
        """One line for each state that differs from the last reading's. reason: of the library as a whole."""
        if not self._log_lock.acquire(blocking=False):
            return  # another reader is at it
        try:
            states: dict[str | None, tuple[bool, str | None, str]] = {
                None: (bool(reading.up), reason, reading.detail)
            }
            for device in reading.devices:
                states[device.uuid] = (device.problem is None, device.problem, device.detail)
            for uuid, (up, problem, detail) in states.items():
                before = self._logged.get(uuid, (False, "uninitialized") if uuid is None else (True, None))
                if before == (up, problem):
                    continue
                self._logged[uuid] = (up, problem)
                what = "nvml" if uuid is None else f"gpu={uuid}"
                if problem is not None:
                    logger.warning("%s up=%s reason=%s detail=%r", what, str(up).lower(), problem, detail)
                elif uuid is None:
                    logger.info("%s up=true driver=%s gpus=%d", what, library.driver, library.count)
                else:
                    logger.info("%s up=true", what)
        finally:
            self._log_lock.release()


_OF_THIS_PROCESS: list[NvmlSampler] = []


def process_sampler(
    sample_interval: float, peak_window: float, *, process_interval: float | None = None
) -> NvmlSampler:
    """A sampler with these settings, to be started: one that was closed before, where there is one.

    It still waits for the calls that hang, and still has the peaks. Two that are in use at once know nothing
    of each other; the exporter closes one before it opens the next.
    """
    for sampler in _OF_THIS_PROCESS:
        if sampler.stopping.is_set():
            sampler.reopen(sample_interval, peak_window, process_interval=process_interval)
            return sampler
    sampler = NvmlSampler(sample_interval, peak_window, process_interval=process_interval)
    _OF_THIS_PROCESS.append(sampler)
    return sampler
