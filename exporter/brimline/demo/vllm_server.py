"""A simulated vLLM 0.33 server: its metrics page and the documents beside it, no model and no GPU.

Names and labels are vLLM's. What marks the page as simulated: brimline_simulated_server_info, every help
string, the served model's name and the version.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping

import click
from aiohttp import web
from prometheus_client import CollectorRegistry, PlatformCollector, generate_latest
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4
from prometheus_client.registry import Collector

from brimline.demo.profiles import (
    BLOCK_SIZE,
    GPU_MEMORY_UTILIZATION,
    MODEL_FOLDER,
    MODEL_NAME,
    PROFILES,
    ServerProfile,
)
from brimline.demo.scheduler import ObservedHistogram, Simulation

logger = logging.getLogger(__name__)

VERSION = "0.33.0+simulated"
TICK_SECONDS = 0.1
# After a longer pause (a suspended machine, a debugger) the missed traffic is left out, not caught up with.
LONGEST_CATCH_UP_SECONDS = 5.0

_LABELS = ("model_name", "engine")
_LABEL_VALUES = (MODEL_NAME, "0")


class RunningServer:
    """A profile's simulation that follows a clock."""

    def __init__(
        self, profile: ServerProfile, simulation: Simulation, *, clock: Callable[[], float], start_time: float
    ) -> None:
        self.profile = profile
        self.simulation = simulation
        self.start_time = start_time
        self._clock = clock
        self._origin = clock()
        self._followed = 0.0

    def follow(self) -> None:
        """Run the engine up to now."""
        elapsed = self._clock() - self._origin
        if elapsed - self._followed > LONGEST_CATCH_UP_SECONDS:
            skipped = elapsed - self._followed - LONGEST_CATCH_UP_SECONDS
            self._origin += skipped
            elapsed -= skipped
        self._followed = elapsed
        self.simulation.advance_to(elapsed)


class VllmCollector(Collector):
    """The families of a vLLM 0.33 page, as the simulation stands."""

    def __init__(self, server: RunningServer) -> None:
        self._server = server

    def describe(self) -> Iterator[Metric]:
        """Nothing: names are known only by collecting, and nothing else is registered with them."""
        return iter(())

    def collect(self) -> Iterator[Metric]:
        """All families, in vLLM's order."""
        engine = self._server.simulation.engine
        waiting = len(engine.waiting)
        marker = GaugeMetricFamily(
            "brimline_simulated_server_info",
            "Always 1: every other value of this page is simulated; no model and no GPU stand behind it.",
        )
        marker.add_metric((), 1)
        yield marker
        start = GaugeMetricFamily("process_start_time_seconds", "Start of the process in seconds since 1970.")
        start.add_metric((), self._server.start_time)
        yield start
        yield _gauge("num_requests_running", "requests in the running batch.", len(engine.running))
        yield _gauge("num_requests_waiting", "requests in the queue.", waiting)
        yield _gauge_by(
            "num_requests_waiting_by_reason",
            "requests in the queue by what they wait for.",
            "reason",
            {"capacity": waiting, "deferred": 0},
        )
        yield _gauge_by(
            "engine_sleep_state",
            "1 for the state that the engine is in.",
            "sleep_state",
            {"awake": 1, "weights_offloaded": 0, "discard_all": 0},
        )
        yield _gauge(
            "kv_cache_usage_perc", "share of the KV cache in use, 0 to 1.", engine.kv_cache_usage_ratio
        )
        for name, meaning, total in (
            ("prefix_cache_queries", "prompt tokens looked up.", engine.prefix_cache_queries_tokens_total),
            ("prefix_cache_hits", "prompt tokens found.", engine.prefix_cache_hits_tokens_total),
            ("num_preemptions", "requests put back for want of blocks.", engine.preemptions_total),
            ("prompt_tokens", "prompt tokens processed.", engine.prompt_tokens_total),
            ("generation_tokens", "tokens generated.", engine.generation_tokens_total),
        ):
            yield _counter(name, meaning, total)
        finished = CounterMetricFamily(
            "vllm:request_success", "Simulated: requests finished.", labels=(*_LABELS, "finished_reason")
        )
        for reason, count in engine.finished_total.items():
            finished.add_metric((*_LABEL_VALUES, reason), count)
        yield finished
        for name, meaning, histogram in (
            ("time_to_first_token_seconds", "arrival to first token.", engine.time_to_first_token_seconds),
            ("inter_token_latency_seconds", "one token to the next.", engine.inter_token_latency_seconds),
            ("e2e_request_latency_seconds", "arrival to last token.", engine.e2e_request_latency_seconds),
            ("request_prompt_tokens", "prompt tokens of a finished request.", engine.request_prompt_tokens),
            ("request_generation_tokens", "tokens generated for one.", engine.request_generation_tokens),
        ):
            yield _histogram(name, meaning, histogram)
        yield self._cache_config()

    def _cache_config(self) -> Metric:
        profile = self._server.profile
        labels = {
            "block_size": BLOCK_SIZE,
            "cache_dtype": profile.kv_cache_dtype,
            "enable_prefix_caching": True,
            "engine": 0,
            "gpu_memory_utilization": GPU_MEMORY_UTILIZATION,
            "kv_cache_max_concurrency": profile.capacity_tokens / profile.max_model_len,
            "kv_cache_memory_bytes": None,
            "kv_cache_size_tokens": profile.capacity_tokens,
            "mamba_page_size_padded": None,
            "num_gpu_blocks": profile.num_gpu_blocks,
            "num_gpu_blocks_override": None,
            "sliding_window": None,
        }
        family = GaugeMetricFamily(
            "vllm:cache_config_info", "Simulated: settings of the KV cache.", labels=tuple(labels)
        )
        family.add_metric([str(value) for value in labels.values()], 1)
        return family


def _gauge(name: str, meaning: str, value: float) -> Metric:
    family = GaugeMetricFamily(f"vllm:{name}", f"Simulated: {meaning}", labels=_LABELS)
    family.add_metric(_LABEL_VALUES, value)
    return family


def _gauge_by(name: str, meaning: str, label: str, values: Mapping[str, float]) -> Metric:
    family = GaugeMetricFamily(f"vllm:{name}", f"Simulated: {meaning}", labels=(*_LABELS, label))
    for key, value in values.items():
        family.add_metric((*_LABEL_VALUES, key), value)
    return family


def _counter(name: str, meaning: str, total: float) -> Metric:
    family = CounterMetricFamily(f"vllm:{name}", f"Simulated: {meaning}", labels=_LABELS)
    family.add_metric(_LABEL_VALUES, total)
    return family


def _histogram(name: str, meaning: str, histogram: ObservedHistogram) -> Metric:
    family = HistogramMetricFamily(f"vllm:{name}", f"Simulated: {meaning}", labels=_LABELS)
    # As the client library writes bounds: 0.25, 100000.0, +Inf.
    buckets = [
        ("+Inf" if math.isinf(bound) else repr(bound), float(count))
        for bound, count in histogram.cumulative()
    ]
    family.add_metric(_LABEL_VALUES, buckets, histogram.sum)
    return family


_SERVER: web.AppKey[RunningServer] = web.AppKey("server", RunningServer)
_REGISTRY: web.AppKey[CollectorRegistry] = web.AppKey("registry", CollectorRegistry)


async def _metrics(request: web.Request) -> web.Response:
    request.app[_SERVER].follow()
    body = generate_latest(request.app[_REGISTRY])
    return web.Response(body=body, headers={"Content-Type": CONTENT_TYPE_PLAIN_0_0_4})


async def _version(_request: web.Request) -> web.Response:
    return web.json_response({"version": VERSION})


async def _models(request: web.Request) -> web.Response:
    server = request.app[_SERVER]
    entry = {
        "id": MODEL_NAME,
        "object": "model",
        "created": int(server.start_time),
        "owned_by": "vllm",
        "root": str(MODEL_FOLDER.resolve()),
        "parent": None,
        "max_model_len": server.profile.max_model_len,
    }
    return web.json_response({"object": "list", "data": [entry]})


async def _health(_request: web.Request) -> web.Response:
    return web.Response()


async def _follow_clock(app: web.Application) -> AsyncIterator[None]:
    async def tick() -> None:
        while True:
            app[_SERVER].follow()
            await asyncio.sleep(TICK_SECONDS)

    task = asyncio.create_task(tick())
    yield
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task


def make_app(
    profile: ServerProfile,
    *,
    seed: int,
    requests_per_second: float | None = None,
    clock: Callable[[], float] = time.monotonic,
    start_time: float,
) -> web.Application:
    """The server's application; start_time is what it says of itself, in seconds since 1970."""
    simulation = profile.simulation(seed=seed, requests_per_second=requests_per_second)
    server = RunningServer(profile, simulation, clock=clock, start_time=start_time)
    registry = CollectorRegistry()
    registry.register(VllmCollector(server))
    PlatformCollector(registry)
    app = web.Application()
    app[_SERVER] = server
    app[_REGISTRY] = registry
    app.cleanup_ctx.append(_follow_clock)
    app.router.add_get("/metrics", _metrics)
    app.router.add_get("/version", _version)
    app.router.add_get("/v1/models", _models)
    app.router.add_get("/health", _health)
    return app


def run(profile: ServerProfile, *, port: int, seed: int, requests_per_second: float | None = None) -> None:
    """Serve on 127.0.0.1 until a signal comes. Raises OSError where the port is taken."""
    app = make_app(profile, seed=seed, requests_per_second=requests_per_second, start_time=time.time())
    logger.info("simulated vLLM server starts profile=%s url=http://127.0.0.1:%d", profile.name, port)
    web.run_app(app, host="127.0.0.1", port=port, access_log=None, print=None)


@click.command()
@click.option("--port", type=click.IntRange(1, 65535), required=True, help="TCP port on 127.0.0.1.")
@click.option(
    "--profile", type=click.Choice(sorted(PROFILES)), required=True, help="Which variant to simulate."
)
@click.option("--seed", type=int, default=2, show_default=True, help="Of the traffic.")
@click.option("--rate", type=click.FloatRange(min=0, min_open=True), help="Mean requests per second.")
def main(port: int, profile: str, seed: int, rate: float | None) -> None:
    """Serve the metrics page of a simulated vLLM server. It answers no prompts."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    run(PROFILES[profile], port=port, seed=seed, requests_per_second=rate)


if __name__ == "__main__":
    main()
