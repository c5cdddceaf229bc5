"""The configuration file: what is read, and how every mistake is told."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from brimline.config import (
    BasicAuth,
    Config,
    GpuConfig,
    GpuSource,
    PidSource,
    Target,
    Tls,
    in_force,
    load,
    mask_command,
    masked,
    parse,
    parse_listen,
)
from brimline.engines import ENGINES
from brimline.errors import ConfigError
from brimline.strict_yaml import Seconds, Size
from brimline.thresholds import ALERTS
from brimline.web_config import load_web_config

CONFIGS = Path(__file__).parent.parent / "configs"

TARGET_KEYS = (
    "basic_auth, bearer_token_file, calibration, engine, experiment, gpus, headers, histograms, launch, "
    "launch_command, metrics_path, min_interval, model, name, role, timeout, tls, url, variant"
)
NO_LABEL = "cannot be a label; use letters, digits and . _ : / - (at most 128)"
NO_URL = "the url is not an http(s) URL; write http://HOST:PORT"
USERINFO = "the url holds a user name or password; use basic_auth with a password_file"
QUERY = "the url holds a query or a fragment; write http://HOST:PORT and use metrics_path"
NO_HOST_PORT = "is not HOST:PORT; write 127.0.0.1:10778"
ELSEWHERE = "the listening process is visible for loopback urls only; write the settings down"
TWICE = "both stand here; keep one"
NO_DURATION = "is not a duration; write it with a unit, such as"
WHOLE_SECONDS = "is not of whole seconds up to 30 days; write it as 90s or 5m"
DEEP = "nested deeper than 20 levels; flatten it"
ANCHORS = "YAML anchors and aliases are not supported; repeat the value"
NOT_UTF8 = "not UTF-8 text; save the file as UTF-8"
HOLDS_SECRET = "would hold a secret in this file; use bearer_token_file or basic_auth"
ONE_SOURCE = "gpus names not one source; write {file: PATH} or {listener: true}"
REPLAY = "gpu.path names the recording of the backend replay; give both or neither"
MAPPING = "write a mapping of keys to values"
A_UUID = "write a GPU's UUID or index"

# For each tests/configs/bad-*.yaml: what is said behind the file's name.
MISTAKES = {
    # keys
    "unknown-top-key": (
        "2: unknown key 'target'; did you mean 'targets'? known: alerts, gpu, histograms, kubernetes, "
        "listen, models, peak_window, scrape_timeout, targets, targets_files"
    ),
    "unknown-target-key": f"4: unknown key 'modle' in targets[0]; did you mean 'model'? known: {TARGET_KEYS}",
    "unknown-gpu-key": (
        "3: unknown key 'interval' in gpu; did you mean 'sample_interval'? known: backend, devices, path, "
        "processes, reserve_other, sample_interval"
    ),
    "unknown-basic-auth-key": (
        "4: unknown key 'password' in targets[0].basic_auth; did you mean 'password_file'? "
        "known: password_file, username"
    ),
    "unknown-tls-key": (
        "4: unknown key 'verify' in targets[0].tls; did you mean 'insecure_skip_verify'? "
        "known: ca_file, cert_file, insecure_skip_verify, key_file, server_name"
    ),
    "unknown-gpus-key": "4: unknown key 'path' in targets[0].gpus; known: file, listener",
    "unknown-launch-command-key": (
        "4: unknown key 'pid' in targets[0].launch_command; did you mean 'from_pid'? known: from_pid"
    ),
    "merge-key": f"4: unknown key '<<' in targets[0]; known: {TARGET_KEYS}",
    "duplicate-key": "3: 'histograms' stands twice (first on line 1); remove one",
    "duplicate-key-in-target": "4: 'name' stands twice (first on line 2); remove one",
    "key-is-a-list": "1: a key must be plain text; write `name: value`",
    # keys of later versions
    "reserve-other-of-many": (
        "2: gpu.reserve_other: 'much' is not a size in bytes; write it as 512MiB, 2GiB or a plain number"
    ),
    "reserve-other-is-true": (
        "2: gpu.reserve_other: True is not a size; write it as 2GiB or a whole number of bytes"
    ),
    "model-name": (
        "2: model name 'a model' is no plain name; use letters, digits and . _ : / - (at most 128)"
    ),
    "model-path": "2: models.a: found the number 3; write text",
    # further files
    "targets-files-is-text": "1: targets_files: found the text 'targets.yaml'; write a list",
    "targets-files-of-another-end": (
        "3: 'targets/*' does not end in .yaml, .yml or .json; write one such as targets/*.yaml"
    ),
    "targets-files-pattern-in-folder": (
        "2: '/etc/*/targets.yaml' has a pattern in a folder's name; write patterns in the last part only"
    ),
    # pods
    "unknown-kubernetes-key": (
        "3: unknown key 'nodes' in kubernetes; did you mean 'node'? known: kubeconfig, namespaces, node, "
        "selector, targets"
    ),
    "unknown-kubernetes-targets-key": (
        "4: unknown key 'url' in kubernetes.targets; known: basic_auth, bearer_token_file, headers, "
        "histograms, min_interval, timeout, tls"
    ),
    "kubernetes-without-node": "1: kubernetes: the key 'node' is missing; add it",
    "kubernetes-node": (
        "2: '$NODE_NAME' is no node; write its name, ${NODE_NAME} for that of an environment variable, "
        'or "*" for all nodes'
    ),
    "kubernetes-namespace": "3: 'Prod_1' is no namespace; write a name such as default",
    "kubernetes-selector-with-line-break": (
        "3: selector holds a line break or the like; write one such as app=vllm"
    ),
    "kubernetes-credentials-for-everybody": (
        "3: credentials would go to any pod that asks for it by annotation; "
        "list the namespaces whose pods may have them"
    ),
    "kubernetes-bearer-and-basic": f"6: bearer_token_file and basic_auth {TWICE}",
    "kubernetes-timeout-of-zero": "3: a timeout of zero reads nothing; write a duration such as 5s",
    "kubernetes-cert-without-key": "4: cert_file and key_file belong together; give both or neither",
    "kubernetes-header-with-secret": f"4: 'Authorization' {HOLDS_SECRET}",
    # alerts
    "alerts-is-a-list": f"1: alerts: found a list; {MAPPING}",
    "alert-is-text": f"3: alerts.BrimlineTargetSlow: found the text '5m'; {MAPPING}",
    "alert-is-nothing": f"2: alerts.BrimlineTargetSlow: found nothing; {MAPPING}",
    "alert-value-is-a-list": (
        "4: alerts.BrimlineVramGrowth.growth: found a list; write text, a number or true or false"
    ),
    "alert-unknown": (
        "3: alerts.BrimlineVramHeadroomlow.warning_for: unknown alert 'BrimlineVramHeadroomlow'; "
        f"did you mean 'BrimlineVramHeadroomLow'? known: {', '.join(ALERTS)}"
    ),
    "alert-unknown-and-empty": f"2: unknown alert 'BrimlineVramFull'; known: {', '.join(ALERTS)}",
    "alert-unknown-key": (
        "3: alerts.BrimlineTargetSlow.warning_for: unknown key 'warning_for' of BrimlineTargetSlow; "
        "known: enabled, duration, for"
    ),
    "alert-enabled-is-a-number": "2: alerts.BrimlineTargetSlow.enabled: 0 is neither true nor false",
    "alert-duration-without-unit": f"2: alerts.BrimlineTargetSlow.for: 10 {NO_DURATION} 5m",
    "alert-duration-of-fractions": f"2: alerts.BrimlineTargetSlow.for: '1500ms' {WHOLE_SECONDS}",
    "alert-duration-too-long": f"2: alerts.BrimlineTargetSlow.for: '31d' {WHOLE_SECONDS}",
    "alert-size-in-words": (
        "2: alerts.BrimlineVramGrowth.growth: 'much' is not a size in bytes; "
        "write it as 512MiB, 2GiB or a plain number"
    ),
    "alert-size-is-true": "2: alerts.BrimlineVramGrowth.growth: True is not a size; write 512MiB",
    "alert-ratio-in-percent": (
        "2: alerts.BrimlineKvCacheSaturated.usage: 95 is above 1, which is all of it; "
        "write a number from 0 to 1, such as 0.9"
    ),
    "alert-ratio-is-text": (
        "2: alerts.BrimlineKvCacheSaturated.usage: '95%' is not a ratio; "
        "write a number from 0 to 1, such as 0.9"
    ),
    "alert-number-below-zero": (
        "2: alerts.BrimlineKvCachePreempting.per_minute: -1 is not a number; write a number from 0 on"
    ),
    "alert-pattern-unclosed": (
        "2: alerts.BrimlineExporterDown.job: 'a(' is not a regular expression "
        "(missing ), unterminated subpattern at position 1); write 'brimline.*'"
    ),
    "alert-pattern-is-a-number": (
        "2: alerts.BrimlineExporterDown.job: 5 is not a regular expression; write text such as 'brimline.*'"
    ),
    "alert-pattern-of-python": (
        "2: alerts.BrimlineExporterDown.job: '(?!test).*' looks around or back, which Prometheus cannot; "
        "write 'brimline.*'"
    ),
    # the text itself
    "file-is-a-list": "1: the file holds a list; write keys such as `targets:`",
    "file-is-text": "1: the file holds text; write keys such as `targets:`",
    "two-documents": (
        "2: not YAML: expected a single document in the stream, but found another document; "
        "check indentation and quotes"
    ),
    "unclosed-bracket": (
        "2: not YAML: expected the node content, but found '<stream end>'; check indentation and quotes"
    ),
    "tab-indent": (
        "2: not YAML: found character '\\t' that cannot start any token; check indentation and quotes"
    ),
    "anchor": f"1: {ANCHORS}",
    "alias": f"2: {ANCHORS}",
    "custom-tag": "1: tags such as !include are not supported; write a plain value",
    "tag-on-a-mapping": "1: tags such as !include are not supported; write a plain value",
    "tag-with-a-wrong-value": "1: tags such as !include are not supported; write a plain value",
    "escape-beyond-unicode": "1: not YAML: a number beyond its range; check escapes in quotes",
    "not-utf8": f"1: {NOT_UTF8}",
    "not-utf8-later": f"2: {NOT_UTF8}",
    "utf16": f"1: {NOT_UTF8}",
    "nul-byte": (
        "1: not YAML: unacceptable character #x0000: special characters are not allowed; "
        "save the file as UTF-8 text"
    ),
    "nested-too-deep": f"1: {DEEP}",
    # targets
    "targets-is-a-mapping": "1: targets: found a mapping; write a list",
    "targets-is-nothing": "1: targets: found nothing; write a list",
    "target-is-nothing": f"4: targets[1]: found nothing; {MAPPING}",
    "target-is-text": f"2: targets[0]: found text; {MAPPING}",
    "missing-name": "2: targets[0]: the key 'name' is missing; add it",
    "missing-url": "3: targets[0]: the key 'url' is missing; add it",
    "missing-username": "4: targets[0].basic_auth: the key 'username' is missing; add it",
    "name-is-a-number": "2: targets[0].name: found the number 5; write text",
    "name-is-no-label": f"2: target name 'my server' {NO_LABEL}",
    "name-is-empty": f"2: target name '' {NO_LABEL}",
    "duplicate-target-name": "4: the target name 'a' stands twice (first on line 2); rename one",
    "experiment-is-no-label": f"4: experiment 'ctx 128k' {NO_LABEL}",
    "bad-role": "4: unknown role 'control'; known: baseline, candidate",
    "bad-engine": (
        f"4: unknown engine 'vlm'; did you mean 'vllm'? known: {', '.join(('auto', *sorted(ENGINES)))}"
    ),
    "bad-histograms": "1: unknown histograms 'all'; known: none, sums, full",
    "bad-target-histograms": "4: unknown histograms 'some'; known: none, sums, full",
    "metrics-path-without-slash": "4: the metrics_path does not start with a slash; write /metrics",
    # durations and numbers
    "duration-without-unit": f"1: scrape_timeout: 5 {NO_DURATION} 5s",
    "duration-in-words": f"1: peak_window: 'a minute' {NO_DURATION} 250ms, 5s or 1m30s",
    "duration-with-path-like-text": (
        f"1: peak_window: 'x - at `$.targets[3].url`' {NO_DURATION} 250ms, 5s or 1m30s"
    ),
    "duration-too-large": (
        "1: peak_window: '99999999999999999999'… is too long a duration; write a shorter one, such as 5s"
    ),
    "target-duration-without-unit": f"4: targets[0].min_interval: 30 {NO_DURATION} 5s",
    "timeout-of-zero": "4: a timeout of zero reads nothing; write a duration such as 5s",
    "scrape-timeout-of-zero": "1: scrape_timeout of 0s is too short; write at least 0.001s",
    "sample-interval-too-small": "2: gpu.sample_interval of 0.001s is too short; write at least 0.05s",
    "peak-window-too-small": "1: peak_window of 0.1s is too short; write at least 1s",
    "number-too-large": "2: a number of 25 digits is too large; write a smaller one",
    # addresses
    "listen-without-port": f"1: '127.0.0.1' {NO_HOST_PORT}",
    "listen-port-too-large": f"1: '127.0.0.1:70000' {NO_HOST_PORT}",
    "listen-port-in-superscript": f"1: '127.0.0.1:8²' {NO_HOST_PORT}",
    "listen-ipv6-without-brackets": "1: '::1:10778' is not HOST:PORT; write an IPv6 address as [::1]:10778",
    "listen-is-a-number": (
        "1: listen: found the number 10778; write HOST:PORT in quotes, such as 127.0.0.1:10778"
    ),
    "url-with-userinfo": f"3: {USERINFO}",
    "url-with-userinfo-and-bad-port": f"3: {USERINFO}",
    "url-with-userinfo-and-bad-host": f"3: {USERINFO}",
    "url-with-userinfo-without-scheme": f"3: {USERINFO}",
    "url-with-query": f"3: {QUERY}",
    "url-with-fragment": f"3: {QUERY}",
    "url-without-scheme": f"3: {NO_URL}",
    "url-with-other-scheme": f"3: {NO_URL}",
    "url-port-zero": f"3: {NO_URL}",
    "url-port-too-large": f"3: {NO_URL}",
    # launch settings
    "launch-and-launch-command": f"5: launch and launch_command {TWICE}",
    "launch-is-text": f"4: targets[0].launch: found text; {MAPPING}",
    "launch-value-is-a-list": (
        "6: targets[0].launch.allowed_origins: found a list; write text, a number or true or false"
    ),
    "launch-command-is-a-list": (
        '4: targets[0].launch_command: found a list; write text such as "vllm serve …", or {from_pid: true}'
    ),
    "from-pid-false": "4: from_pid is false; remove launch_command or write {from_pid: true}",
    "from-pid-missing": "4: targets[0].launch_command: the key 'from_pid' is missing; add it",
    "from-pid-of-another-host": f"4: {ELSEWHERE}",
    # GPUs
    "listener-of-another-host": f"4: {ELSEWHERE}",
    "gpus-is-a-number": (
        "4: targets[0].gpus: found a number; "
        "write a list of GPU UUIDs or indexes, {file: PATH} or {listener: true}"
    ),
    "gpus-item-is-nothing": f"6: targets[0].gpus[1]: found nothing; {A_UUID}",
    "gpus-item-is-a-boolean": f"4: targets[0].gpus[0]: found the boolean true; {A_UUID}",
    "gpus-file-and-listener": f"4: {ONE_SOURCE}",
    "gpus-neither": f"4: {ONE_SOURCE}",
    "bad-backend": "1: unknown backend 'cuda'; known: nvml, replay, none",
    "replay-without-path": f"1: {REPLAY}",
    "path-without-replay": f"1: {REPLAY}",
    # credentials
    "bearer-and-basic": f"5: bearer_token_file and basic_auth {TWICE}",
    "tls-on-http": "4: tls settings on an http url have no effect; write https:// or remove them",
    "tls-cert-without-key": "4: cert_file and key_file belong together; give both or neither",
    "yes-as-boolean": "5: targets[0].tls.insecure_skip_verify: found the text 'yes'; write true or false",
    "no-as-boolean": "5: targets[0].gpus.listener: found the text 'no'; write true or false",
    "header-with-secret": f"4: 'Authorization' {HOLDS_SECRET}",
    "header-cookie": f"4: 'cookie' {HOLDS_SECRET}",
    "header-name-with-blank": "4: 'X Team' is not a valid HTTP header; use printable characters",
    "header-with-line-break": "4: 'X-Team' is not a valid HTTP header; use printable characters",
    "header-value-is-a-number": "6: targets[0].headers.X-Shard: found a number; write text",
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_told_with_file_line_and_what_to_do(name: str) -> None:
    path = CONFIGS / f"bad-{name}.yaml"

    with pytest.raises(ConfigError) as caught:
        load(path)

    assert str(caught.value) == f"{path}:{MISTAKES[name]}"
    assert "hunter2" not in str(caught.value)  # the password that these files hold


def test_every_bad_file_has_its_message_here() -> None:
    files = {path.stem.removeprefix("bad-") for path in CONFIGS.glob("bad-*.yaml")}

    assert files == set(MISTAKES)


def test_a_minimal_file_has_the_published_defaults() -> None:
    config = load(CONFIGS / "good-minimal.yaml")

    assert config == Config(
        listen="127.0.0.1:10778",
        scrape_timeout=Seconds(5),
        histograms="sums",
        peak_window=Seconds(60),
        gpu=GpuConfig(backend="nvml", path=None, sample_interval=Seconds(1)),
        targets=[
            Target(
                name="chat",
                url="http://127.0.0.1:8000",
                engine="auto",
                gpus=None,
                launch=None,
                launch_command=None,
                timeout=None,
                min_interval=Seconds(0),
                histograms=None,
                headers={},
                tls=None,
            )
        ],
    )


def test_a_full_file_decodes_to_what_it_says() -> None:
    config = load(CONFIGS / "good-full.yaml")

    assert config == Config(
        listen="[::1]:9400",
        scrape_timeout=Seconds(2.5),
        histograms="none",
        peak_window=Seconds(300),
        gpu=GpuConfig(
            backend="replay",
            path="/recordings/gpu.jsonl",
            sample_interval=Seconds(0.5),
            reserve_other=Size(2 << 30),
            processes=True,
        ),
        models={"llama-70b": "/models/llama-70b"},
        alerts={
            "BrimlineVramHeadroomLow": {"warning_headroom": "2GiB", "warning_for": "15m"},
            "BrimlineHostMemoryLow": {"warning_ratio": 0.8},
            "BrimlineTargetSlow": {"enabled": False},
        },
        targets=[
            Target(
                name="chat-a",
                url="https://llm.example.org:8443/tenants/a/",
                metrics_path="/metrics",
                engine="vllm",
                model="/models/llama",
                gpus=["GPU-5f2c0a4e-0000-0000-0000-000000000001", 1, "2"],
                experiment="ctx-128k",
                variant="long",
                role="candidate",
                launch={
                    "tensor_parallel_size": 2,
                    "gpu_memory_utilization": 0.92,
                    "kv_cache_dtype": "fp8",
                    "enable_prefix_caching": True,
                },
                calibration="calib.yaml",
                timeout=Seconds(90),
                min_interval=Seconds(15),
                histograms="sums",
                bearer_token_file="/run/secrets/vllm",
                headers={"X-Team": "inference", "X-Shard": "5"},
                tls=Tls(
                    ca_file="/etc/ca.pem",
                    cert_file="/etc/cert.pem",
                    key_file="/etc/key.pem",
                    server_name="llm.internal",
                    insecure_skip_verify=True,
                ),
            ),
            Target(
                name="chat-b",
                url="http://localhost:8080",
                engine="llamacpp",
                gpus=GpuSource(listener=True),
                launch_command=PidSource(from_pid=True),
                basic_auth=BasicAuth(username="scraper", password_file="/run/secrets/p"),
            ),
            Target(
                name="chat-c",
                url="http://10.0.0.7:8000",
                gpus=GpuSource(file="/etc/brimline/gpus.txt"),
                launch_command="vllm serve meta-llama/Llama-3.1-8B --max-model-len 128k",
            ),
        ],
    )


def test_the_full_file_uses_every_key_that_a_target_knows() -> None:
    text = (CONFIGS / "good-full.yaml").read_text()

    for key in TARGET_KEYS.split(", "):
        assert re.search(rf"^[ -]+{key}:", text, re.MULTILINE), key


def test_a_byte_order_mark_is_no_mistake(tmp_path: Path) -> None:
    path = tmp_path / "brimline.yaml"
    path.write_bytes(b"\xef\xbb\xbfhistograms: full\n")

    assert load(path).histograms == "full"


@pytest.mark.parametrize("text", ["", "\n", "# nothing yet\n", "---\n", "{}\n"])
def test_an_empty_file_is_all_defaults(text: str) -> None:
    assert parse(text) == Config()


def test_plain_words_and_times_stay_text_as_in_yaml_1_2() -> None:
    [target] = parse(
        "targets:\n  - {name: on, url: 'http://h:1', model: no, experiment: 12:30:45, variant: 0o17}\n"
    ).targets

    assert (target.name, target.model, target.experiment, target.variant) == ("on", "no", "12:30:45", "0o17")


def test_a_url_has_its_parts() -> None:
    plain, deep, secure = (
        Target(name="a", url=url)
        for url in ("http://127.0.0.1:8000", "http://[::1]:8001/llm/a/", "https://llm.example.org")
    )

    assert (plain.origin, plain.base_path, plain.port) == ("http://127.0.0.1:8000", "", 8000)
    assert (deep.origin, deep.base_path, deep.port) == ("http://[::1]:8001", "/llm/a", 8001)
    assert (secure.origin, secure.base_path, secure.port) == ("https://llm.example.org", "", 443)
    assert Target(name="a", url="http://llm.example.org").port == 80


@pytest.mark.parametrize(
    ("url", "is_loopback"),
    [
        ("http://127.0.0.1:1", True),
        ("http://127.1.2.3:1", True),
        ("http://localhost:1", True),
        ("http://[::1]:1", True),
        ("http://10.0.0.1:1", False),
        ("http://0.0.0.0:1", False),
        ("http://localhost.example.org:1", False),
    ],
)
def test_loopback_is_told_from_the_address(url: str, is_loopback: bool) -> None:
    assert Target(name="a", url=url).is_loopback is is_loopback


def test_a_target_goes_before_the_file_for_timeout_and_histograms() -> None:
    config = parse(
        "scrape_timeout: 4s\nhistograms: none\ntargets:\n"
        "  - {name: plain, url: 'http://h:1'}\n"
        "  - {name: own, url: 'http://h:1', timeout: 9s, histograms: sums, experiment: e}\n"
        "  - {name: arm, url: 'http://h:1', experiment: e}\n"
    )
    plain, own, arm = config.targets

    assert (config.timeout_of(plain), config.histograms_of(plain)) == (4.0, "none")
    assert (config.timeout_of(own), config.histograms_of(own)) == (9.0, "sums")
    assert config.histograms_of(arm) == "full"  # arms of an experiment are compared by their histograms


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("127.0.0.1:10778", ("127.0.0.1", 10778)),
        ("[::1]:9400", ("::1", 9400)),
        (":10778", ("0.0.0.0", 10778)),
        ("localhost:0", ("localhost", 0)),
    ],
)
def test_a_listening_address_is_host_and_port(text: str, address: tuple[str, int]) -> None:
    assert parse_listen(text) == address


# --- what no message repeats


@pytest.mark.parametrize("before", ["", *"!%&*@`|>[-~'\"", "!x!", "- ", "7: "])
def test_a_file_that_holds_a_secret_and_nothing_else_is_refused_without_a_word_of_it(
    before: str, tmp_path: Path
) -> None:
    for secret in ("sk-SECRET10", "98765432109876543210987654", "987654"):
        for path in (tmp_path / "token", tmp_path / "web"):
            path.write_text(f"{before}{secret}\n")
        for read in (load, load_web_config):
            with pytest.raises(ConfigError) as caught:
                read(tmp_path / ("token" if read is load else "web"))
            said = str(caught.value).removeprefix(str(tmp_path))

            assert "SECRET" not in said
            assert "9876" not in said


@pytest.mark.parametrize(
    "lines",
    [
        "url: h:1?api_key=sk-SECRET10",
        "url: sk-SECRET10",
        "url: [sk-SECRET10]",
        "url: http://h:1?api_key=sk-SECRET10",
        "url: http://h:1/sk-SECRET10/metrics",
        "url: http://h:port/sk-SECRET10",
        "{url: http://h:1, metrics_path: sk-SECRET10}",
        "{url: http://h:1, launch: --api-key sk-SECRET10}",
        "{url: http://h:1, launch: {api_key: [sk-SECRET10]}}",
        "{url: http://h:1, launch_command: {from_pid: --api-key sk-SECRET10}}",
        "{url: http://h:1, tls: sk-SECRET10}",
        "{url: http://h:1, basic_auth: sk-SECRET10}",
        "{url: http://h:1, headers: sk-SECRET10}",
        "sk-SECRET10",
        "vllm serve --api-key sk-SECRET10",
    ],
)
def test_no_mistake_of_a_target_quotes_what_may_be_a_secret(lines: str, tmp_path: Path) -> None:
    path = tmp_path / "brimline.yaml"
    start = "{name: a, " + lines[1:] if lines.startswith("{") else lines
    body = start if not start.startswith("url") else f"{{name: a, {start}}}"
    path.write_text(f"targets:\n  - {body}\n")

    with pytest.raises(ConfigError) as caught:
        load(path)

    assert "SECRET" not in str(caught.value)


# --- what is no file of text


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        load(tmp_path / "none.yaml")

    assert str(caught.value) == (
        f"{tmp_path}/none.yaml: cannot be read (No such file or directory); "
        "check the path and its permissions"
    )


def test_a_fifo_is_refused_without_waiting_for_a_writer(tmp_path: Path) -> None:
    path = tmp_path / "fifo"
    os.mkfifo(path)
    began = time.monotonic()

    with pytest.raises(ConfigError) as caught:
        load(path)

    assert str(caught.value) == f"{path}: not a regular file; name a YAML file"
    assert time.monotonic() - began < 30


def test_a_directory_is_refused_and_leaves_no_descriptor_open(tmp_path: Path) -> None:
    before = len(list(Path("/proc/self/fd").iterdir()))

    with pytest.raises(ConfigError) as caught:
        load(tmp_path)

    assert str(caught.value) == (
        f"{tmp_path}: cannot be read (Is a directory); check the path and its permissions"
    )
    assert len(list(Path("/proc/self/fd").iterdir())) == before


def test_a_file_above_256_kibibytes_is_refused_unread(tmp_path: Path) -> None:
    path = tmp_path / "large.yaml"
    path.write_bytes(b"#" * (1 << 20) + b"\n")
    began = time.thread_time()

    with pytest.raises(ConfigError) as caught:
        load(path)

    assert str(caught.value) == f"{path}: larger than 256.00 KiB; split it"
    assert time.thread_time() - began < 1


def test_an_endless_device_is_refused() -> None:
    with pytest.raises(ConfigError) as caught:
        load(Path("/dev/zero"))

    assert str(caught.value) == "/dev/zero: not a regular file; name a YAML file"


def test_an_alias_bomb_is_refused_before_it_grows() -> None:
    """306 bytes that would be a billion items where they are walked."""
    bomb = "a: &a [x]\n" + "".join(
        f"{chr(98 + n)}: &{chr(98 + n)} [{','.join([f'*{chr(97 + n)}'] * 9)}]\n" for n in range(9)
    )
    began = time.thread_time()

    with pytest.raises(ConfigError, match="anchors and aliases are not supported"):
        parse(bomb)

    assert time.thread_time() - began < 1


def test_ten_megabytes_are_refused_unread(tmp_path: Path) -> None:
    path = tmp_path / "brimline.yaml"
    path.write_bytes(b"a: b\n" * (2 << 20))
    began = time.thread_time()

    with pytest.raises(ConfigError, match=r"larger than 256\.00 KiB"):
        load(path)

    assert time.thread_time() - began < 1


def test_symbolic_links_lead_to_a_file_or_to_one_error(tmp_path: Path) -> None:
    good, loop, dangling, pipe = (tmp_path / name for name in ("good", "loop", "dangling", "pipe"))
    (tmp_path / "file").write_text("scrape_timeout: 7s\n")
    os.mkfifo(tmp_path / "fifo")
    good.symlink_to(tmp_path / "file")
    loop.symlink_to(loop)
    dangling.symlink_to(tmp_path / "nothing")
    pipe.symlink_to(tmp_path / "fifo")

    assert float(load(good).scrape_timeout) == 7.0
    for path in (loop, dangling, pipe):
        with pytest.raises(ConfigError, match=f"^{re.escape(str(path))}: [^;]+; "):
            load(path)


# --- any text at all

WORDS = [
    *(
        "targets:",
        "gpu:",
        "name:",
        "url:",
        "gpus:",
        "headers:",
        "launch:",
        "launch_command:",
        "tls:",
        "listen:",
    ),
    *(
        "- ",
        "  ",
        "\n",
        "\n  ",
        "\n    ",
        ": ",
        "{",
        "}",
        "[",
        "]",
        ",",
        "&a",
        "*a",
        "!!int ",
        "!x ",
        "|",
        ">",
    ),
    *("http://127.0.0.1:8000", "http://u:p@h", "5s", "1e999", "9" * 30, "true", "null", "~", "'", '"', "\\U"),
    *("%YAML 1.2", "---", "...", "# x", "from_pid: true", "listener: true", "engine: vllm", "é", "<<:", "? "),
]
yaml_like = st.lists(st.sampled_from(WORDS), max_size=30).map("".join)


def check_outcome(read: Callable[[], Config]) -> None:
    """A Config, or a ConfigError of the one form; within a second of CPU."""
    began = time.thread_time()
    try:
        config = read()
    except ConfigError as error:
        assert re.fullmatch(r"\S+\.yaml:\d+: [^;].*; \S.*", str(error), re.DOTALL)  # noqa: PT017
    else:
        assert masked(config).endswith("\n")
    assert time.thread_time() - began < 1


@settings(max_examples=600, deadline=None)
@given(yaml_like | st.text(max_size=80))
def test_any_text_is_a_config_or_a_config_error(text: str) -> None:
    check_outcome(lambda: parse(text))


@pytest.fixture(scope="module")
def scratch(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("any") / "brimline.yaml"


@settings(max_examples=300, deadline=None)
@given(content=st.binary(max_size=120) | yaml_like.map(str.encode))
def test_any_bytes_are_a_config_or_a_config_error(scratch: Path, content: bytes) -> None:
    scratch.write_bytes(content)

    check_outcome(lambda: load(scratch))


known_keys = st.sampled_from(
    [*TARGET_KEYS.split(", "), "listen", "gpu", "targets", "file", "path", "backend", "from_pid"]
)
values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.sampled_from(["5s", "http://127.0.0.1:1", "- at `$.targets", "a"])
    | st.text(st.characters(codec="utf-8"), max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(known_keys, inner, max_size=4),
    max_leaves=12,
)


@settings(max_examples=600, deadline=None)
@given(plain=values, target=st.dictionaries(known_keys, values, max_size=5))
def test_any_values_under_known_keys_are_a_config_or_a_config_error(
    plain: object, target: dict[str, object]
) -> None:
    whole = {"targets": [{"name": "a", "url": "http://127.0.0.1:1", **target}]}
    rest = plain if isinstance(plain, dict) else {"gpu": plain}
    text = yaml.safe_dump({**whole, **rest}, allow_unicode=True)

    check_outcome(lambda: parse(text))


@pytest.mark.parametrize("opening", ["[", "{", "- ", "? ", "a: ", "[{a: "])
def test_endless_nesting_is_refused_at_once(opening: str) -> None:
    text = opening * 100_000

    check_outcome(lambda: parse(text))


# --- what is shown


SECRETS = """\
targets:
  - name: a
    url: http://127.0.0.1:8000
    headers: {X-Api-Key: planted-1, X-Team: planted-2}
    launch: {max_model_len: 4096, api_key: planted-3, hf-token: planted-4}
  - name: b
    url: http://127.0.0.1:8001
    launch_command: >
      HF_TOKEN=planted-5 vllm serve m --api-key planted-6 planted-7
      --port 8001 --api-key=planted-8
  - name: c
    url: http://127.0.0.1:8002
    launch_command: |
      llama-server -m m.gguf \\
        --api-key \\
          planted-9 \\
        --port 8002
"""


def test_headers_for_pods_are_masked_and_the_rest_is_shown() -> None:
    config = parse(
        "targets_files: [more/*.yaml]\n"
        "kubernetes:\n  node: gpu-7\n  namespaces: [llm]\n"
        "  targets: {timeout: 2s, headers: {X-Team: hunter2}}\n"
    )

    shown = masked(config)

    assert "hunter2" not in shown
    assert "X-Team: <secret>" in shown
    assert parse(shown.replace("<secret>", "hunter2")) == config


def test_no_planted_secret_is_shown() -> None:
    shown = masked(parse(SECRETS))

    assert "planted" not in shown
    assert shown.count("<secret>") == 9
    assert "max_model_len: 4096" in shown
    assert "X-Api-Key" in shown


@pytest.mark.parametrize(
    ("command", "shown"),
    [
        ("vllm serve m --max-model-len 4096", "vllm serve m --max-model-len 4096"),
        ("vllm serve m --api-key sk-1 --port 8", "vllm serve m --api-key <secret> --port 8"),
        ("vllm serve m --api-key\tsk-1", "vllm serve m --api-key\t<secret>"),
        ("vllm serve m --api-key\nsk-1", "vllm serve m --api-key\n<secret>"),
        ('vllm serve m --api-key="sk one" --port 8', "vllm serve m --api-key=<secret> --port 8"),
        ("vllm serve m --api-key 'sk -one' --port 8", "vllm serve m --api-key <secret> --port 8"),
        ("vllm serve m '--api-key=sk one' -tp 2", "vllm serve m --api-key=<secret> -tp 2"),
        ("API_KEY=sk-1 vllm serve m", "API_KEY=<secret> vllm serve m"),
        ("vllm serve m --tokenizer t --max-num-batched-tokens 8", None),
        ("vllm serve m --trust-remote-code --hf-overrides '{\"a\": 1}'", None),
    ],
)
def test_only_secret_options_of_a_command_are_masked(command: str, shown: str | None) -> None:
    assert mask_command(command) == (command if shown is None else shown)


def test_what_is_shown_reads_back_as_the_same_configuration() -> None:
    text = (
        (CONFIGS / "good-full.yaml").read_text().replace('headers: {X-Team: inference, X-Shard: "5"}\n', "\n")
    )
    config = parse(text)

    assert parse(masked(config)) == config


def test_what_is_in_force_is_shown_with_what_was_not_said() -> None:
    shown = yaml.safe_load(
        masked(
            parse(
                "scrape_timeout: 3s\nalerts: {BrimlineTargetSlow: {duration: 2s}}\ntargets:\n"
                "- {name: a, url: 'http://a:1', experiment: x, variant: v, role: baseline}\n"
                "- {name: b, url: 'https://b:1', timeout: 1s, tls: {ca_file: /ca}}\n"
            ),
            defaults=True,
        )
    )

    first, second = shown["targets"]
    assert shown["listen"] == "127.0.0.1:10778"
    assert shown["gpu"] == {
        "backend": "nvml", "devices": "all", "sample_interval": "1s", "reserve_other": 0, "processes": False,
    }  # fmt: skip
    assert (first["timeout"], first["histograms"], first["engine"]) == ("3s", "full", "auto")
    assert (second["timeout"], second["histograms"], second["min_interval"]) == ("1s", "sums", "0s")
    assert second["tls"] == {"ca_file": "/ca", "insecure_skip_verify": False}
    assert shown["alerts"]["BrimlineTargetSlow"] == {"enabled": True, "duration": "2s", "for": "10m"}
    assert shown["alerts"]["BrimlineKvCacheSaturated"]["usage"] == 0.95
    assert "kubernetes" not in shown
    assert "model" not in first


@pytest.mark.parametrize("name", ["good-minimal", "good-full"])
def test_what_is_in_force_reads_back_as_the_same(name: str) -> None:
    text = (CONFIGS / f"{name}.yaml").read_text()
    config = parse(text.replace('headers: {X-Team: inference, X-Shard: "5"}\n', "\n"))

    assert masked(parse(masked(config, defaults=True)), defaults=True) == masked(config, defaults=True)
    assert in_force(parse(masked(config, defaults=True))) == in_force(config)


def test_no_planted_secret_is_shown_with_the_defaults() -> None:
    shown = masked(parse(SECRETS), defaults=True)

    assert "planted" not in shown
    assert shown.count("<secret>") == 9


def test_long_durations_are_shown_in_full() -> None:
    config = parse("peak_window: 30d\n")

    assert masked(config) == "peak_window: 2592000s\n"
