"""A small Kubernetes API server for tests: pods that are listed and watched, and what goes wrong with it."""

from __future__ import annotations

import json
import queue
import ssl
import threading
from collections.abc import Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Self
from urllib.parse import parse_qs, urlsplit

Pod = dict[str, Any]


def pod(
    name: str,
    address: str = "127.0.0.1",
    *,
    namespace: str = "llm",
    annotations: Mapping[str, str] | None = None,
    ports: list[dict[str, Any]] | None = None,
    phase: str = "Running",
    node: str = "gpu-7",
) -> Pod:
    """A pod as the API server tells of it, in what matters here; a target unless told otherwise."""
    said = {"brimline.io/scrape": "true", **(annotations or {})}
    return {
        "metadata": {"namespace": namespace, "name": name, "annotations": said},
        "spec": {"nodeName": node, "containers": [{"name": "server", "ports": ports or []}]},
        "status": {"phase": phase, "podIP": address},
    }


class FakeApiServer:
    """Lists and watches what `put` and `remove` say. status: of every answer, where it is not 200."""

    def __init__(self, tls: ssl.SSLContext | None = None) -> None:
        self.pods: dict[tuple[str, str], Pod] = {}
        self.requests: list[tuple[str, dict[str, str], Mapping[str, str]]] = []
        self.status = 200
        self.page_size = 1000
        self.token = "a-token"
        self._version = 100
        self._lock = threading.Lock()
        self._watches: list[tuple[str | None, queue.Queue[dict[str, Any] | None]]] = []
        self.oldest_version = 0
        self._closed = False
        server = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                server._answer(self)

            def log_message(self, format: str, *arguments: Any) -> None:  # noqa: A002 - the library's name
                pass

        self._http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._http.daemon_threads = True
        if tls is not None:
            self._http.socket = tls.wrap_socket(self._http.socket, server_side=True)
        self.port = self._http.server_port
        self._thread = threading.Thread(target=self._http.serve_forever, args=(0.02,), daemon=True)
        self._thread.start()

    def kubeconfig(self, folder: Path) -> Path:
        """A file that leads here."""
        path = folder / "kubeconfig"
        path.write_text(
            json.dumps(
                {
                    "apiVersion": "v1",
                    "kind": "Config",
                    "clusters": [{"name": "c", "cluster": {"server": f"http://127.0.0.1:{self.port}"}}],
                    "users": [{"name": "u", "user": {"token": self.token}}],
                    "contexts": [{"name": "x", "context": {"cluster": "c", "user": "u"}}],
                    "current-context": "x",
                }
            )
        )
        return path

    def put(self, *pods: Pod) -> None:
        """Add pods, or change those that are there."""
        for each in pods:
            key = each["metadata"]["namespace"], each["metadata"]["name"]
            kind = "MODIFIED" if key in self.pods else "ADDED"
            self._tell(kind, key, each)

    def remove(self, name: str, namespace: str = "llm") -> None:
        self._tell("DELETED", (namespace, name), self.pods[namespace, name])

    def _tell(self, kind: str, key: tuple[str, str], told: Pod) -> None:
        with self._lock:
            self._version += 1
            told = {**told, "metadata": {**told["metadata"], "resourceVersion": str(self._version)}}
            if kind == "DELETED":
                del self.pods[key]
            else:
                self.pods[key] = told
            for namespace, events in self._watches:
                if namespace in (None, key[0]):
                    events.put({"type": kind, "object": told})

    def send(self, event: dict[str, Any]) -> None:
        """An event of its own kind to all who watch."""
        with self._lock:
            for _, events in self._watches:
                events.put(event)

    def end_watches(self) -> None:
        """Close every watch, as the API server does after a while."""
        with self._lock:
            for _, events in self._watches:
                events.put(None)

    def forget(self) -> None:
        """Know no version before the next change: whoever goes on watching from an older one has to list."""
        with self._lock:
            self._version += 10
            self.oldest_version = self._version

    @property
    def watching(self) -> int:
        return len(self._watches)

    def lists(self) -> list[dict[str, str]]:
        """The parameters of all requests for a list."""
        return [parameters for _, parameters, _ in self.requests if "watch" not in parameters]

    def _answer(self, handler: BaseHTTPRequestHandler) -> None:
        if self._closed:  # on a connection that was kept
            handler.close_connection = True
            return
        parts = urlsplit(handler.path)
        parameters = {name: values[-1] for name, values in parse_qs(parts.query).items()}
        self.requests.append((parts.path, parameters, dict(handler.headers)))
        words = parts.path.split("/")
        namespace = words[4] if "namespaces" in words else None
        if self.status != 200 or words[-1] != "pods":
            self._send(handler, self.status if self.status != 200 else 404, {"kind": "Status"})
        elif handler.headers.get("Authorization", "").lower() != f"bearer {self.token}".lower():
            self._send(handler, 401, {"kind": "Status"})
        elif "watch" in parameters:
            self._watch(handler, namespace, int(parameters["resourceVersion"]))
        else:
            self._list(handler, namespace, parameters)

    def _list(
        self, handler: BaseHTTPRequestHandler, namespace: str | None, parameters: Mapping[str, str]
    ) -> None:
        node = parameters.get("fieldSelector", "").removeprefix("spec.nodeName=")
        with self._lock:
            found = [
                each
                for key, each in sorted(self.pods.items())
                if namespace in (None, key[0]) and node in ("", each["spec"]["nodeName"])
            ]
            first = int(parameters.get("continue", "0"))
            size = min(self.page_size, int(parameters["limit"]))
            metadata = {"resourceVersion": str(self._version)}
        if first + size < len(found):
            metadata["continue"] = str(first + size)
        self._send(handler, 200, {"metadata": metadata, "items": found[first : first + size]})

    def _watch(self, handler: BaseHTTPRequestHandler, namespace: str | None, version: int) -> None:
        events: queue.Queue[dict[str, Any] | None] = queue.Queue()
        with self._lock:
            if version < self.oldest_version:
                events.put({"type": "ERROR", "object": {"code": 410, "reason": "Expired"}})
                events.put(None)
            else:
                for key, each in sorted(self.pods.items()):
                    if int(each["metadata"]["resourceVersion"]) > version and namespace in (None, key[0]):
                        events.put({"type": "MODIFIED", "object": each})
            if self._closed:
                events.put(None)
            entry = (namespace, events)
            self._watches.append(entry)
        handler.send_response(200)
        handler.send_header("Content-Type", "application/json")
        handler.send_header("Transfer-Encoding", "chunked")
        handler.end_headers()
        try:
            while (event := events.get()) is not None:
                content = json.dumps(event).encode() + b"\n"
                handler.wfile.write(b"%x\r\n%s\r\n" % (len(content), content))
                handler.wfile.flush()
            handler.wfile.write(b"0\r\n\r\n")
        except OSError:
            handler.close_connection = True
        finally:
            with self._lock:
                self._watches.remove(entry)

    @staticmethod
    def _send(handler: BaseHTTPRequestHandler, status: int, document: Mapping[str, Any]) -> None:
        content = json.dumps(document).encode()
        handler.send_response(status)
        handler.send_header("Content-Type", "application/json")
        handler.send_header("Content-Length", str(len(content)))
        handler.end_headers()
        handler.wfile.write(content)

    def close(self) -> None:
        """Close the port and end every watch."""
        self._closed = True
        self._http.shutdown()
        self._http.server_close()
        self.end_watches()
        self._thread.join(5)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()
