"""Kubernetes pods as targets: those of a node that say so by annotation, watched through the API server.

The only door to the official client (the extra `kubernetes`), which is imported when the watch starts.
"""

from __future__ import annotations

import ipaddress
import json
import logging
import math
import random
import re
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass
from typing import Any, cast

import msgspec

from brimline import __version__
from brimline.config import KubernetesConfig, Role, Target, check_target
from brimline.errors import ConfigError
from brimline.extras import install_command
from brimline.readings import DiscoveryReading
from brimline.spelling import known_names
from brimline.strict_yaml import Place, Source

logger = logging.getLogger(__name__)

PREFIX = "brimline.io/"
SOURCE = "kubernetes"
PAGE_PODS = 250
MAX_EVENT_BYTES = 8 << 20
MAX_PAGE_BYTES = 64 << 20
# The API server ends a watch after so long; that it is begun anew says that the list is of now.
WATCH_SECONDS = 60
CONNECT_SECONDS = 5.0
FIRST_RETRY_SECONDS, LAST_RETRY_SECONDS = 1.0, 60.0
SHOWN_PROBLEMS = 5
# Addresses of pods that ended are given to others, of any namespace, and a list that old does not tell.
KEEP_CREDENTIALS_SECONDS = 300.0

Pod = Mapping[str, Any]
# The answer to a list or watch of pods: its namespace (None for all), and further parameters.
Ask = Callable[..., Any]


def node_name(kubernetes: KubernetesConfig, environ: Mapping[str, str]) -> str | None:
    """The node whose pods count; None for all. Raises ConfigError where nothing names it."""
    if kubernetes.node == "*":
        return None
    variable = re.fullmatch(r"\$\{(.*)\}", kubernetes.node)
    if variable is None:
        return kubernetes.node
    name = environ.get(variable.group(1), "")
    if not name:
        raise ConfigError(
            f"kubernetes.node: the environment variable {variable.group(1)} is not set; set it in the pod by "
            'fieldRef: spec.nodeName, or write the name of the node, or "*" for all nodes'
        )
    return name


# --- a pod as a target ---

_ANNOTATIONS = (
    "engine",
    "experiment",
    "launch-command",
    "metrics-path",
    "model",
    "port",
    "role",
    "scheme",
    "scrape",
    "variant",
)


class _Annotations(Source):
    """The annotations of a pod, as what an error is about."""

    def error(self, place: Place, what: str) -> ConfigError:
        key = str(place[-1]).replace("_", "-") if place else ""
        where = f"annotation {PREFIX}{key}: " if key in _ANNOTATIONS else ""
        return ConfigError(f"pod {self.name}: {where}{what}")


def pod_target(pod: Pod, kubernetes: KubernetesConfig, models: Mapping[str, str]) -> Target | None:
    """The pod as a target; None where it does not ask to be one, or does not run. Raises ConfigError."""
    metadata, status = pod.get("metadata") or {}, pod.get("status") or {}
    annotations = metadata.get("annotations") or {}
    said = {
        name.removeprefix(PREFIX): value for name, value in annotations.items() if name.startswith(PREFIX)
    }
    wanted = said.get("scrape", "false")
    address = status.get("podIP")
    name = f"{metadata.get('namespace', '')}/{metadata.get('name', '')}"
    source = _Annotations(name)

    def refuse(key: str, what: str) -> ConfigError:
        return ConfigError(f"pod {name}: annotation {PREFIX}{key}: {what}")

    if wanted not in ("true", "false"):
        raise refuse("scrape", f'{wanted[:60]!r} is neither; write "true" or "false"')
    if wanted == "false" or status.get("phase") != "Running" or not address:
        return None
    for key in said:
        if key not in _ANNOTATIONS:
            raise refuse(key[:60], f"unknown; {known_names(key, _ANNOTATIONS)}")
    common = kubernetes.targets
    plain = "http" if common.tls is None else "https"
    scheme, engine, role = said.get("scheme", plain), said.get("engine", "auto"), said.get("role", "")
    for key, value, known in (
        ("scheme", scheme, ("http", "https")),
        ("role", role, ("", "baseline", "candidate")),
    ):
        if value not in known:
            raise refuse(key, f"unknown {value[:60]!r}; {known_names(value, filter(None, known))}")
    if scheme == "http" and common.tls is not None:
        raise refuse(
            "scheme",
            "the exporter's configuration has kubernetes.targets.tls, so that pods are asked by https only; "
            "remove the annotation",
        )
    model = said.get("model")
    if model is not None and model not in models:
        known_models = ", ".join(sorted(models)) or "none"
        raise refuse(
            "model",
            f"{model[:60]!r} is no name of models in the exporter's configuration; known: {known_models}",
        )
    port = _port(pod, said.get("port"), refuse)
    if common.has_credentials and (_is_on_host_network(pod) or not _is_address_of_pods(address)):
        raise ConfigError(
            f"pod {name}: it has no address of its own (hostNetwork), and credentials of kubernetes.targets "
            "would go to the node itself; give it one, or name the server in targets"
        )
    host = f"[{address}]" if ":" in address else address
    target = Target(
        name=name,
        url=f"{scheme}://{host}:{port}",
        metrics_path=said.get("metrics-path"),
        engine=engine,
        model=None if model is None else models[model],
        experiment=said.get("experiment", ""),
        variant=said.get("variant", ""),
        role=cast(Role, role),
        launch_command=said.get("launch-command"),
        **msgspec.structs.asdict(common),
    )
    check_target(source, target, ())
    return target


def _port(pod: Pod, wanted: str | None, refuse: Callable[[str, str], ConfigError]) -> int:
    """The port by its number or name, or the only one of the pod."""
    containers = (pod.get("spec") or {}).get("containers") or []
    ports = [
        (str(port.get("name", "")), int(port["containerPort"]))
        for container in containers
        for port in container.get("ports") or []
        if port.get("protocol", "TCP") == "TCP"
    ]
    if wanted is None:
        if len(ports) != 1:
            raise refuse("port", f'is missing, and the pod has {len(ports)} ports; write one such as "8000"')
        return ports[0][1]
    if re.fullmatch(r"[0-9]{1,5}", wanted):
        if not 0 < int(wanted) < 65536:
            raise refuse("port", f'{wanted} is no port; write one such as "8000"')
        if _is_on_host_network(pod) and int(wanted) not in (number for _, number in ports):
            raise refuse(
                "port",
                f"{wanted} is a port of the node (hostNetwork) that the pod does not declare; add it to the "
                "ports of its container",
            )
        return int(wanted)
    for name, number in ports:
        if name == wanted:
            return number
    known = ", ".join(name for name, _ in ports if name) or "none"
    raise refuse("port", f"the pod has no port of the name {wanted[:60]!r}; known: {known}")


def _is_on_host_network(pod: Pod) -> bool:
    """True where the pod's address is that of its node, at which the kubelet and others listen as well."""
    status = pod.get("status") or {}
    return bool((pod.get("spec") or {}).get("hostNetwork")) or status.get("podIP") == status.get("hostIP")


def _is_address_of_pods(address: str) -> bool:
    """False for what no network gives to a pod: the exporter's own machine, or a cloud's metadata server."""
    try:
        ip = ipaddress.ip_address(address)
    except ValueError:
        return False
    ip = getattr(ip, "ipv4_mapped", None) or ip
    return not (ip.is_loopback or ip.is_link_local or ip.is_multicast or ip.is_unspecified)


def _without_credentials(target: Target) -> Target:
    tls = target.tls
    if tls is not None:
        tls = msgspec.structs.replace(tls, cert_file=None, key_file=None)
    return msgspec.structs.replace(target, bearer_token_file=None, basic_auth=None, headers={}, tls=tls)


# --- the watch ---


class PodsError(Exception):
    """The API server could not be asked, or its answer not be read."""


class _Expired(Exception):  # noqa: N818 - what it is, not what went wrong
    """The place where the watch goes on is forgotten: the pods must be listed anew."""


@dataclass(frozen=True, slots=True)
class _Known:
    """What is known of a pod: a target, or what is wrong with its annotations."""

    target: Target | None = None
    problem: str | None = None


class PodWatch:
    """Keeps the targets of pods, in a daemon thread for each namespace that is watched.

    changed: called from these threads. open_api: what asks the API server; see official_client.
    """

    def __init__(
        self,
        kubernetes: KubernetesConfig,
        models: Mapping[str, str],
        *,
        node: str | None,
        open_api: Callable[[KubernetesConfig], Ask],
        clock: Callable[[], float] = time.time,
        monotonic: Callable[[], float] = time.monotonic,
        first_retry_seconds: float = FIRST_RETRY_SECONDS,
    ) -> None:
        self._kubernetes = kubernetes
        self._models = models
        self._node = node
        self._open_api = open_api
        self._clock = clock
        self._monotonic = monotonic
        self._first_retry_seconds = first_retry_seconds
        self._stopped = threading.Event()
        self._changed: Callable[[], None] = lambda: None
        namespaces: list[str | None] = [*kubernetes.namespaces] or [None]
        self._watches = [_Watch(namespace) for namespace in namespaces]

    def start(self, changed: Callable[[], None]) -> None:
        """Begin to list and watch."""
        self._changed = changed
        for watch in self._watches:
            threading.Thread(
                target=self._run, args=(watch,), name=f"brimline-pods-{watch.shown}", daemon=True
            ).start()

    def stop(self) -> None:
        """End when the watches in flight do; nobody waits for them."""
        self._stopped.set()

    @property
    def is_known(self) -> bool:
        """True once every namespace was listed, or has said why not."""
        return all(watch.success_time is not None or watch.problem for watch in self._watches)

    def targets(self) -> tuple[Target, ...]:
        """Of the pods known last, by name; where that was long ago without credentials."""
        found: list[Target] = []
        for watch in self._watches:
            targets = (pod.target for pod in tuple(watch.pods.values()) if pod.target is not None)
            found += map(_without_credentials, targets) if self._is_old(watch) else targets
        return tuple(sorted(found, key=lambda it: it.name))

    def _is_old(self, watch: _Watch) -> bool:
        return self._monotonic() - watch.succeeded_at > KEEP_CREDENTIALS_SECONDS

    def annotation_problem(self) -> str | None:
        """What is wrong with pods that ask to be targets; None for nothing."""
        known = (pod.problem for watch in self._watches for pod in tuple(watch.pods.values()))
        problems = sorted(problem for problem in known if problem is not None)
        more = len(problems) - SHOWN_PROBLEMS
        return "\n".join(problems[:SHOWN_PROBLEMS] + ([f"and {more} more pods"] if more > 0 else [])) or None

    def reading(self) -> DiscoveryReading:
        """How well the pods are known."""
        times = [watch.success_time for watch in self._watches]
        said = [f"kubernetes {watch.shown}: {watch.problem}" for watch in self._watches if watch.problem]
        if (wrong := self.annotation_problem()) is not None:
            said.append(wrong)
        return DiscoveryReading(
            source=SOURCE,
            up=not said and None not in times,
            targets=len(self.targets()),
            success_time=None if None in times else min(time for time in times if time is not None),
            errors=sum(watch.errors for watch in self._watches),
            problem="\n".join(said) or None,
        )

    def _run(self, watch: _Watch) -> None:
        failures = 0
        ask: Ask | None = None
        while not self._stopped.is_set():
            began = time.monotonic()
            try:
                if ask is None:
                    ask = self._open_api(self._kubernetes)
                for _ in self._follow(watch, ask):
                    failures = 0
            except _Expired:
                watch.version = None  # no fault: the API server forgets after some minutes
                pause = self._pause(1)
            except Exception as error:  # the edge of one source: whatever fails, the pods known before stay
                if not isinstance(error, PodsError):
                    logger.debug("kubernetes %s", watch.shown, exc_info=error)
                self._fail(watch, str(error) if isinstance(error, PodsError) else _one_line(error))
                ask = None  # credentials and addresses are read anew
                watch.version = None
                failures += 1
                pause = self._pause(failures)
            else:
                # Something in between may end each watch at once.
                pause = 0.0 if time.monotonic() - began > 1.0 else self._pause(1)
            if self._stopped.wait(pause):
                return

    def _pause(self, failures: int) -> float:
        longest: float = min(self._first_retry_seconds * 2 ** min(failures - 1, 10), LAST_RETRY_SECONDS)
        return longest * random.uniform(0.5, 1.0)  # noqa: S311 - so that a fleet does not ask in step

    def _follow(self, watch: _Watch, ask: Ask) -> Iterator[None]:
        """List once, then watch until the API server ends it. Yields where it has answered well."""
        selectors: dict[str, str] = {}
        if self._node is not None:
            selectors["fieldSelector"] = f"spec.nodeName={self._node}"
        if self._kubernetes.selector:
            selectors["labelSelector"] = self._kubernetes.selector
        if watch.version is None:
            pods, watch.version = self._listed(watch, ask, selectors)
            if pods != watch.pods:
                watch.pods = pods
            self._succeed(watch)
            self._changed()
            yield
        with closing(
            ask(
                watch.namespace,
                watch="true",
                resourceVersion=watch.version,
                allowWatchBookmarks="true",
                timeoutSeconds=str(WATCH_SECONDS),
                **selectors,
            )
        ) as answer:
            self._succeed(watch)
            yield
            for line in _lines(answer):
                self._take(watch, _decoded(line))
                self._succeed(watch)
                yield
        self._succeed(watch)

    def _listed(self, watch: _Watch, ask: Ask, selectors: Mapping[str, Any]) -> tuple[dict[str, _Known], str]:
        pods: dict[str, _Known] = {}
        more: dict[str, str] = {}
        while True:
            with closing(ask(watch.namespace, limit=str(PAGE_PODS), **more, **selectors)) as answer:
                page = _decoded(_whole(answer))
            for pod in page.get("items") or []:
                self._note(pods, pod, watch.pods)
            metadata = page.get("metadata") or {}
            if not metadata.get("continue"):
                version = metadata.get("resourceVersion")
                if not version:
                    raise PodsError("the answer is no list of pods; is it the API server that is asked?")
                return pods, str(version)
            more = {"continue": str(metadata["continue"])}

    def _take(self, watch: _Watch, event: Mapping[str, Any]) -> None:
        kind, pod = event.get("type"), event.get("object") or {}
        if kind == "ERROR":
            if pod.get("code") == 410:
                raise _Expired
            raise PodsError(f"the watch ended: {_printable(pod.get('message') or pod.get('reason'))}")
        version = (pod.get("metadata") or {}).get("resourceVersion")
        if version:
            watch.version = str(version)
        if kind not in ("ADDED", "MODIFIED", "DELETED"):
            return  # BOOKMARK
        pods = dict(watch.pods)
        pods.pop(_key(pod), None)
        if kind != "DELETED":
            self._note(pods, pod, watch.pods)
        if pods != watch.pods:
            watch.pods = pods  # all at once, for the thread that reads
            self._changed()

    def _note(self, pods: dict[str, _Known], pod: Pod, before: Mapping[str, _Known]) -> None:
        """Remember a pod that is a target or would be one."""
        try:
            target = pod_target(pod, self._kubernetes, self._models)
        except ConfigError as error:
            known = before.get(_key(pod))
            if known is None or known.problem != str(error):
                logger.error("kubernetes state=refused detail=%r", str(error))
            pods[_key(pod)] = _Known(None, str(error))
        else:
            if target is not None:
                pods[_key(pod)] = _Known(target)

    def _succeed(self, watch: _Watch) -> None:
        watch.success_time, watch.succeeded_at = self._clock(), self._monotonic()
        watch.is_told_old = False
        if watch.problem is not None:
            logger.info("kubernetes namespace=%s state=up pods=%d", watch.shown, len(watch.pods))
            watch.problem = None
            self._changed()

    def _fail(self, watch: _Watch, problem: str) -> None:
        watch.errors += 1
        if watch.problem != problem:
            logger.error(
                "kubernetes namespace=%s state=down detail=%r pods_kept=%d",
                watch.shown,
                problem,
                len(watch.pods),
            )
        watch.problem = problem
        if self._kubernetes.targets.has_credentials and self._is_old(watch) and not watch.is_told_old:
            watch.is_told_old = True
            logger.error(
                "kubernetes namespace=%s state=old detail='not known for %g s who has the addresses of pods "
                "now; they are asked without credentials'",
                watch.shown,
                KEEP_CREDENTIALS_SECONDS,
            )
        self._changed()


class _Watch:
    """What is known of a namespace, or of all."""

    def __init__(self, namespace: str | None) -> None:
        self.namespace = namespace
        self.shown = namespace or "*"
        self.pods: Mapping[str, _Known] = {}
        self.version: str | None = None
        self.success_time: float | None = None
        self.succeeded_at = -math.inf
        self.is_told_old = False
        self.problem: str | None = None
        self.errors = 0


def _key(pod: Pod) -> str:
    metadata = pod.get("metadata") or {}
    return f"{metadata.get('namespace')}/{metadata.get('name')}"


def _decoded(text: bytes) -> dict[str, Any]:
    try:
        document = json.loads(text)
    except ValueError:
        document = None
    if not isinstance(document, dict):
        raise PodsError("the answer is not JSON; is it the API server that is asked?")
    return document


def _whole(answer: Any) -> bytes:
    body = bytearray()
    for chunk in answer.stream(1 << 16):
        body += chunk
        if len(body) > MAX_PAGE_BYTES:
            raise PodsError(f"a page of {PAGE_PODS} pods is larger than {MAX_PAGE_BYTES >> 20} MiB")
    return bytes(body)


def _lines(answer: Any) -> Iterator[bytes]:
    """The events of a watch, as they come."""
    waiting = bytearray()
    for chunk in answer.stream(amt=None):
        waiting += chunk
        *lines, rest = waiting.split(b"\n")
        waiting = bytearray(rest)
        if len(waiting) > MAX_EVENT_BYTES:
            raise PodsError(f"an event is larger than {MAX_EVENT_BYTES >> 20} MiB")
        yield from (bytes(line) for line in lines if line.strip())


def _printable(said: Any) -> str:
    return "".join(character for character in " ".join(str(said).split()) if character.isprintable())[:200]


def _one_line(error: Exception) -> str:
    return _printable(str(error) or type(error).__name__)


# --- the official client ---


def official_client(kubernetes: KubernetesConfig) -> Ask:
    """Asks the API server for pods, by the official client. Raises PodsError.

    It finds the server and its credentials, renews tokens, and holds the connections. Its generated methods
    and models are left out: they double the memory that it takes (37.0 on Python 3.11: 40 MiB in place of
    19), and change their shape from version to version.
    """
    from kubernetes import client
    from kubernetes import config as _config
    from urllib3 import Timeout
    from urllib3.exceptions import HTTPError

    config: Any = _config  # parts of it bear no types
    settings: Any = client.Configuration()
    try:
        if kubernetes.kubeconfig is not None:
            config.load_kube_config(config_file=kubernetes.kubeconfig, client_configuration=settings)
        else:
            config.load_incluster_config(client_configuration=settings)
    except (config.ConfigException, OSError) as error:
        where = kubernetes.kubeconfig or "the pod's service account"
        raise PodsError(
            f"{where} cannot be used ({_one_line(error)}); mount a service account's token, or set kubeconfig"
        ) from None
    pool = client.ApiClient(settings).rest_client.pool_manager
    timeout = Timeout(connect=CONNECT_SECONDS, read=WATCH_SECONDS + 15.0)

    def ask(namespace: str | None, **parameters: str) -> Any:
        where = "" if namespace is None else f"/namespaces/{namespace}"
        # Asked for anew each time, which is when a token is renewed.
        headers = {each["key"]: each["value"] for each in settings.auth_settings().values() if each["value"]}
        try:
            answer = pool.request(
                "GET",
                f"{settings.host}/api/v1{where}/pods",
                fields=parameters,
                headers={"Accept": "application/json", "User-Agent": f"brimline/{__version__}", **headers},
                preload_content=False,
                timeout=timeout,
                redirect=False,
                retries=False,  # the watch begins anew by itself, and says so
            )
        except HTTPError as error:
            raise PodsError(f"the API server cannot be reached ({_one_line(error)})") from None
        if answer.status != 200:
            answer.close()
            if answer.status == 410:
                raise _Expired
            raise PodsError(_refused(answer.status, namespace, answer.reason or ""))
        return answer

    return ask


def _refused(status: int, namespace: str | None, reason: str) -> str:
    if status == 401:
        return "the API server does not know the token (401); see the service account and its token"
    if status == 403:
        kind = "ClusterRole" if namespace is None else f"Role in {namespace}"
        return f"pods may not be listed (403); give the service account get, list and watch by a {kind}"
    return f"the API server answered {status} ({_printable(reason)})"


def open_watch(
    kubernetes: KubernetesConfig, models: Mapping[str, str], environ: Mapping[str, str]
) -> PodWatch:
    """The watch of a configuration. Raises ConfigError, also where the extra is not installed."""
    node = node_name(kubernetes, environ)
    try:
        import kubernetes as _official  # noqa: F401 - to be told now rather than in a thread
    except ModuleNotFoundError:
        raise ConfigError(
            "kubernetes: the official client is not installed; install the extra in a clone of this "
            f"repository: {install_command('kubernetes')}"
        ) from None
    return PodWatch(kubernetes, models, node=node, open_api=official_client)
