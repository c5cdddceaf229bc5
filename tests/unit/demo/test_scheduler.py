"""The simulated engine, against the rules of vLLM's V1 scheduler and block pool."""

from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from brimline.demo.scheduler import (
    BlockPool,
    Engine,
    EngineLimits,
    ObservedHistogram,
    Request,
    Simulation,
    StepTime,
    Workload,
    requests,
    token_count_bounds,
)

BLOCK = 16
TENTH_OF_A_SECOND = StepTime(
    weight_read_bytes=1.0,
    kv_bytes_per_token=0.0,
    flops_per_token=0.0,
    attention_flops_per_pair=0.0,
    bandwidth_bytes_per_second=10.0,
    compute_flops_per_second=1.0,
    overhead_seconds=0.0,
)


def engine_of(
    blocks: int, *, seqs: int = 64, batched: int = 512, context: int = 4096, prefix_caching: bool = True
) -> Engine:
    """An engine with that many usable blocks of 16 tokens, whose steps take 0.1 s."""
    limits = EngineLimits(
        num_gpu_blocks=blocks + 1,
        block_size=BLOCK,
        max_model_len=context,
        max_num_seqs=seqs,
        max_num_batched_tokens=batched,
        enable_prefix_caching=prefix_caching,
    )
    return Engine(limits, TENTH_OF_A_SECOND)


def request(number: int, prompt: int, output: int, *, prefix: int = 0) -> Request:
    return Request(
        number=number,
        arrival=0.0,
        prompt_tokens=prompt,
        output_tokens=output,
        prefix_group=0 if prefix else None,
        prefix_tokens=prefix,
    )


def submit_all(engine: Engine, *submitted: Request) -> None:
    for one in submitted:
        engine.submit(one)


def check_blocks(engine: Engine) -> None:
    """Every block is the null block, free, or referenced as often as running requests hold it."""
    pool = engine.pool
    held = [0] * pool.num_gpu_blocks
    for running in engine.running:
        for block in running.blocks:
            held[block] += 1
    referenced = sum(1 for count in held if count)
    assert held == pool.reference_counts
    assert held[0] == 0
    assert pool.free_blocks + referenced + 1 == pool.num_gpu_blocks
    assert pool.cached_blocks <= pool.num_gpu_blocks - 1
    assert all(not waiting.blocks for waiting in engine.waiting)
    for running in engine.running:
        assert len(set(running.blocks)) == len(running.blocks) >= -(-running.computed_tokens // BLOCK)


def test_a_request_holds_the_blocks_of_its_tokens_and_gives_them_back() -> None:
    engine = engine_of(100)
    engine.submit(request(0, prompt=100, output=20))

    engine.step()

    assert engine.pool.free_blocks == 93  # 100 tokens take 7 blocks of 16
    for _ in range(19):
        engine.step()
    assert engine.running == []
    assert engine.pool.free_blocks == 100
    assert engine.finished_total["stop"] == 1


def test_the_first_token_comes_with_the_end_of_the_prompt() -> None:
    engine = engine_of(100, batched=64)
    engine.submit(request(0, prompt=150, output=2))

    generated = []
    for _ in range(4):
        engine.step()
        generated.append(engine.generation_tokens_total)

    assert generated == [0, 0, 1, 2]  # chunks of 64, 64 and 22 tokens, then a decode step
    assert engine.prompt_tokens_total == 150
    assert list(engine.time_to_first_token_seconds.cumulative())[-1][1] == 1
    assert math.isclose(engine.time_to_first_token_seconds.sum, 0.3)
    assert math.isclose(engine.inter_token_latency_seconds.sum, 0.1)
    assert math.isclose(engine.e2e_request_latency_seconds.sum, 0.4)


def test_decoding_requests_come_before_new_prompts_in_the_token_budget() -> None:
    engine = engine_of(100, batched=64)
    first, second = request(0, prompt=32, output=10), request(1, prompt=100, output=10)
    submit_all(engine, first, second)

    engine.step()
    engine.step()

    assert (first.generated_tokens, second.computed_tokens) == (2, 32 + 63)


def test_no_more_requests_run_than_max_num_seqs() -> None:
    engine = engine_of(100, seqs=3)
    submit_all(engine, *(request(number, prompt=16, output=8) for number in range(5)))

    engine.step()

    assert [one.number for one in engine.running] == [0, 1, 2]
    assert [one.number for one in engine.waiting] == [3, 4]


def test_nothing_is_generated_while_waiting() -> None:
    engine = engine_of(10)
    running, waiting = request(0, prompt=120, output=30), request(1, prompt=100, output=30)
    submit_all(engine, running, waiting)

    for _ in range(5):
        engine.step()

    assert running.generated_tokens == 5
    assert (waiting.generated_tokens, waiting.computed_tokens, waiting.blocks) == (0, 0, [])


def test_a_prompt_is_let_in_only_when_all_of_it_fits() -> None:
    engine = engine_of(10, batched=32)
    submit_all(engine, request(0, prompt=32, output=30), request(1, prompt=150, output=5))

    engine.step()
    engine.step()

    assert [one.number for one in engine.running] == [0]


def test_the_queue_is_first_come_first_served() -> None:
    engine = engine_of(10)
    submit_all(engine, request(0, 120, 30), request(1, 100, 5), request(2, 10, 5))

    engine.step()

    assert [one.number for one in engine.waiting] == [1, 2]  # the last one would fit, but it is not its turn


def test_a_full_pool_preempts_the_request_that_was_let_in_last() -> None:
    engine = engine_of(3)
    first, second = request(0, prompt=16, output=20), request(1, prompt=16, output=20)
    submit_all(engine, first, second)
    engine.step()

    engine.step()  # each needs a second block, and one is left

    assert engine.running == [first]
    assert list(engine.waiting) == [second]
    assert engine.preemptions_total == second.preemptions == 1
    assert (first.generated_tokens, second.generated_tokens) == (2, 1)
    assert second.computed_tokens == 0
    check_blocks(engine)


def test_a_preempted_request_goes_before_the_queue_and_is_computed_anew() -> None:
    engine = engine_of(3, prefix_caching=False)
    first, second = request(0, prompt=16, output=18), request(1, prompt=16, output=20)
    later = request(2, prompt=40, output=2)
    submit_all(engine, first, second)
    engine.step()
    engine.submit(later)
    engine.step()

    assert list(engine.waiting) == [second, later]
    while second in engine.waiting:
        engine.step()

    assert engine.finished_total["stop"] == 1
    assert second.generated_tokens == 2  # one before, one on the step that recomputed 17 tokens
    assert engine.prompt_tokens_total == 32  # the second look at a prompt is not counted
    assert list(engine.waiting) == [later]


def test_a_shared_prefix_is_hit_in_whole_blocks() -> None:
    engine = engine_of(100)
    engine.submit(request(0, prompt=200, output=50, prefix=100))
    engine.step()
    engine.submit(request(1, prompt=150, output=50, prefix=100))
    engine.step()

    assert engine.prefix_cache_queries_tokens_total == 350
    assert engine.prefix_cache_hits_tokens_total == 96  # 6 whole blocks of the 100 shared tokens


def test_the_blocks_of_a_shared_prefix_are_held_once() -> None:
    engine = engine_of(100)
    first, second = (request(number, prompt=128, output=50, prefix=96) for number in range(2))
    engine.submit(first)
    engine.step()
    engine.submit(second)
    engine.step()

    assert second.blocks[:6] == first.blocks[:6]
    assert set(second.blocks[6:]).isdisjoint(first.blocks)
    assert engine.pool.free_blocks == 100 - 9 - 2  # 129 tokens of the first, 128 of the second less 96
    assert sorted(engine.pool.reference_counts, reverse=True)[:7] == [2, 2, 2, 2, 2, 2, 1]


def test_requests_of_different_groups_share_nothing() -> None:
    engine = engine_of(100)
    engine.submit(request(0, prompt=128, output=50, prefix=96))
    engine.step()
    other = request(1, prompt=128, output=50, prefix=96)
    other.prefix_group = 1
    engine.submit(other)
    engine.step()

    assert engine.prefix_cache_hits_tokens_total == 0


def test_the_last_prompt_token_is_computed_even_where_all_blocks_are_found() -> None:
    engine = engine_of(100)
    engine.submit(request(0, prompt=64, output=50, prefix=64))
    engine.step()
    engine.submit(request(1, prompt=64, output=50, prefix=64))
    engine.step()

    assert engine.prefix_cache_hits_tokens_total == 48


def test_blocks_filled_by_generated_tokens_can_be_found_too() -> None:
    engine = engine_of(100)
    engine.submit(request(0, prompt=16, output=33))

    while engine.step():
        pass

    assert engine.pool.cached_blocks == 3  # 16 prompt tokens and 32 generated; the last one is never computed


def test_the_second_look_of_a_preempted_request_is_not_counted() -> None:
    engine = engine_of(3)
    submit_all(engine, request(0, prompt=16, output=18), request(1, prompt=16, output=20))

    while engine.step():
        pass

    assert engine.preemptions_total == 1
    assert engine.prefix_cache_queries_tokens_total == 32
    assert engine.prefix_cache_hits_tokens_total == 0


def test_without_prefix_caching_nothing_is_looked_up() -> None:
    engine = engine_of(100, prefix_caching=False)
    for number in range(2):
        engine.submit(request(number, prompt=64, output=50, prefix=64))
        engine.step()

    assert engine.prefix_cache_queries_tokens_total == 0
    assert engine.pool.cached_blocks == 0
    assert engine.pool.free_blocks == 100 - 5 - 4


def test_cached_blocks_that_nobody_refers_to_count_as_free() -> None:
    engine = engine_of(10)
    engine.submit(request(0, prompt=64, output=1))
    engine.step()

    assert engine.running == []
    assert engine.pool.cached_blocks == 4
    assert engine.kv_cache_usage_ratio == 0.0


def test_usage_leaves_the_null_block_out() -> None:
    engine = engine_of(10)
    engine.submit(request(0, prompt=65, output=5))
    engine.step()

    assert engine.kv_cache_usage_ratio == 0.5  # 5 of 10, although the pool counts 11


def test_the_end_of_a_prompt_is_evicted_before_its_start() -> None:
    pool = BlockPool(5)
    blocks = pool.take(4)
    for index, block in enumerate(blocks):
        pool.remember(block, index)
    pool.release(blocks)

    assert pool.take(3) == [blocks[3], blocks[2], blocks[1]]
    assert pool.cached_blocks == 1


def test_a_pool_gives_no_more_than_is_free() -> None:
    with pytest.raises(ValueError, match="5 blocks are wanted and 4 are free"):
        BlockPool(5).take(5)


@pytest.mark.parametrize(("prompt", "output"), [(200, 57), (0, 5), (5, 0), (161, 5)])
def test_what_could_never_finish_is_refused(prompt: int, output: int) -> None:
    engine = engine_of(10, context=256)

    with pytest.raises(ValueError, match="tokens do not fit"):
        engine.submit(request(0, prompt, output))


def test_a_step_costs_weights_context_and_prefill() -> None:
    step_time = StepTime(
        weight_read_bytes=200.0,
        kv_bytes_per_token=3.0,
        flops_per_token=5.0,
        attention_flops_per_pair=0.5,
        bandwidth_bytes_per_second=100.0,
        compute_flops_per_second=50.0,
        overhead_seconds=0.25,
    )

    assert step_time.seconds(context_tokens=100, prefill_tokens=0, prefill_pairs=0) == 0.25 + 5.0
    assert step_time.seconds(context_tokens=100, prefill_tokens=10, prefill_pairs=100) == 0.25 + 5.0 + 2.0


def test_token_bounds_are_1_2_5_up_to_the_context_window() -> None:
    assert token_count_bounds(1000) == (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000)
    assert token_count_bounds(131072)[-2:] == (50000, 100000)
    assert token_count_bounds(32768)[-2:] == (10000, 20000)


def test_an_observation_at_a_bound_counts_below_it() -> None:
    histogram = ObservedHistogram((1.0, 2.0))

    histogram.observe(1.0)
    histogram.observe(1.5, 3)
    histogram.observe(9.0)

    assert list(histogram.cumulative()) == [(1.0, 1), (2.0, 4), (math.inf, 5)]
    assert (histogram.sum, histogram.count) == (14.5, 5)


WORKLOAD = Workload(
    requests_per_second=3.0,
    swing=0.8,
    period_seconds=60.0,
    prompt_median_tokens=120.0,
    prompt_sigma=1.0,
    output_median_tokens=40.0,
    output_sigma=0.8,
    max_output_tokens=200,
    shared_ratio=0.5,
    prefix_tokens=(60, 100),
)


def simulate(seed: int, *, blocks: int, until: float = 60.0) -> Engine:
    engine = engine_of(blocks, context=1024)
    simulation = Simulation(engine, requests(WORKLOAD, max_model_len=1024, seed=seed))
    for tenth in range(1, round(until * 10) + 1):
        simulation.advance_to(tenth / 10)
    return engine


def test_the_same_seed_gives_the_same_run() -> None:
    runs = [simulate(seed, blocks=200) for seed in (7, 7, 8)]

    shown = [
        (
            engine.now,
            engine.generation_tokens_total,
            engine.preemptions_total,
            engine.prefix_cache_hits_tokens_total,
            engine.inter_token_latency_seconds.counts,
            engine.pool.reference_counts,
        )
        for engine in runs
    ]
    assert shown[0] == shown[1] != shown[2]


def test_a_run_is_the_same_however_finely_it_is_advanced() -> None:
    fine = simulate(7, blocks=200)
    coarse = engine_of(200, context=1024)

    Simulation(coarse, requests(WORKLOAD, max_model_len=1024, seed=7)).advance_to(60.0)

    assert (coarse.generation_tokens_total, coarse.now) == (fine.generation_tokens_total, fine.now)


def test_an_idle_engine_waits_for_the_next_request() -> None:
    engine = engine_of(10)
    late = Request(number=0, arrival=5.0, prompt_tokens=10, output_tokens=1)
    simulation = Simulation(engine, iter([late]))

    simulation.advance_to(4.0)
    assert (engine.now, engine.steps_total) == (4.0, 0)
    simulation.advance_to(9.0)

    assert engine.finished_total["stop"] == 1
    assert math.isclose(engine.e2e_request_latency_seconds.sum, 0.1)


def test_more_requests_come_at_the_peak_than_in_the_trough() -> None:
    arrivals = []
    for one in requests(WORKLOAD, max_model_len=1024, seed=1):
        if one.arrival >= 600:
            break
        arrivals.append(one.arrival % 60.0)

    rising = sum(1 for second in arrivals if second < 30)
    # 3 a second for 600 s; with a swing of 0.8 the upper half of the sine holds 1/2 + 0.8/π of them: 0.755.
    assert abs(len(arrivals) - 1800) < 4 * math.sqrt(1800)
    assert abs(rising / len(arrivals) - 0.755) < 0.05


def test_requests_fit_the_context_window() -> None:
    stream = requests(WORKLOAD, max_model_len=256, seed=1)
    drawn = [next(stream) for _ in range(500)]

    assert max(one.prompt_tokens + one.output_tokens for one in drawn) == 256
    assert all(one.prefix_tokens <= one.prompt_tokens for one in drawn)
    assert {one.finished_reason for one in drawn} == {"stop", "length"}
    assert all((one.output_tokens == 128) == (one.finished_reason == "length") for one in drawn)


@settings(max_examples=40, deadline=None)
@given(
    blocks=st.integers(8, 60),
    seqs=st.integers(1, 12),
    batched=st.integers(16, 200),
    prefix_caching=st.booleans(),
    shapes=st.lists(
        st.tuples(
            st.integers(1, 100),  # prompt
            st.integers(1, 27),  # output; 127 tokens fit 8 blocks
            st.integers(0, 80),  # how much of the prompt is shared
            st.integers(0, 6),  # steps before it arrives
        ),
        max_size=30,
    ),
)
def test_blocks_and_tokens_are_conserved_at_every_step(
    blocks: int, seqs: int, batched: int, prefix_caching: bool, shapes: list[tuple[int, int, int, int]]
) -> None:
    engine = engine_of(blocks, seqs=seqs, batched=batched, prefix_caching=prefix_caching)
    submitted: list[Request] = []

    def check() -> None:
        check_blocks(engine)
        assert engine.generation_tokens_total == sum(one.generated_tokens for one in submitted)
        assert engine.preemptions_total == sum(one.preemptions for one in submitted)
        assert engine.prefix_cache_hits_tokens_total % BLOCK == 0
        assert len(engine.running) <= seqs
        finished = sum(engine.finished_total.values())
        assert finished + len(engine.running) + len(engine.waiting) == len(submitted)

    for number, (prompt, output, shared, steps) in enumerate(shapes):
        for _ in range(steps):
            engine.step()
            check()
        submitted.append(request(number, prompt, output, prefix=min(shared, prompt)))
        engine.submit(submitted[-1])
    for _ in range(20_000):
        if engine.step() == 0.0:
            break
        check()

    assert sum(engine.finished_total.values()) == len(submitted)
    assert engine.pool.free_blocks == blocks
    assert engine.prompt_tokens_total == sum(one.prompt_tokens for one in submitted)
    assert engine.request_generation_tokens.sum == engine.generation_tokens_total
    first_tokens = engine.time_to_first_token_seconds.count
    assert engine.inter_token_latency_seconds.count == engine.generation_tokens_total - first_tokens
