"""The planning page behind its port: what it takes, what it refuses, and that scrapes never wait for it."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import hashlib
import io
import json
import re
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Callable, Coroutine
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from aiohttp import ClientSession

from brimline.collect import Collector
from brimline.config import Config, GpuConfig, Target
from brimline.footprint.controls import CONTROLS
from brimline.footprint.predict import PREDICTORS
from brimline.server import Exporter, serve
from brimline.strict_yaml import Seconds
from brimline.web.plan import MAX_BODY_BYTES, MAX_REQUESTS, Planner
from brimline.web.plan_process import COMMAND, PlanProcess
from fake_servers import FakeServer, FakeVllm, when

PATIENCE = 60.0  # far above what a loaded machine needs
LLAMA = Path(__file__).parent.parent.parent / "exporter/brimline/demo/llama-3.1-8b"
CONFIG = json.loads((LLAMA / "config.json").read_text())
# Reads its question and never answers.
SILENT = (sys.executable, "-c", "import sys; sys.stdin.buffer.read()")
H100 = {"name": "H100 SXM"}
# Python's own `re` backtracks for longer than anybody waits on a name of forty letters.
ENDLESS = "re:" + "[a-z._0-9]*" * 40 + "!"


@dataclass(frozen=True)
class Said:
    """An answer to a question of the page."""

    status: int
    headers: Any
    document: Any

    @property
    def error(self) -> str:
        return str(self.document["error"])


class Port:
    """An exporter's open port."""

    def __init__(self, number: int, session: ClientSession, planner: Planner) -> None:
        self.url = f"http://127.0.0.1:{number}"
        self.session = session
        self.planner = planner

    async def ask(self, question: Any, headers: dict[str, str] | None = None) -> Said:
        """Post a question; text and bytes as they are."""
        body = io.BytesIO(question if isinstance(question, bytes) else json.dumps(question).encode())
        sent = {"Content-Type": "application/json", **(headers or {})}
        async with self.session.post(f"{self.url}/plan/predict", data=body, headers=sent) as answer:
            return Said(answer.status, answer.headers, await answer.json())

    async def get(self, path: str) -> tuple[str, Any]:
        async with self.session.get(f"{self.url}{path}") as answer:
            assert answer.status == 200
            return await answer.text(), answer.headers


@contextlib.asynccontextmanager
async def serving(
    *targets: Target, process: PlanProcess | None = None, monotonic: Callable[[], float] = lambda: 0.0
) -> AsyncIterator[Port]:
    models = {"llama-3.1-8b": str(LLAMA), "gone": "/nowhere/at/all"}
    collector = Collector(Config(targets=list(targets), models=models, gpu=GpuConfig(backend="none")))
    await collector.start()
    planner = Planner(collector, process, monotonic=monotonic)
    stop = asyncio.Event()
    opened: asyncio.Future[int] = asyncio.get_running_loop().create_future()
    exporter = Exporter(collector, None, planner=planner)
    running = asyncio.ensure_future(serve(exporter, "127.0.0.1", 0, stop, started=opened.set_result))
    try:
        async with ClientSession() as session:
            yield Port(await opened, session, planner)
    finally:
        stop.set()
        await running
        await collector.close()


def run(scenario: Callable[[], Coroutine[Any, Any, None]]) -> None:
    async def limited() -> None:
        async with asyncio.timeout(PATIENCE):
            await scenario()

    asyncio.run(limited())


def dropped(**changes: Any) -> dict[str, Any]:
    """A question about Llama-3.1-8B's config.json with some of its settings changed."""
    return {"source": {"config": json.dumps({**CONFIG, **changes})}, "gpu": H100}


# --- the page


def test_the_page_runs_its_own_script_and_style_and_nothing_else() -> None:
    async def scenario() -> None:
        async with serving() as port:
            page, headers = await port.get("/plan")
            policy = headers["Content-Security-Policy"]
            parts = dict(part.split(" ", 1) for part in policy.split("; "))
            hashes = {
                tag: base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
                for tag, text in re.findall(r"<(style|script)>(.*?)</\1>", page, re.DOTALL)
            }

            assert "unsafe" not in policy
            assert parts["default-src"] == parts["form-action"] == "'none'"
            assert parts["connect-src"] == "'self'"
            assert parts["script-src"] == f"'sha256-{hashes['script']}'"
            assert parts["style-src"] == f"'sha256-{hashes['style']}'"
            assert re.findall(r"(?:src|href|action)=\"(?!\./|metrics|config|data:)", page) == []
            assert re.findall(r"https?://(?!www\.w3\.org/2000/svg)", page) == []

    run(scenario)


def test_the_page_names_what_can_be_picked_and_no_path() -> None:
    async def scenario() -> None:
        async with serving(Target(name="chat", url="http://127.0.0.1:9", model="/secret/place")) as port:
            page, _ = await port.get("/plan")
            [text] = re.findall(r'<script type="application/json" id="choices">(.*?)</script>', page)
            choices = json.loads(text)

            assert choices["targets"] == ["chat"]
            assert choices["models"] == ["llama-3.1-8b", "gone"]
            assert "H100 SXM" in [gpu["name"] for gpu in choices["gpus"]]
            assert str(LLAMA) not in page
            assert "/secret/place" not in page

    run(scenario)


def test_the_page_script_sets_text_and_never_markup() -> None:
    script = (Path(__file__).parent.parent.parent / "exporter/brimline/web/plan.js").read_text()

    assert re.findall(r"innerHTML|outerHTML|insertAdjacent|document\.write|eval\(|new Function", script) == []


def test_every_engine_that_is_offered_is_predicted() -> None:
    assert set(CONTROLS) <= set(PREDICTORS)


def test_an_exporter_that_nobody_plans_with_loads_neither_page_nor_predictor() -> None:
    program = (
        "import sys, brimline.server, brimline.cli.serving\n"
        "print([name for name in ('jinja2', 'brimline.web', 'brimline.footprint.predict') "
        "if name in sys.modules])"
    )
    printed = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)

    assert printed.stdout.strip() == "[]"


# --- predictions


def test_a_model_is_predicted_by_its_name() -> None:
    async def scenario() -> None:
        async with serving() as port:
            said = await port.ask({"source": {"model": "llama-3.1-8b"}, "gpu": H100})
            answer = said.document["answer"]

            assert said.status == 200
            assert said.headers["Cache-Control"] == "no-store"
            # transformers 5.23 on the meta device; 2 * 32 layers * 8 heads * 128 * 2 bytes.
            assert answer["prediction"]["parameters"] == 8_030_261_248
            assert answer["prediction"]["kv_cache"]["bytes_per_token"] == 131_072
            assert answer["prediction"]["fits"] is True
            assert answer["context_tokens"] == 131_072
            # One of heads and ranks must divide the other (vLLM, config/model.py get_num_kv_heads).
            assert answer["limits"]["tensor_parallel_sizes"] == [1, 2, 4, 8, 16, 32]

    run(scenario)


def test_a_dropped_config_is_predicted_like_the_model_it_belongs_to() -> None:
    async def scenario() -> None:
        async with serving() as port:
            named = await port.ask({"source": {"model": "llama-3.1-8b"}, "gpu": H100})
            loose = await port.ask(dropped())
            both = [
                json.dumps({key: said.document["answer"][key] for key in ("headroom", "room", "curve")})
                for said in (named, loose)
            ]

            assert loose.status == 200
            assert both[0] == both[1]

    run(scenario)


def test_the_curve_falls_with_the_context_and_a_request_more_takes_what_a_token_costs() -> None:
    async def scenario() -> None:
        async with serving() as port:
            curve = (await port.ask({**dropped(), "gpu": {"name": "L4"}})).document["answer"]["curve"]
            lengths = [point["context_tokens"] for point in curve]
            rooms = [point["room"]["expected"] for point in curve]

            assert lengths[0] == 1024
            assert lengths[-1] == 131_072
            assert sorted(rooms, reverse=True) == rooms
            assert rooms[0] - rooms[-1] == 131_072 * (131_072 - 1024)
            assert [point["fits"] for point in curve] == sorted(
                (point["fits"] for point in curve), reverse=True
            )

    run(scenario)


def test_settings_that_are_turned_reach_the_prediction_and_empty_ones_do_not() -> None:
    async def scenario() -> None:
        async with serving() as port:
            settings = {"max_model_len": "32768", "kv_cache_dtype": "fp8", "max_num_seqs": ""}
            said = await port.ask({**dropped(), "settings": settings})
            answer = said.document["answer"]

            assert said.document["settings"] == {"max_model_len": "32768", "kv_cache_dtype": "fp8"}
            assert answer["context_tokens"] == 32_768
            assert answer["prediction"]["kv_cache"]["bytes_per_token"] == 65_536

    run(scenario)


def test_a_described_gpu_is_a_gpu() -> None:
    async def scenario() -> None:
        async with serving() as port:
            gpu = {"memory": "512GiB", "terabytes_per_second": 20.0}
            answer = (await port.ask({**dropped(), "gpu": gpu})).document["answer"]
            refused = [
                await port.ask({**dropped(), "gpu": wrong})
                for wrong in (
                    {"memory": "512GiB"},
                    {"memory": "much", "terabytes_per_second": 1.0},
                    {"memory": "512GiB", "terabytes_per_second": -1.0},
                    {"name": "Abacus 2000"},
                    {"machine": True},
                )
            ]

            assert answer["gpu"]["memory_bytes"] == 512 << 30
            assert answer["gpu"]["bandwidth_bytes_per_second"] == 20e12
            assert [said.status for said in refused] == [422] * 5
            assert "unknown GPU 'Abacus 2000'" in refused[3].error

    run(scenario)


def test_without_a_gpu_sizes_are_told_and_nothing_is_said_to_fit() -> None:
    async def scenario() -> None:
        async with serving() as port:
            answer = (await port.ask({**dropped(), "gpu": None})).document["answer"]

            # 8,030,261,248 parameters of 2 bytes, and rotary tables of 131,072 positions × 128 × 2 bytes.
            weights = answer["prediction"]["per_gpu"]["components"]["weights"]["expected"]
            assert weights == 16_060_522_496 + 33_554_432
            assert answer["prediction"]["fits"] is None
            assert answer["headroom"] is None
            assert answer["limits"]["longest_fitting"] is None

    run(scenario)


# --- what is refused


@pytest.mark.parametrize(
    ("question", "status", "said"),
    [
        (b"", 400, "not understood"),
        (b"{", 400, "not understood"),
        (b"[" * 100_000, 400, "not understood"),
        (b'{"source": {"config": "\xff"}}', 422, "not understood"),
        ({}, 400, "source"),
        ({"source": {}}, 400, "name a target or a model"),
        ({"source": {"target": "a", "model": "b"}}, 400, "one of them"),
        ({"source": {"path": "/etc/passwd"}}, 400, "path"),
        ({"source": {"url": "http://127.0.0.1:9/config.json"}}, 400, "url"),
        ({"source": {"model": "/etc/passwd"}}, 404, "no model of that name"),
        ({"source": {"model": "../llama-3.1-8b"}}, 404, "no model of that name"),
        ({"source": {"target": "nobody"}}, 404, "no target of that name"),
        ({"source": {"model": "gone"}}, 422, "all cannot be read"),
        ({"source": {"model": "llama-3.1-8b"}, "gpu": {"path": "/etc"}}, 400, "path"),
        ({"source": {"model": "llama-3.1-8b"}, "settings": {"model": "/etc"}}, 400, "cannot be set here"),
        (
            {"source": {"model": "llama-3.1-8b"}, "settings": {"speculative_config": "{}"}},
            400,
            "cannot be set here",
        ),
        ({"source": {"model": "llama-3.1-8b"}, "settings": {"max_model_len": "9" * 65}}, 400, "longer than"),
        ({"source": {"model": "llama-3.1-8b"}, "settings": {"max_model_len": 5}}, 400, "not understood"),
        ({"source": {"model": "llama-3.1-8b"}, "engine": "abacus"}, 400, "engine"),
        ({"source": {"model": "llama-3.1-8b"}, "engine_version": "new"}, 422, "version"),
        ({"source": {"config": {"hidden_size": 1}}}, 422, "not understood"),
        ({"source": {"model": "llama-3.1-8b"}, "settings": {"max_model_len": "262144"}}, 422, "131072"),
        (
            {"source": {"model": "llama-3.1-8b"}, "settings": {"tensor_parallel_size": "3"}},
            422,
            "--tensor-parallel-size 3",
        ),
        ({"source": {"model": "llama-3.1-8b"}, "settings": {"kv_cache_dtype": "fp3"}}, 422, "fp3"),
    ],
)  # fmt: skip
def test_a_question_that_makes_no_sense_is_refused_in_words(question: Any, status: int, said: str) -> None:
    async def scenario() -> None:
        async with serving() as port:
            refused = await port.ask(question)

            assert refused.status == status, refused.document
            assert said in refused.error

    run(scenario)


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Sec-Fetch-Site": "same-origin", "Origin": "http://proxied.example"}, 200),
        ({"Sec-Fetch-Site": "cross-site"}, 403),
        ({"Sec-Fetch-Site": "same-site"}, 403),
        ({"Sec-Fetch-Site": "none"}, 403),
        ({"Origin": "http://evil.example"}, 403),
        ({"Origin": "null"}, 403),
        ({"Origin": "http://HOST"}, 200),
        ({"Content-Type": "text/plain"}, 415),
        ({"Content-Type": "application/x-www-form-urlencoded"}, 415),
        ({"Content-Encoding": "identity"}, 415),
    ],
)
def test_only_a_page_of_ours_may_ask(headers: dict[str, str], status: int) -> None:
    async def scenario() -> None:
        async with serving() as port:
            sent = {name: value.replace("http://HOST", port.url) for name, value in headers.items()}

            assert (await port.ask({"source": {"model": "llama-3.1-8b"}}, sent)).status == status

    run(scenario)


def test_a_get_asks_nothing() -> None:
    async def scenario() -> None:
        async with serving() as port, port.session.get(f"{port.url}/plan/predict") as answer:
            assert answer.status == 405

    run(scenario)


def test_a_body_that_is_too_large_is_refused_whether_it_says_so_or_not() -> None:
    async def chunks() -> AsyncIterator[bytes]:
        for _ in range(MAX_BODY_BYTES // (1 << 16) + 2):
            yield b"x" * (1 << 16)

    async def scenario() -> None:
        async with serving() as port:
            said = await port.ask(b"x" * (MAX_BODY_BYTES + 1))
            headers = {"Content-Type": "application/json"}
            async with port.session.post(
                f"{port.url}/plan/predict", data=chunks(), headers=headers
            ) as answer:
                unsaid = answer.status

            assert (said.status, unsaid) == (413, 413)
            assert "4 MiB" in said.error

    run(scenario)


# --- hostile files

SCHEME = {
    "quant_method": "compressed-tensors",
    "config_groups": {"g": {"weights": {"num_bits": 4, "type": "int"}}},
}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "not JSON"),
        ("not json", "not JSON"),
        ("[]", "does not hold a model's settings"),
        ("[" * (1 << 21), "not JSON"),
        ("[" + "[]," * (1 << 20) + "[]]", "does not hold a model's settings"),
        ("{}", "missing"),
        ('{"x": "' + "x" * (4 << 20) + '"}', "too large"),
        (json.dumps({**CONFIG, "num_hidden_layers": 10**6}), "num_hidden_layers is 1000000"),
        (json.dumps({**CONFIG, "hidden_size": 10**300}), "hidden_size"),
        (json.dumps({**CONFIG, "hidden_size": "10**300"}), "not a whole number"),
        (json.dumps({**CONFIG, "num_key_value_heads": -8}), "num_key_value_heads is -8"),
        (json.dumps({**CONFIG, "quantization_config": {"quant_method": "<b>x"}}), "'<b>x'"),
        (json.dumps({**CONFIG, "quantization_config": {**SCHEME, "ignore": ["re:(a)\\1"]}}), "pattern"),
        ('{"hidden_size": 1' + "0" * 5000 + "}", "not JSON"),
    ],
    ids=range(14),
)
def test_a_file_that_is_no_config_is_refused_in_words(text: str, said: str) -> None:
    async def scenario() -> None:
        async with serving() as port:
            refused = await port.ask({"source": {"config": text}, "gpu": H100})

            assert refused.status == 422, refused.document
            assert said in refused.error
            assert len(refused.error) < 1000

    run(scenario)


def test_a_file_with_a_pattern_that_backtracks_endlessly_elsewhere_is_answered_like_any_other() -> None:
    async def scenario() -> None:
        async with serving(process=PlanProcess(limit_seconds=3.0)) as port:
            await port.ask(dropped())
            said = await port.ask(dropped(quantization_config={**SCHEME, "ignore": [ENDLESS]}))
            metrics, _ = await port.get("/metrics")

            assert said.status == 200
            assert "brimline_build_info" in metrics

    run(scenario)


def test_a_computation_that_takes_too_long_is_stopped_and_says_so() -> None:
    async def scenario() -> None:
        process = PlanProcess(SILENT, limit_seconds=0.5)
        async with serving(process=process) as port:
            stopped = await port.ask(dropped())

            assert stopped.status == 422
            assert "took longer than 0.5 s and was stopped" in stopped.error
            assert process.pid is None

    run(scenario)


def test_the_kernel_limits_the_memory_of_the_process_that_computes() -> None:
    async def scenario() -> None:
        process = PlanProcess()
        async with serving(process=process) as port:
            await port.ask(dropped())
            limits = await asyncio.to_thread(Path(f"/proc/{process.pid}/limits").read_text)

            assert re.search(r"Max address space +536870912 +536870912 ", limits)
            assert re.search(r"Max core file size +0 +0 ", limits)
            assert re.search(r"Max cpu time +\d+ ", limits)

    run(scenario)


# --- scrapes, turns and the process


def test_a_scrape_during_a_computation_is_answered_at_once() -> None:
    async def scenario() -> None:
        with FakeServer(FakeVllm().routes()) as server:
            target = Target(name="chat", url=server.url, timeout=Seconds(PATIENCE))
            async with serving(target, process=PlanProcess(SILENT, limit_seconds=PATIENCE)) as port:
                planning = asyncio.ensure_future(port.ask(dropped()))
                await asyncio.sleep(0.3)
                metrics, _ = await port.get("/metrics")
                healthy, _ = await port.get("/-/healthy")
                was_done = planning.done()
                planning.cancel()

                assert 'brimline_target_up{target="chat"} 1.0' in metrics
                assert "healthy" in healthy
                assert not was_done

    run(scenario)


def test_more_who_plan_at_once_than_there_is_room_for_are_told_to_come_back() -> None:
    async def scenario() -> None:
        async with serving(process=PlanProcess(SILENT, limit_seconds=1.0)) as port:
            planning = [
                asyncio.ensure_future(port.ask({**dropped(), "page": str(number)}))
                for number in range(MAX_REQUESTS)
            ]
            await asyncio.sleep(0.3)
            refused = await port.ask(dropped())
            statuses = [said.status for said in await asyncio.gather(*planning)]

            assert refused.status == 503
            assert int(refused.headers["Retry-After"]) > 0
            assert statuses == [422] * MAX_REQUESTS

    run(scenario)


def test_a_newer_question_of_a_page_takes_the_place_of_the_one_that_waits() -> None:
    async def scenario() -> None:
        async with serving(process=PlanProcess(SILENT, limit_seconds=1.0)) as port:
            planning = []
            for page in ("other", "mine", "mine"):
                planning.append(asyncio.ensure_future(port.ask({**dropped(), "page": page})))
                await asyncio.sleep(0.1)

            assert [said.status for said in await asyncio.gather(*planning)] == [422, 409, 422]

    run(scenario)


def test_a_process_that_ends_is_replaced() -> None:
    async def scenario() -> None:
        ending = PlanProcess((sys.executable, "-c", "pass"))
        async with serving(process=ending) as port:
            said = [await port.ask(dropped()) for _ in range(2)]

            assert [each.status for each in said] == [503, 503]
            assert "has ended" in said[0].error

    run(scenario)


def test_a_process_that_cannot_be_started_is_said_so() -> None:
    async def scenario() -> None:
        async with serving(process=PlanProcess(("/nowhere/python",))) as port:
            said = await port.ask(dropped())

            assert said.status == 503
            assert "no process can be started" in said.error

    run(scenario)


def test_a_process_that_nobody_asks_any_more_ends_and_one_is_started_again() -> None:
    async def scenario() -> None:
        process = PlanProcess(idle_seconds=0.2)
        async with serving(process=process) as port:
            await port.ask(dropped())
            first = process.pid
            while process.pid is not None:  # noqa: ASYNC110 - it is about what a timer has done
                await asyncio.sleep(0.05)
            said = await port.ask(dropped())

            assert first is not None
            assert said.status == 200

    run(scenario)


def test_the_process_ends_with_the_exporter() -> None:
    pids = []

    async def scenario() -> None:
        process = PlanProcess()
        async with serving(process=process) as port:
            await port.ask(dropped())
            pids.append(process.pid)

    run(scenario)

    assert not Path(f"/proc/{pids[0]}").exists()


def test_the_process_ends_when_its_input_does_and_answers_in_frames() -> None:
    question = json.dumps({"engine": "vllm", "settings": {}, "path": str(LLAMA)}).encode()
    framed = len(question).to_bytes(4, "big") + question
    done = subprocess.run(COMMAND, input=framed * 2, capture_output=True, timeout=PATIENCE, check=True)
    length = int.from_bytes(done.stdout[:4], "big")

    assert done.stdout[4:5] == b"="
    assert len(done.stdout) == 2 * (4 + length)


# --- running servers


def vllm_target(server: FakeServer, **settings: Any) -> Target:
    launch: dict[str, str | int | float | bool] = {"max_num_seqs": 256}
    timeout = Seconds(PATIENCE)
    return Target(name="chat", url=server.url, model=str(LLAMA), launch=launch, timeout=timeout, **settings)


def test_a_running_server_is_started_from_the_settings_it_runs_with() -> None:
    async def scenario() -> None:
        with FakeServer(FakeVllm(max_model_len=65_536, blocks=20_000, version="0.31.0").routes()) as server:
            async with serving(vllm_target(server)) as port:
                said = (await port.ask({"source": {"target": "chat"}, "gpu": H100})).document
                changed = await port.ask(
                    {"source": {"target": "chat"}, "gpu": H100, "settings": {"max_model_len": "32768"}}
                )

                assert (said["engine"], said["engine_version"]) == ("vllm", "0.31.0")
                assert said["base"] == {
                    "block_size": "16",
                    "gpu_memory_utilization": "0.9",
                    "kv_cache_dtype": "auto",
                    "max_model_len": "65536",
                    "max_num_seqs": "256",
                }
                assert said["answer"]["context_tokens"] == 65_536
                assert said["unchanged"] is True
                assert said["observed"]["num_blocks"] == 20_000
                assert said["observed"]["capacity_tokens"] == 320_000
                assert changed.document["unchanged"] is False
                assert changed.document["answer"]["context_tokens"] == 32_768

    run(scenario)


def test_a_setting_of_the_running_server_can_be_left_to_the_engine() -> None:
    async def scenario() -> None:
        with FakeServer(FakeVllm().routes()) as server:
            async with serving(vllm_target(server)) as port:
                settings = {"gpu_memory_utilization": "", "max_num_seqs": "64"}
                said = await port.ask({"source": {"target": "chat"}, "gpu": H100, "settings": settings})

                assert "gpu_memory_utilization" not in said.document["settings"]
                assert said.document["settings"]["max_num_seqs"] == "64"

    run(scenario)


def test_moving_a_slider_does_not_ask_the_server_each_time() -> None:
    now = [0.0]

    async def scenario() -> None:
        with FakeServer(FakeVllm(max_model_len=65_536).routes()) as server:
            async with serving(vllm_target(server), monotonic=lambda: now[0]) as port:
                for length in (1024, 2048, 4096):
                    await port.ask({"source": {"target": "chat"}, "settings": {"max_model_len": str(length)}})
                moved = server.count("/metrics")
                now[0] = 31.0
                await port.ask({"source": {"target": "chat"}})

                assert (moved, server.count("/metrics")) == (1, 2)

    run(scenario)


def test_a_server_that_cannot_be_planned_with_is_said_why() -> None:
    async def scenario() -> None:
        with FakeServer(FakeVllm().routes()) as nameless, FakeServer({}) as foreign:
            async with serving(
                Target(name="down", url="http://127.0.0.1:9"),
                Target(name="nameless", url=nameless.url),
                Target(name="foreign", url=foreign.url),
            ) as port:
                said = {
                    name: await port.ask({"source": {"target": name}})
                    for name in ("down", "nameless", "foreign")
                }

                assert {each.status for each in said.values()} == {422}
                assert "connection: " in said["down"].error
                assert "name their folder in `model`" in said["nameless"].error
                assert "not_found: " in said["foreign"].error

    run(scenario)


def test_a_server_that_hangs_holds_up_the_page_and_no_scrape_of_it() -> None:
    async def scenario() -> None:
        gate, vllm = threading.Event(), FakeVllm()
        held = {**vllm.routes(), "/metrics": when(gate, vllm.routes()["/metrics"])}
        with FakeServer(held) as slow:
            target = Target(name="chat", url=slow.url, model=str(LLAMA), timeout=Seconds(PATIENCE))
            async with serving(target) as port:
                planning = asyncio.ensure_future(port.ask({"source": {"target": "chat"}}))
                while not slow.count("/metrics"):  # noqa: ASYNC110 - it is about what another thread has done
                    await asyncio.sleep(0.01)
                headers = {"X-Prometheus-Scrape-Timeout-Seconds": "1"}
                async with port.session.get(f"{port.url}/metrics", headers=headers) as scrape:
                    metrics = await scrape.text()
                gate.set()

                assert 'brimline_target_up{target="chat"} 0.0' in metrics
                assert (await planning).status == 200

    run(scenario)
