"""The watch: judged anew after each block, and never ended by what it asks."""

from __future__ import annotations

import asyncio
import json
import math
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from aiohttp import ClientSession
from prometheus_client.parser import text_string_to_metric_families

from brimline import verdicts
from brimline.ab import experiment as experiments
from brimline.ab.experiment import Experiment
from brimline.ab.inference import Verdict
from brimline.ab.result import Report
from brimline.errors import ConfigError, DataSourceError
from brimline.port import serve_application
from brimline.watch import Watch, Watched, application, document, pause_after, render
from reports import HOSTILE, START, comparison, hostile, metric, report, static

NOW = START + 100_000.0


def file(folder: Path, name: str = "kv-dtype", **more: str) -> Path:
    path = folder / f"{name}.yaml"
    lines = {
        "name": name,
        "window": "{start: '2026-09-21T14:13:20Z'}",
        "variants": "[{name: bf16, role: baseline}, {name: fp8, role: candidate}]",
        **more,
    }
    path.write_text("".join(f"{key}: {value}\n" for key, value in lines.items()))
    return path


class Rounds:
    """Judges by what stands in answers, one for each round, and ends the watch after the last."""

    def __init__(self, *answers: Report | Exception) -> None:
        self.answers = list(answers)
        self.pauses: list[float] = []
        self.windows: list[float] = []
        self.now = NOW

    async def judge(self, experiment: Experiment) -> Report:
        self.windows.append(experiment.end)
        if not self.answers:
            raise asyncio.CancelledError
        answer = self.answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    async def sleep(self, seconds: float) -> None:
        self.pauses.append(seconds)
        self.now += seconds
        await asyncio.sleep(0)
        if not self.answers:
            raise asyncio.CancelledError

    def run(self, *paths: Path) -> Watch:
        watch = Watch(paths, self.judge, clock=lambda: self.now, sleep=self.sleep)
        asyncio.run(watch.run())
        return watch


def samples(watched: Watched) -> Mapping[tuple[str, frozenset[tuple[str, str]]], float]:
    page = render([watched])[0].decode()
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(page)
        for sample in family.samples
    }


def judged(*changes: Report) -> Watched:
    watched = Watched(Path("x.yaml"), "kv-dtype")
    for place, one in enumerate(changes or (report(),)):
        watched.take(one, NOW + place)
    return watched


# --- judging


def test_it_judges_again_when_the_next_block_has_ended_and_is_stored(tmp_path: Path) -> None:
    rounds = Rounds(report(), report())

    rounds.run(file(tmp_path))

    # 100,000 s are 111 blocks and 100 s: the next one ends in 800 s.
    assert rounds.pauses == [820, 900]
    assert rounds.windows == [NOW, NOW + 820]


def test_a_window_that_slides_is_refused(tmp_path: Path) -> None:
    sliding = file(tmp_path, window="{last: 6h}")

    with pytest.raises(ConfigError, match=r"the window slides.*write its start, such as `window: \{start: "):
        Watch([sliding], Rounds().judge, clock=lambda: NOW)


def test_a_window_that_came_to_slide_is_a_problem_and_ends_nothing(tmp_path: Path) -> None:
    path = file(tmp_path)
    rounds = Rounds(report(), report())
    watch = Watch([path], rounds.judge, clock=lambda: NOW)
    file(tmp_path, window="{last: 6h}")

    [watched] = watch.experiments.values()
    asyncio.run(watch._attempt(watched))

    assert "the window slides" in (watched.problem or "")


def test_pauses_are_bounded(tmp_path: Path) -> None:
    long = experiments.load(file(tmp_path, "long", block_length="100h"), now=NOW)
    short = replace(long, block_length=1.0)

    assert pause_after(long, NOW) == 3600
    assert pause_after(short, NOW) == 5


def test_a_data_source_that_fails_ends_nothing_and_keeps_the_last_verdict(tmp_path: Path) -> None:
    down = DataSourceError("connection", "http://prom: no connection; check prometheus.url")
    rounds = Rounds(report(), down, down, down)

    [watched] = rounds.run(file(tmp_path)).experiments.values()

    assert rounds.pauses == [820, 10, 20, 40]
    assert (watched.is_up, watched.errors) == (False, 3)
    answer = document(watched, rounds.now)
    assert (answer["verdict"], answer["age_seconds"]) == ("pass", 890)
    assert answer["problem"] == str(down)
    assert samples(watched)[verdicts.UP, frozenset({("experiment", "kv-dtype")})] == 0


def test_it_recovers(tmp_path: Path) -> None:
    rounds = Rounds(DataSourceError("timeout", "late"), report())

    [watched] = rounds.run(file(tmp_path)).experiments.values()

    assert (watched.is_up, watched.problem, watched.errors) == (True, None, 1)


def test_a_defect_in_one_experiment_is_told_and_ends_no_other(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    rounds = Rounds(ZeroDivisionError("x"), report(), report(), report())

    watch = rounds.run(file(tmp_path), file(tmp_path, "other"))

    assert "Traceback" in caplog.text
    assert watch.experiments["other"].report is not None


def test_a_file_that_is_broken_meanwhile_leaves_the_last_verdict(tmp_path: Path) -> None:
    path = file(tmp_path)
    rounds = Rounds(report(), report())
    watch = Watch([path], rounds.judge, clock=lambda: rounds.now, sleep=rounds.sleep)
    [watched] = watch.experiments.values()

    async def scenario() -> None:
        await watch._attempt(watched)
        path.write_text("nonsense: 1\n")
        await watch._attempt(watched)

    asyncio.run(scenario())
    assert watched.report is not None
    assert "nonsense" in (watched.problem or "")


def test_of_several_experiments_the_one_whose_file_is_broken_stands_still_alone(tmp_path: Path) -> None:
    broken, well = file(tmp_path), file(tmp_path, "well")
    rounds = Rounds(*[report()] * 6)
    watch = Watch([broken, well], rounds.judge, clock=lambda: rounds.now, sleep=rounds.sleep)

    async def scenario() -> None:
        for each in watch.experiments.values():
            await watch._attempt(each)
        broken.write_text("variants: [{{{")
        rounds.now += 900
        for each in watch.experiments.values():
            await watch._attempt(each)

    asyncio.run(scenario())
    stopped, goes_on = (document(each, rounds.now) for each in watch.experiments.values())
    assert (stopped["verdict"], stopped["age_seconds"]) == ("pass", 900)
    assert str(broken) in stopped["problem"]
    assert (goes_on["verdict"], goes_on["age_seconds"], goes_on["problem"]) == ("pass", 0, None)
    page = render(watch.experiments.values())[0].decode()
    assert f'{verdicts.UP}{{experiment="kv-dtype"}} 0.0' in page
    assert f'{verdicts.UP}{{experiment="well"}} 1.0' in page
    answers = asked(watch, "/metrics", "/api/v1/ab/well", "/api/v1/ab/kv-dtype")
    assert [status for status, _ in answers] == [200, 200, 200]


def test_a_partial_answer_is_judged_and_told_and_confirms_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "brimline.watch")
    partial = replace(report(), warnings=("store east did not answer",))
    watch = Watch([file(tmp_path)], Rounds().judge, clock=lambda: NOW)
    [watched] = watch.experiments.values()

    told = []
    for one in (report(), partial, partial, report()):
        watched.take(one, NOW)
        [(confirmed, text)] = asked(watch, "/api/v1/confirm/kv-dtype")
        told.append((confirmed, watched.is_up, watched.problem is None, "store east" in text))

    assert told == [(200, True, True, False), *[(403, True, False, True)] * 2, (200, True, True, False)]
    said = [record.getMessage().split(" ", 1)[1].partition(" ")[0] for record in caplog.records]
    assert said == ["candidate='fp8'", "state=partial", "state=up"]


def test_state_changes_are_logged_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "brimline.watch")
    down = DataSourceError("connection", "no connection")

    Rounds(report(), report(), down, down, report()).run(file(tmp_path))

    assert [record.getMessage().split(" ", 1)[1] for record in caplog.records] == [
        "candidate='fp8' verdict=pass blocks=0",
        "state=down detail='no connection'",
        "state=up",
    ]


def test_a_query_that_grows_with_the_clock_is_no_other_state(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "brimline.watch")
    texts = [f"refused (query: brimline_target_info[{length}ms])" for length in (965029, 976729, 1000001)]

    Rounds(*(DataSourceError("connection", text) for text in texts)).run(file(tmp_path))

    assert [record.getMessage() for record in caplog.records] == [
        f"experiment='kv-dtype' state=down detail={texts[0]!r}"
    ]


def test_the_traceback_of_a_defect_is_logged_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    Rounds(ZeroDivisionError("x"), ZeroDivisionError("x"), ValueError("y")).run(file(tmp_path))

    assert caplog.text.count("Traceback") == 2
    assert len(caplog.records) == 2


def test_two_files_of_one_experiment_and_too_many_are_refused(tmp_path: Path) -> None:
    path = file(tmp_path)
    other = tmp_path / "copy.yaml"
    other.write_text(path.read_text())

    with pytest.raises(ConfigError, match="rename one"):
        Watch([path, other], Rounds().judge, clock=lambda: NOW)
    with pytest.raises(ConfigError, match="at most 64"):
        Watch([path] * 65, Rounds().judge, clock=lambda: NOW)


# --- what is exposed


def test_every_metric_has_one_verdict_of_all_words() -> None:
    found = samples(judged())

    states = {
        (dict(labels)["metric"], dict(labels)["verdict"]): value
        for (name, labels), value in found.items()
        if name == verdicts.VERDICT
    }
    assert {metric_name for metric_name, _ in states} == {
        "overall",
        "inter_token_latency",
        "request_latency",
        "kv_cache_capacity_tokens",
    }
    for metric_name in ("overall", "inter_token_latency"):
        assert {word: states[metric_name, word] for word in verdicts.WORDS} == {
            **dict.fromkeys(verdicts.WORDS, 0.0),
            "pass": 1.0,
        }


def test_differences_bounds_blocks_and_time_needed_are_in_base_units() -> None:
    found = samples(judged())

    def value(name: str, metric_name: str) -> float | None:
        labels = {"experiment": "kv-dtype", "candidate": "fp8", "metric": metric_name}
        return found.get((name, frozenset(labels.items())))

    assert value(verdicts.DELTA, "inter_token_latency") == -0.012
    assert value(verdicts.DELTA_LOWER, "inter_token_latency") == -0.035
    assert value(verdicts.DELTA_UPPER, "inter_token_latency") == 0.011
    assert value(verdicts.BLOCKS, "inter_token_latency") == 8
    assert value(verdicts.REQUIRED, "request_latency") == 3.5 * 3600
    assert value(verdicts.REQUIRED, "inter_token_latency") is None
    assert value(verdicts.DELTA, "kv_cache_capacity_tokens") == pytest.approx(1.0, abs=1e-3)
    assert all(map(math.isfinite, found.values()))


def test_what_is_exposed_is_declared_with_its_labels() -> None:
    watched = judged(report(comparison(verdict="inconclusive")), report(comparison(hours_needed=2.0)))
    declared = {one.name: set(one.labels) for one in verdicts.EXPOSED if one.name != verdicts.RELOADED}

    found = [(name, set(dict(labels))) for name, labels in samples(watched) if name.startswith("brimline_")]

    assert {name for name, _ in found} == set(declared)
    assert all(labels == declared[name] for name, labels in found)


def test_a_change_of_the_verdict_is_marked_when_it_was_seen() -> None:
    watched = judged(
        report(comparison(verdict="inconclusive")), report(comparison(verdict="inconclusive")), report()
    )

    labels = {"experiment": "kv-dtype", "candidate": "fp8", "verdict": "pass"}
    assert samples(watched)[verdicts.CHANGED, frozenset(labels.items())] == NOW + 2
    assert not any(name == verdicts.CHANGED for name, _ in samples(judged()))


def test_two_candidates_are_told_apart_and_hostile_names_are_escaped() -> None:
    two = report(comparison(), comparison(candidate=HOSTILE, verdict="worse", metrics=(metric(HOSTILE),)))

    found = samples(judged(two))

    candidates = {dict(labels)["candidate"] for name, labels in found if name == verdicts.VERDICT}
    assert candidates == {"fp8", HOSTILE}
    assert render([judged(hostile())])[0]


@pytest.mark.parametrize("accept", ["application/openmetrics-text; version=abc", "text/plain;version=1e5"])
def test_a_version_that_is_none_is_answered_with_classic_text(accept: str) -> None:
    page, content_type = render([judged(hostile())], accept)

    assert content_type == render([])[1]
    assert b"brimline_ab_verdict" in page


def test_a_metric_of_the_user_cannot_take_the_place_of_the_whole() -> None:
    cheat = metric("overall", verdict="better")

    found = samples(judged(report(comparison(metrics=(cheat,), verdict="worse", static=(static(),)))))

    labels = {"experiment": "kv-dtype", "candidate": "fp8", "metric": "overall", "verdict": "worse"}
    assert found[verdicts.VERDICT, frozenset(labels.items())] == 1


def test_what_is_for_looking_only_is_told_to_prometheus() -> None:
    of_one = frozenset({("experiment", "kv-dtype")})

    assert samples(judged())[verdicts.GATE, of_one] == 1
    assert samples(judged(report(no_gate="short blocks")))[verdicts.GATE, of_one] == 0


# --- the port


def asked(watch: Watch, *paths: str) -> list[tuple[int, str]]:
    async def scenario() -> list[tuple[int, str]]:
        stop, port = asyncio.Event(), asyncio.get_running_loop().create_future()
        serving = asyncio.ensure_future(
            serve_application(application(watch), "127.0.0.1", 0, stop, started=port.set_result)
        )
        answers = []
        async with ClientSession() as session:
            for path in paths:
                async with session.get(f"http://127.0.0.1:{await port}{path}") as got:
                    answers.append((got.status, await got.text()))
        stop.set()
        await serving
        return answers

    return run(scenario)


def run(scenario: Callable[[], Coroutine[Any, Any, list[tuple[int, str]]]]) -> list[tuple[int, str]]:
    async def limited() -> list[tuple[int, str]]:
        async with asyncio.timeout(60):
            return await scenario()

    return asyncio.run(limited())


def test_there_is_always_an_answer_about_an_experiment(tmp_path: Path) -> None:
    watch = Watch([file(tmp_path)], Rounds().judge, clock=lambda: NOW)

    [(status, text)] = asked(watch, "/api/v1/ab/kv-dtype")

    assert status == 200
    answer = json.loads(text)
    assert (answer["verdict"], answer["problem"], answer["age_seconds"]) == (
        "inconclusive",
        "not judged yet",
        None,
    )


def test_a_verdict_is_the_document_of_json_with_its_age(tmp_path: Path) -> None:
    watch = Watch([file(tmp_path)], Rounds().judge, clock=lambda: NOW + 60)
    watch.experiments["kv-dtype"].take(report(), NOW)

    [(status, text), (listed, names), (unknown, told)] = asked(
        watch, "/api/v1/ab/kv-dtype", "/api/v1/ab", "/api/v1/ab/nobody"
    )

    assert status == listed == 200
    answer = json.loads(text)
    assert (answer["verdict"], answer["age_seconds"], answer["schema_version"]) == ("pass", 60, 1)
    assert json.loads(names)["experiments"][0]["verdict"] == "pass"
    assert unknown == 404
    assert json.loads(told)["known"] == ["kv-dtype"]


def test_names_may_hold_slashes(tmp_path: Path) -> None:
    path = file(tmp_path, "x")
    path.write_text(path.read_text().replace("name: x\n", "name: team/kv:1\n"))
    watch = Watch([path], Rounds().judge, clock=lambda: NOW)

    assert [status for status, _ in asked(watch, "/api/v1/ab/team/kv:1", "/api/v1/ab/team%2Fkv%3A1")] == [
        200,
        200,
    ]


def test_healthy_and_ready_say_what_they_are_asked(tmp_path: Path) -> None:
    watch = Watch([file(tmp_path)], Rounds().judge, clock=lambda: NOW)

    assert [status for status, _ in asked(watch, "/-/healthy", "/-/ready", "/nothing")] == [200, 503, 404]
    watch.ready = True
    [(status, _), (scraped, page)] = asked(watch, "/-/ready", "/metrics")
    assert status == scraped == 200
    assert "brimline_ab_errors_total" in page
    assert "process_cpu_seconds_total" in page


@pytest.mark.parametrize(
    ("verdict", "confirm", "rollback"),
    [("better", 200, 403), ("pass", 200, 403), ("inconclusive", 403, 403), ("worse", 403, 200)],
)
def test_hooks_that_know_yes_and_no_get_one(
    tmp_path: Path, verdict: Verdict, confirm: int, rollback: int
) -> None:
    watch = Watch([file(tmp_path)], Rounds().judge, clock=lambda: NOW + 60)
    watch.experiments["kv-dtype"].take(report(comparison(verdict=verdict)), NOW)

    answers = asked(watch, "/api/v1/confirm/kv-dtype?max_age=60", "/api/v1/rollback/kv-dtype")

    assert [status for status, _ in answers] == [confirm, rollback]
    assert answers[0][1] == f"{verdict}, 60 s ago: every gate is inside its margin\n"


@pytest.mark.parametrize("verdict", ["pass", "worse", "not_comparable"])
def test_a_hook_says_neither_by_what_is_no_gate(tmp_path: Path, verdict: Verdict) -> None:
    watch = Watch([file(tmp_path)], Rounds().judge, clock=lambda: NOW + 60)
    looking = report(comparison(verdict=verdict), no_gate="short blocks: not for a gate")
    watch.experiments["kv-dtype"].take(looking, NOW)

    answers = asked(watch, "/api/v1/confirm/kv-dtype", "/api/v1/rollback/kv-dtype")

    assert answers == [(403, f"{verdict}, 60 s ago, but short blocks: not for a gate\n")] * 2


def test_a_hook_says_neither_by_a_verdict_that_is_old_or_not_there(tmp_path: Path) -> None:
    watch = Watch([file(tmp_path)], Rounds().judge, clock=lambda: NOW + 60)
    paths = ("/api/v1/confirm/kv-dtype?max_age=59", "/api/v1/confirm/kv-dtype?max_age=nan")
    early = asked(watch, *paths, "/api/v1/confirm/nobody", "/api/v1/rollback/kv-dtype?max_age=x")
    watch.experiments["kv-dtype"].take(report(), NOW)
    late = asked(watch, *paths)

    assert [status for status, _ in early] == [403, 403, 404, 400]
    assert "not judged yet" in early[0][1]
    assert [status for status, _ in late] == [403, 403]
    assert "too old" in late[0][1]
