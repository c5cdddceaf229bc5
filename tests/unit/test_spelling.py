import pytest

from brimline.engines import ENGINES
from brimline.spelling import known_names, nearest
from brimline.thresholds import ALERTS

KEYS = ["name", "url", "model", "timeout", "min_interval", "bearer_token_file", "tls", "gpus", "launch"]


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("modle", "model"),
        ("ulr", "url"),
        ("URL", "url"),
        ("gpu", "gpus"),
        ("min-interval", "min_interval"),
        ("minInterval", "min_interval"),
        ("interval", "min_interval"),
        ("bearer_token", "bearer_token_file"),
        ("token_file", "bearer_token_file"),
    ],
)
def test_a_misspelt_or_shortened_name_is_told_from_the_others(name: str, meant: str) -> None:
    assert nearest(name, KEYS) == meant


@pytest.mark.parametrize("name", ["port", "api_key", "role", "<<", "", "_", "wrong"])
def test_a_name_that_is_near_none_has_no_suggestion(name: str) -> None:
    assert nearest(name, KEYS) is None


def test_words_that_several_names_have_suggest_none_of_them() -> None:
    assert nearest("file", ["ca_file", "cert_file", "key_file"]) is None


def test_what_all_names_begin_with_makes_none_of_them_near() -> None:
    assert nearest("BrimlineVramFull", ALERTS) is None
    assert nearest("BrimlineVramHeadroomlow", ALERTS) == "BrimlineVramHeadroomLow"
    assert nearest("VramGrowth", ALERTS) == "BrimlineVramGrowth"


def test_the_end_of_a_sentence_names_the_nearest_and_all() -> None:
    assert known_names("vlm", ["sglang", "vllm"]) == "did you mean 'vllm'? known: sglang, vllm"
    assert known_names("openai", ["sglang", "vllm"]) == "known: sglang, vllm"


@pytest.mark.parametrize("name", [*ENGINES, *ALERTS])
def test_a_name_that_exists_is_nearest_to_itself(name: str) -> None:
    assert nearest(name, [*ENGINES, *ALERTS]) == name
