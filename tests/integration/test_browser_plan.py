"""The planning page in a real browser: what a person turns moves what is shown."""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest

from browser import CHROMIUM, Tab, opened
from exporter_process import running_exporter
from simulated_server import simulated_vllm

pytestmark = pytest.mark.skipif(
    CHROMIUM is None, reason="no Chromium here: apt-get install chromium to look at the planning page"
)

LLAMA = Path(__file__).parent.parent.parent / "exporter/brimline/demo/llama-3.1-8b"
CONFIG = json.loads((LLAMA / "config.json").read_text())
MODELS = f"gpu: {{backend: none}}\nmodels: {{llama-3.1-8b: {LLAMA}}}\n"
MOBILE, DESKTOP = 390, 1100


class PlanTab:
    """The planning page, as a person sees and uses it."""

    def __init__(self, tab: Tab) -> None:
        self.tab = tab

    async def verdict(self) -> str:
        return await self.tab.text("#verdict-word")

    async def size(self, component: str) -> str:
        """The expected size of a component as the table shows it."""
        return await self.tab.text(f"tr[data-component={component}] td.expected")

    async def figure(self, name: str) -> str:
        script = (
            "Array.from(document.querySelectorAll('#figures div'))"
            f".find(each => each.querySelector('dt').textContent === {name!r})"
            ".querySelector('strong').textContent"
        )
        return str(await self.tab.evaluate(script))

    async def curve(self) -> str:
        """The line of the memory that is left."""
        return str(
            await self.tab.evaluate("document.querySelector('#room-curve path.line').getAttribute('d')")
        )

    async def choose(self, selector: str, value: str) -> None:
        """Pick an option, as a person does with the keyboard."""
        found = await self.tab.evaluate(
            f"(() => {{ const select = document.querySelector({selector!r}); select.value = {value!r};"
            "select.dispatchEvent(new Event('change', {bubbles: true})); return select.value; })()"
        )
        assert found == value

    async def slide(self, setting: str, value: str) -> None:
        """Move a slider to a place."""
        await self.tab.evaluate(
            f"(() => {{ const range = document.querySelector('input[type=range][data-setting={setting}]');"
            f"range.value = {value!r}; range.dispatchEvent(new Event('input', {{bubbles: true}})); }})()"
        )

    async def drop(self, text: str, name: str = "config.json") -> None:
        """Drop a file on the page."""
        await self.tab.evaluate(
            "(() => { const dropped = new DataTransfer();"
            f"dropped.items.add(new File([{json.dumps(text)}], {json.dumps(name)}));"
            "dispatchEvent(new DragEvent('drop', {dataTransfer: dropped, cancelable: true})); })()"
        )

    async def shown(self) -> None:
        """Wait for the first prediction."""
        await self.tab.eventually("!document.getElementById('shown').hidden")

    async def until(self, selector: str, text: str) -> None:
        """Wait until an element that can be seen holds the text."""
        await self.tab.eventually(
            f"(() => {{ const found = document.querySelector({selector!r}); return found && !found.hidden"
            f" && found.textContent.includes({text!r}); }})()"
        )


@contextlib.asynccontextmanager
async def plan_page(url: str, profile: Path, width: int = DESKTOP) -> AsyncIterator[PlanTab]:
    async with opened(f"{url}/plan", profile, width=width) as tab:
        yield PlanTab(tab)


def run(scenario: Callable[[], Coroutine[Any, Any, None]]) -> None:
    async def limited() -> None:
        async with asyncio.timeout(120):
            await scenario()

    asyncio.run(limited())


def test_moving_the_context_moves_components_fit_and_curve(tmp_path: Path) -> None:
    async def scenario(url: str) -> None:
        async with plan_page(url, tmp_path / "profile") as page:
            await page.shown()
            await page.choose("#gpu", "name:L4")
            await page.until("#verdict-word", "Does not fit")
            at_128k = await page.tab.text("#verdict-text")
            concurrency = await page.figure("Requests of full length")
            line = await page.curve()
            await page.slide("max_model_len", "4")  # 1K 1.5K 2K 3K 4K
            await page.until("#verdict-word", "Fits")

            # 131,072 tokens of 131,072 bytes are 16 GiB, 4096 of them 512 MiB.
            assert "16.00 GiB" in at_128k
            assert await page.figure("One such request") == "512.00 MiB"
            assert await page.tab.evaluate("document.getElementById('set-max_model_len').value") == "4096"
            assert float(concurrency) < 1 < float(await page.figure("Requests of full length"))
            # The curve is over all lengths; what moves is the line at the one that is set.
            assert await page.curve() == line

            fp16 = await page.figure("KV cache per token")
            weights = await page.size("weights")
            await page.choose("#set-kv_cache_dtype", "fp8")
            await page.until("#figures", "64.00 KiB")
            assert fp16 == "128.00 KiB"
            assert await page.curve() != line
            await page.choose("#set-tensor_parallel_size", "2")
            await page.until("#figures", "32.00 KiB")
            assert float((await page.size("weights")).split()[0]) < float(weights.split()[0]) * 0.51
            await page.choose("#set-quantization", "fp8")
            await page.until("tr[data-component=weights] td.expected", "4.")
            await page.choose("#set-max_num_seqs", "1")
            await page.tab.eventually("document.getElementById('reset').hidden === false")
            await page.tab.evaluate("document.getElementById('reset').click()")
            await page.until("#verdict-word", "Does not fit")
            assert await page.size("weights") == weights
            assert page.tab.problems == []
            assert {request.split("?")[0] for request in page.tab.requested} == {
                f"{url}/plan",
                f"{url}/plan/predict",
            }

    with running_exporter(tmp_path, MODELS) as exporter:
        run(lambda: scenario(exporter.url))


def test_another_engine_brings_its_own_settings(tmp_path: Path) -> None:
    async def scenario(url: str) -> None:
        async with plan_page(url, tmp_path / "profile") as page:
            await page.shown()
            await page.choose("#gpu", "name:A10G")
            await page.choose("#engine", "llamacpp")
            await page.tab.eventually("document.getElementById('set-ctx_size') !== null")
            await page.slide("ctx_size", "0")
            await page.choose("#set-cache_type_k", "q8_0")
            # 1024 tokens of 32 layers and 8 heads of 128: keys of 8.5 bits (GGML's q8_0), values of 16.
            await page.until("tr[data-component=kv_cache] td.expected", "98.00 MiB")

            assert await page.tab.evaluate("document.getElementById('set-max_model_len')") is None
            assert await page.verdict() == "Fits"

    with running_exporter(tmp_path, MODELS) as exporter:
        run(lambda: scenario(exporter.url))


def test_the_page_says_what_the_command_says(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "brimline", "predict", str(LLAMA), "--gpu", "H100 SXM", "--json"]
    printed = subprocess.run(command, capture_output=True, text=True, check=True)
    said = json.loads(printed.stdout)

    async def scenario(url: str) -> None:
        async with plan_page(url, tmp_path / "profile") as page:
            await page.shown()

            assert await page.tab.evaluate("document.getElementById('gpu').value") == "name:H100 SXM"
            assert await page.tab.text("#gpu-said") == "80 GiB, 3.35 TB/s"
            assert await page.verdict() == {True: "Fits", False: "Does not fit"}[said["fits"]]
            for component, estimate in said["per_gpu"]["components"].items():
                size, unit = (await page.size(component)).split()
                factor = {"MiB": 1 << 20, "GiB": 1 << 30}[unit]
                assert float(size) == pytest.approx(estimate["expected"] / factor, abs=0.006)
            tokens = f"{said['kv_cache']['capacity_tokens']:,} tokens"
            assert await page.figure("KV cache holds") == tokens

    with running_exporter(tmp_path, MODELS) as exporter:
        run(lambda: scenario(exporter.url))


def test_a_dropped_config_is_planned_with_and_a_hostile_one_says_why_not(tmp_path: Path) -> None:
    async def scenario(url: str) -> None:
        async with plan_page(url, tmp_path / "profile") as page:
            await page.until("#error", "the configuration names no target and no model")
            await page.drop(
                json.dumps({**CONFIG, "num_hidden_layers": 16}), "<img src=x onerror=alert(1)>.json"
            )
            await page.shown()

            # Half of the layers cost half of the cache.
            assert await page.figure("KV cache per token") == "64.00 KiB"
            assert "<img src=x" in await page.tab.text("#source")
            assert await page.tab.evaluate("document.images.length") == 0

            await page.drop(json.dumps({**CONFIG, "num_hidden_layers": 10**6}))
            await page.until("#error", "num_hidden_layers is 1000000")
            assert await page.tab.evaluate("document.getElementById('shown').hidden") is True
            await page.drop("[" * 100_000)
            await page.until("#error", "config.json is not JSON")
            await page.drop("x" * ((4 << 20) + 1), "huge.json")
            await page.until("#error", "huge.json has 4.00 MiB")
            await page.drop(json.dumps(CONFIG))
            await page.until("#figures", "128.00 KiB")
            assert await page.tab.evaluate("document.getElementById('error').hidden") is True

    with running_exporter(tmp_path, "gpu: {backend: none}\n") as exporter:
        run(lambda: scenario(exporter.url))


def test_a_running_server_is_planned_from_its_own_settings_beside_what_is_observed(tmp_path: Path) -> None:
    async def scenario(url: str) -> None:
        async with plan_page(url, tmp_path / "profile") as page:
            await page.shown()
            await page.choose("#gpu", "name:H100 SXM")
            await page.until("#verdict-word", "Fits")
            observed = await page.tab.text("#beside-table")

            assert "simulated" in await page.tab.text("#simulated")
            assert "vLLM" in await page.tab.text("#engine-said")
            assert await page.tab.evaluate("document.getElementById('set-kv_cache_dtype').value") == "fp8"
            assert await page.tab.evaluate("document.getElementById('set-max_model_len').value") == "131072"
            # What the simulated server says of its pool (demo/profiles.py).
            assert "52,061" in observed
            assert "832,976" in observed
            assert re.search(r"[+−]\d+\.\d %", observed)

            await page.slide("max_model_len", "5")
            await page.until("#beside-said", "Undo the changes to compare")
            assert await page.tab.evaluate("document.getElementById('beside-table').hidden") is True
            await page.choose("#source", "1")
            await page.until("#error", "gone cannot be read at this moment (connection: ")

    with simulated_vllm("long-context") as server:
        config = (
            "gpu: {backend: none}\n"
            f"targets: [{{name: chat, url: '{server.url}', model: {LLAMA}, launch: {{}}}}, "
            "{name: gone, url: 'http://127.0.0.1:9'}]\n"
        )
        with running_exporter(tmp_path, config) as exporter:
            run(lambda: scenario(exporter.url))


def test_every_control_has_a_name_and_the_keyboard_reaches_it(tmp_path: Path) -> None:
    async def scenario(url: str) -> None:
        async with plan_page(url, tmp_path / "profile") as page:
            await page.shown()
            nameless = await page.tab.evaluate(
                "Array.from(document.querySelectorAll('input, select, button')).filter(each => !each.hidden"
                " && !each.labels?.length && !each.ariaLabel && !each.textContent.trim()).length"
            )
            unreachable = await page.tab.evaluate(
                "Array.from(document.querySelectorAll('#form input, #form select'))"
                ".filter(each => each.tabIndex < 0).length"
            )
            tree = await page.tab.call("Accessibility.getFullAXTree")
            names = {
                (node["role"]["value"], node.get("name", {}).get("value", ""))
                for node in tree["nodes"]
                if "role" in node
            }

            assert nameless == 0
            assert unreachable == 0
            assert ("slider", "Context length, in steps") in names
            assert "status" in {role for role, _ in names}
            assert any(
                role == "image" and name.startswith("weights 14.99 GiB, KV cache ") for role, name in names
            )
            assert (
                await page.tab.evaluate("document.getElementById('said').getAttribute('aria-live')")
                == "polite"
            )

    with running_exporter(tmp_path, MODELS) as exporter:
        run(lambda: scenario(exporter.url))


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_phone_shows_all_of_it_without_scrolling_sideways_and_keeps_the_verdict_in_sight(
    scheme: str, tmp_path: Path
) -> None:
    async def scenario(url: str) -> None:
        async with plan_page(url, tmp_path / "profile", MOBILE) as page:
            features = [{"name": "prefers-color-scheme", "value": scheme}]
            await page.tab.call("Emulation.setEmulatedMedia", features=features)
            await page.shown()
            bar = await page.tab.evaluate(
                "(() => { const box = document.getElementById('said').getBoundingClientRect();"
                "return [Math.round(box.bottom), innerHeight, box.height]; })()"
            )
            paper = await page.tab.evaluate("getComputedStyle(document.body).backgroundColor")

            assert await page.tab.evaluate("document.documentElement.scrollWidth") == MOBILE
            assert bar[0] == bar[1]
            assert bar[2] > 20
            assert "Fits" in await page.tab.text("#said")
            assert (sum(map(int, re.findall(r"\d+", paper)[:3])) > 382) == (scheme == "light")

    with running_exporter(tmp_path, MODELS) as exporter:
        run(lambda: scenario(exporter.url))
