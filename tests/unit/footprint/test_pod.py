"""POD (arXiv 2412.02252) as a question: what sharing keys of distant tokens would save."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from brimline.errors import FootprintError
from brimline.estimate import exact
from brimline.footprint.pod import PodSettings, pod_kv_cache_bytes, pod_saving_ratio


@pytest.mark.parametrize(
    ("context_tokens", "saving"),
    # The paper saves 35 % of 32k; 37.5 and 38.8 % follow for 64k and 128k with the same share.
    [(32768, 0.35), (65536, 0.375), (131072, 0.3875), (4096, 0.0), (1000, 0.0)],
)
def test_the_saving_grows_with_the_context_from_4096_tokens_on(context_tokens: int, saving: float) -> None:
    assert pod_saving_ratio(context_tokens) == pytest.approx(saving, abs=1e-9)


def test_no_more_than_half_is_saved_since_values_are_not_shared() -> None:
    everything = PodSettings(first_tokens=0, recent_tokens=0, shared_ratio=1.0)

    assert pod_saving_ratio(10**6, everything) == 0.5


def test_keys_of_another_size_than_values_count_by_size() -> None:
    everything = PodSettings(first_tokens=0, recent_tokens=0, shared_ratio=1.0)

    assert pod_saving_ratio(1000, everything, key_dim=192, value_dim=128) == 0.6


def test_the_cache_shrinks_by_the_saving_and_no_saving_is_the_bound() -> None:
    size = pod_kv_cache_bytes(exact(1000, "kv"), 32768)

    assert (size.expected, size.high) == (650, 1000)


@pytest.mark.parametrize("wrong", [{"shared_ratio": 1.1}, {"first_tokens": -1}, {"recent_tokens": -1}])
def test_settings_that_cannot_be_are_refused_by_name(wrong: dict[str, float]) -> None:
    with pytest.raises(FootprintError, match=next(iter(wrong))):
        PodSettings(**wrong)  # type: ignore[arg-type]


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 1 << 22), st.integers(0, 1 << 20), st.floats(0, 1))
def test_the_saving_never_falls_with_context_and_stays_below_half(
    context_tokens: int, more: int, shared: float
) -> None:
    pod = PodSettings(shared_ratio=shared)

    saving = pod_saving_ratio(context_tokens, pod)

    assert 0 <= saving <= pod_saving_ratio(context_tokens + more, pod) <= 0.5
