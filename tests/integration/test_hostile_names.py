"""Names that a server chooses for itself end up escaped and bounded wherever they are shown."""

from __future__ import annotations

import html
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families as parse_classic

from brimline.engines.families import MAX_LABEL_CHARS, clean_label
from fake_servers import FakeServer, FakeVllm, Reply, json_answer
from serving import Got, serving

NAMES = {
    "quotes": "a\"b'c\\",
    "newlines": 'a\nbrimline_target_up{target="chat"} 0\n# EOF\r',
    "bidi": "safe\u202egnp.exe\u2066\u200f",
    "terminal": "a\x1b[31m\x07\x00b",
    "html": "<script>alert(1)</script><img src=x onerror=alert(1)>",
    "promql": '"} or vector(0) #',
    "template": "{{ $labels.target }} {{ .Values.x }} $__all ${x:raw}",
    "regex": ".*|(a+)+$",
    "long": "x" * 10_000,
    "half": "\ud800",
}


def escaped(name: str) -> str:
    return name.replace("\\", r"\\").replace("\n", r"\n").replace('"', r"\"")


def routes(name: str) -> dict[str, Reply]:
    """A vLLM server whose model, version and settings all have that name."""
    written = escaped(name.encode("utf-8", "replace").decode())
    vllm = FakeVllm(models=(written,))
    vllm.more_lines.append(f'vllm:cache_config_info{{engine="0",block_size="16",cache_dtype="{written}"}} 1')
    models = {"data": [{"id": name, "owned_by": "vllm", "root": name, "max_model_len": 4096}]}
    return {**vllm.routes(), "/version": json_answer({"version": name}), "/v1/models": json_answer(models)}


def labels(page: Got) -> set[str]:
    return {
        value
        for family in parse_classic(page.text)
        for sample in family.samples
        for value in sample.labels.values()
    }


@pytest.fixture(scope="module")
def shown(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Got | str]:
    """/metrics, the status page, /debug of each, and the log, of servers with all these names."""
    folder: Path = tmp_path_factory.mktemp("names")
    servers = {kind: FakeServer(routes(name)) for kind, name in NAMES.items()}
    targets: dict[str, object] = {kind: server.url for kind, server in servers.items()}
    # A server's own words in an error, too.
    error = {"error": {"message": "".join(NAMES.values())}}
    servers["error"] = FakeServer({"*": json_answer(error, status=500)})
    targets["error"] = servers["error"].url
    with serving(folder, targets, "--log-level", "debug") as exporter:
        pages: dict[str, Got | str] = {"metrics": exporter.metrics()}
        pages["openmetrics"] = exporter.metrics(Accept="application/openmetrics-text;version=1.0.0")
        pages["status"] = exporter.ask("/")
        for server in servers.values():  # with other models: the change is logged
            server.routes |= {"/version": json_answer({"version": "1"})}
        for kind in ("html", "newlines"):
            pages[f"debug {kind}"] = exporter.ask(f"/debug?target={kind}")
        exporter.terminate(within=60)
        pages["log"] = exporter.log
    for server in servers.values():
        server.close()
    return pages


def page_of(shown: dict[str, Got | str], name: str) -> Got:
    page = shown[name]
    assert isinstance(page, Got)
    assert page.status == 200
    return page


def test_on_metrics_each_is_a_short_printable_label_that_reads_back(shown: dict[str, Got | str]) -> None:
    page = page_of(shown, "metrics")
    models = {
        sample.labels["target"]: sample.labels["model"]
        for family in parse_classic(page.text)
        for sample in family.samples
        if sample.name == "brimline_requests_running"
    }

    assert models == {
        kind: clean_label(name.encode("utf-8", "replace").decode()) for kind, name in NAMES.items()
    }
    assert all(len(value) <= MAX_LABEL_CHARS or " " in value for value in labels(page))
    assert all(value.isprintable() for value in labels(page))
    assert page.values("brimline_target_up") == {**dict.fromkeys(NAMES, 1), "error": 0}
    assert "\u202e" not in page.text + page_of(shown, "openmetrics").text


def test_on_the_status_page_each_is_text(shown: dict[str, Got | str]) -> None:
    text = page_of(shown, "status").text

    assert "<script>alert" not in text
    assert "<img src=x" not in text
    assert html.escape("<script>alert(1)</script>") in text.replace("&#34;", "&quot;")
    assert not {"\u202e", "\u2066", "\x1b", "\x00"} & set(text)
    assert "x" * 200 not in text


def test_in_the_log_each_stays_within_its_line(shown: dict[str, Got | str]) -> None:
    log = shown["log"]
    assert isinstance(log, str)

    lines = log.splitlines()
    assert lines
    assert all(len(line) < 2000 for line in lines)
    assert not {"\u202e", "\x1b", "\x00", "\x07"} & set(log)
    assert not any(line.startswith(("brimline_target_up", "# EOF")) for line in lines)
    assert "Traceback" not in log


def test_what_debug_shows_of_a_page_is_plain_text(shown: dict[str, Got | str]) -> None:
    for kind in ("html", "newlines"):
        page = page_of(shown, f"debug {kind}")

        assert page.headers["content-type"].startswith("text/plain")
        assert page.headers["x-content-type-options"] == "nosniff"
