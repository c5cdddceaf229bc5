"""What a Prometheus answers to the boards' queries."""

from __future__ import annotations

import http.client
import json
import math
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from brimline.errors import BrimlineError

TIMEOUT_SECONDS = 30.0
MAX_ANSWER_BYTES = 64 << 20

Labels = Mapping[str, str]


class PrometheusError(BrimlineError):
    """Prometheus could not be asked, or it refused a query."""


@dataclass(frozen=True, slots=True)
class Series:
    """One series of an answer: points of time and value, one where only the last was asked for."""

    labels: Labels
    points: tuple[tuple[float, float], ...]

    @property
    def known(self) -> tuple[tuple[float, float], ...]:
        """Without what is no number: Grafana leaves gaps there, too."""
        return tuple((time, value) for time, value in self.points if math.isfinite(value))


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *_arguments: Any) -> None:
        """Queries go where the user said, and nowhere else."""


class Prometheus:
    """A Prometheus (or what answers like one) at a URL. Raises PrometheusError where that is none."""

    def __init__(self, url: str) -> None:
        parts = urllib.parse.urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname or parts.username is not None:
            raise PrometheusError(f"{url!r} is no address of a Prometheus; write http://HOST:PORT")
        self._url = url.rstrip("/")
        self._opener = urllib.request.build_opener(_NoRedirect)

    def query(self, expr: str, time: float) -> list[Series]:
        """Values at one moment."""
        rows = self._ask("query", {"query": expr, "time": f"{time:.3f}"})["result"]
        if rows and not isinstance(rows[0], dict):
            raise PrometheusError(f"the query gives no vector: {expr}")
        return [Series(row["metric"], _points([row["value"]])) for row in rows]

    def query_range(self, expr: str, start: float, end: float, step: float) -> list[Series]:
        """Values over time, one for each step; the last at `end`, whatever rounding makes of it."""
        asked = {"query": expr, "start": f"{start:.3f}", "end": f"{end + 0.001:.3f}", "step": f"{step:.3f}"}
        return [
            Series(row["metric"], _points(row["values"])) for row in self._ask("query_range", asked)["result"]
        ]

    def label_values(self, selector: str, label: str, start: float, end: float) -> list[str]:
        """Values of a label among the series of that time."""
        asked = {"match[]": selector, "start": f"{start:.3f}", "end": f"{end:.3f}"}
        values: list[str] = self._ask(f"label/{label}/values?{urllib.parse.urlencode(asked)}", None)
        return values

    def _ask(self, what: str, form: Mapping[str, str] | None) -> Any:
        content = None if form is None else urllib.parse.urlencode(form).encode()
        request = urllib.request.Request(f"{self._url}/api/v1/{what}", data=content)  # noqa: S310 (http or https only)
        try:
            with self._opener.open(request, timeout=TIMEOUT_SECONDS) as answer:
                text = answer.read(MAX_ANSWER_BYTES + 1)
        except urllib.error.HTTPError as error:
            raise PrometheusError(f"{self._url}: {_refusal(error)}") from None
        except (OSError, http.client.HTTPException) as error:
            reason = getattr(error, "reason", None) or error
            raise PrometheusError(f"{self._url}: cannot be asked ({reason})") from None
        try:
            document = json.loads(text)
            return document["data"]
        except (ValueError, LookupError, TypeError):
            raise PrometheusError(f"{self._url}: the answer is not one of a Prometheus") from None


def _refusal(error: urllib.error.HTTPError) -> str:
    """What Prometheus says against a query, or the HTTP status."""
    try:
        said = json.loads(error.read(1 << 16))["error"]
    except (ValueError, LookupError, TypeError, OSError):
        return f"HTTP {error.code}"
    return f"HTTP {error.code}: {said}"


def _points(pairs: Sequence[Sequence[Any]]) -> tuple[tuple[float, float], ...]:
    return tuple((float(time), float(value)) for time, value in pairs)
