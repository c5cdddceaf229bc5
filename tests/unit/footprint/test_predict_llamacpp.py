"""llama.cpp's memory by device: its own dry run, and the rules by which it places layers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import settings as limits
from hypothesis import strategies as st

import brimline.demo
from brimline.errors import FootprintError
from brimline.footprint.calibration import Calibration
from brimline.footprint.gguf import Gguf, GgufTensor, layout_of_gguf
from brimline.footprint.gpus import described_gpu, find_gpu
from brimline.footprint.hf_config import architecture_of_config, architecture_of_gguf
from brimline.footprint.predict import Model, as_json, predict
from brimline.footprint.predict_llamacpp import llamacpp_build
from brimline.footprint.weights import stored_in_gguf
from brimline.footprint.what_if import Scenario, surroundings
from brimline.plan import longest_context
from brimline.readings import Footprint

GIB = 1 << 30
MIB = 1 << 20
H100 = find_gpu("H100")


def tensor(name: str, *shape: int, type_: str = "f16", bytes_each: float = 2) -> GgufTensor:
    size = 1
    for length in shape:
        size *= length
    return GgufTensor(name, shape, type_, int(size * bytes_each))


def vector(name: str, length: int) -> GgufTensor:
    return tensor(name, length, type_="f32", bytes_each=4)


def gguf_of(
    family: str, metadata: dict[str, Any], layer: list[GgufTensor], layers: int, *, tied: bool = False
) -> Model:
    """A model whose layers are alike, as its GGUF header would say it."""
    width, vocabulary = metadata["embedding_length"], metadata["vocab_size"]
    tensors = [tensor("token_embd.weight", width, vocabulary), vector("output_norm.weight", width)]
    if not tied:
        tensors.append(tensor("output.weight", width, vocabulary))
    for index in range(layers):
        tensors += [
            GgufTensor(f"blk.{index}.{each.name}", each.shape, each.type, each.size_bytes) for each in layer
        ]
    entries = {f"{family}.{name}": value for name, value in metadata.items()}
    file = Gguf({"general.architecture": family, f"{family}.block_count": layers, **entries}, tuple(tensors))
    architecture = architecture_of_gguf(file, "model.gguf")
    return Model(architecture, stored_in_gguf(file, architecture, "model.gguf"))


def llama(layers: int = 32, *, tied: bool = False) -> Model:
    """Llama-3.1-8B in F16, by the sizes of its config.json."""
    return gguf_of(
        "llama",
        {
            "embedding_length": 4096, "feed_forward_length": 14336, "attention.head_count": 32,
            "attention.head_count_kv": 8, "attention.key_length": 128, "attention.value_length": 128,
            "context_length": 131072, "vocab_size": 128256,
        },
        [
            vector("attn_norm.weight", 4096), tensor("attn_q.weight", 4096, 4096),
            tensor("attn_k.weight", 4096, 1024), tensor("attn_v.weight", 4096, 1024),
            tensor("attn_output.weight", 4096, 4096), vector("ffn_norm.weight", 4096),
            tensor("ffn_gate.weight", 4096, 14336), tensor("ffn_up.weight", 4096, 14336),
            tensor("ffn_down.weight", 14336, 4096),
        ],
        layers,
        tied=tied,
    )  # fmt: skip


def qwen_30b_a3b() -> Model:
    """Qwen3-30B-A3B in F16: 48 layers of 128 experts, of which a token takes 8."""
    return gguf_of(
        "qwen3moe",
        {
            "embedding_length": 2048, "feed_forward_length": 768, "expert_feed_forward_length": 768,
            "expert_count": 128, "expert_used_count": 8, "attention.head_count": 32,
            "attention.head_count_kv": 4, "attention.key_length": 128, "attention.value_length": 128,
            "context_length": 40960, "vocab_size": 151936,
        },
        [
            vector("attn_norm.weight", 2048), tensor("attn_q.weight", 2048, 4096),
            tensor("attn_k.weight", 2048, 512), tensor("attn_v.weight", 2048, 512),
            tensor("attn_output.weight", 4096, 2048), vector("attn_q_norm.weight", 128),
            vector("attn_k_norm.weight", 128), vector("ffn_norm.weight", 2048),
            tensor("ffn_gate_inp.weight", 2048, 128, type_="f32", bytes_each=4),
            tensor("ffn_gate_exps.weight", 2048, 768, 128), tensor("ffn_up_exps.weight", 2048, 768, 128),
            tensor("ffn_down_exps.weight", 768, 2048, 128),
        ],
        48,
    )  # fmt: skip


LLAMA, QWEN = llama(), qwen_30b_a3b()


def of(
    model: Model = LLAMA, gpu: Any = None, version: str | None = None, calibration: Any = None, **flags: Any
) -> Footprint:
    settings = {name: str(value).lower() for name, value in flags.items()}
    return predict("llamacpp", model, settings, version=version, gpu=gpu, calibration=calibration)


def on_host(footprint: Footprint) -> dict[str, int]:
    return {name: part.expected for name, part in footprint.ranks[0].host.items()}


# Bytes of weights, cache and compute buffers that llama.cpp's own dry run gives each device (build 11434,
# llama_get_memory_breakdown with no_alloc; its CPU served over RPC in the place of GPUs, which work on no
# weights of the host). Flags, the host, the GPUs.
Device = tuple[int, int, int]
DRY_RUNS: dict[str, tuple[Model, dict[str, Any], Device, list[Device]]] = {
    "all on the CPU": (
        LLAMA, {"device": "none", "parallel": 1}, (16061054976, 1073741824, 138430496), [],
    ),
    "all on one GPU": (
        LLAMA, {"parallel": 1, "n_gpu_layers": 99},
        (1050673152, 0, 41961504), [(15010381824, 1073741824, 130037792)],
    ),
    "four slots": (
        LLAMA, {"parallel": 4, "n_gpu_layers": 99},
        (1050673152, 0, 35670048), [(15010381824, 1073741824, 123746336)],
    ),
    "four slots in one cache": (
        LLAMA, {"parallel": 4, "kv_unified": True, "n_gpu_layers": 99},
        (1050673152, 0, 41961504), [(15010381824, 1073741824, 130037792)],
    ),
    "no flash attention": (
        LLAMA, {"parallel": 1, "flash_attn": "off", "n_gpu_layers": 99},
        (1050673152, 0, 54540320), [(15010381824, 1073741824, 599795744)],
    ),
    "quantized cache": (
        LLAMA, {"parallel": 1, "cache_type_k": "q8_0", "cache_type_v": "q8_0", "n_gpu_layers": 99},
        (1050673152, 0, 42043424), [(15010381824, 570425344, 130119712)],
    ),
    "large micro batch": (
        LLAMA, {"parallel": 1, "ubatch_size": 2048, "n_gpu_layers": 99},
        (1050673152, 0, 167845920), [(15010381824, 1073741824, 520151072)],
    ),
    "ten layers": (
        LLAMA, {"parallel": 1, "n_gpu_layers": 10},
        (11084201984, 771751936, 138430496), [(4976852992, 301989888, 113256480)],
    ),
    "all layers but one": (
        LLAMA, {"parallel": 1, "n_gpu_layers": 32},
        (1486913536, 33554432, 138430496), [(14574141440, 1040187392, 113256480)],
    ),
    "two GPUs": (
        LLAMA, {"parallel": 1, "device": "a,b", "n_gpu_layers": "all"},
        (1050673152, 0, 117514368),
        [(7416086528, 570425344, 255909888), (7594295296, 503316480, 213950592)],
    ),
    "three GPUs by shares": (
        LLAMA, {"parallel": 1, "tensor_split": "3,1,2"},
        (1050673152, 0, 117514368),
        [
            (7416086528, 570425344, 255909888), (2181201920, 167772160, 213950464),
            (5413093376, 335544320, 213950592),
        ],
    ),
    "twenty layers on two GPUs": (
        LLAMA, {"parallel": 1, "tensor_split": "3,1", "n_gpu_layers": 20},
        (6721798144, 436207616, 138430496),
        [(6543605760, 503316480, 113256448), (2795651072, 134217728, 113256480)],
    ),
    "experts": (
        QWEN, {"parallel": 1, "n_gpu_layers": 99},
        (622329856, 0, 25184288), [(60467503104, 805306368, 96483360)],
    ),
    "experts of twenty layers on the host": (
        QWEN, {"parallel": 1, "n_gpu_layers": 99, "n_cpu_moe": 20},
        (24781520896, 0, 88098848), [(36308312064, 805306368, 96483328)],
    ),
    "experts on the host and two GPUs": (
        QWEN, {"parallel": 1, "tensor_split": "2,1", "n_cpu_moe": 20},
        (24781520896, 0, 88360512),
        [(16984359936, 553648128, 96483328), (19323952128, 251658240, 88614944)],
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", DRY_RUNS)
def test_every_device_holds_what_llama_cpp_gives_it(case: str) -> None:
    model, flags, host, gpus = DRY_RUNS[case]

    footprint = of(model, version="b11434", ctx_size=8192, op_offload="off", fit="off", **flags)

    outputs = 4 * model.architecture.vocabulary * int(flags["parallel"])
    found = on_host(footprint)
    assert found["weights"] == host[0]
    assert found.get("kv_cache", 0) == host[1]
    assert found["activations"] - outputs == pytest.approx(host[2], rel=0.06)
    ranks = [rank.components for rank in footprint.ranks if rank.components]
    assert [parts["weights"].expected for parts in ranks] == [device[0] for device in gpus]
    assert [parts["kv_cache"].expected for parts in ranks] == [device[1] for device in gpus]
    for parts, device in zip(ranks, gpus, strict=True):
        working = parts["activations"]
        assert working.low <= device[2] <= working.high
        assert working.expected == pytest.approx(device[2], rel=0.25)


# --- which devices there are


def test_without_a_gpu_and_a_flag_that_speaks_of_one_all_of_it_is_host_memory() -> None:
    footprint = of(ctx_size=8192)

    document = as_json(footprint)
    assert document["per_gpu"]["components"] == {}
    assert document["per_gpu"]["total"]["high"] == 0
    assert set(document["per_gpu"]["host"]) == {"weights", "kv_cache", "activations"}
    assert document["fits"] is None
    assert document["headroom_bytes"] is None
    assert any("a server on the CPU is assumed" in line for line in footprint.assumptions)


@pytest.mark.parametrize("flags", [{"n_gpu_layers": 99}, {"tensor_split": "1"}, {"device": "CUDA0"}])
def test_a_flag_that_speaks_of_a_gpu_puts_the_layers_there(flags: dict[str, Any]) -> None:
    footprint = of(ctx_size=8192, **flags)

    assert footprint.fullest.components["kv_cache"].expected == 8192 * 131072
    assert on_host(footprint)["weights"] == 128256 * 4096 * 2


def test_layers_are_not_offloaded_without_being_asked_by_builds_before_6325() -> None:
    footprint = of(gpu=H100, version="b6000-abc", ctx_size=8192)

    assert footprint.fullest.components["weights"].expected == 0
    assert on_host(footprint)["kv_cache"] == 8192 * 131072


def test_a_gpu_copies_the_largest_matrix_of_the_host_to_work_on_it() -> None:
    """With no layers there: `CUDA0 compute buffer size` holds the head and all logits before build 9464."""
    plain = of(gpu=H100, version="b9000", ctx_size=8192, n_gpu_layers=0, op_offload="off")
    copying = of(gpu=H100, version="b9000", ctx_size=8192, n_gpu_layers=0)

    more = [
        one.fullest.components["activations"].expected - other.fullest.components["activations"].expected
        for one, other in [(copying, plain)]
    ]
    assert more == [128256 * 4096 * 2]


def test_a_tied_head_is_a_copy_on_the_gpu_and_none_on_the_cpu() -> None:
    table = 128256 * 4096 * 2

    offloaded, alone = of(llama(tied=True), n_gpu_layers=99), of(llama(tied=True))

    assert on_host(alone)["weights"] == llama(tied=True).stored.total  # type: ignore[union-attr]
    assert on_host(offloaded)["weights"] == table
    assert offloaded.fullest.components["weights"].expected == on_host(alone)["weights"]


def test_a_cache_that_is_not_offloaded_is_host_memory() -> None:
    footprint = of(ctx_size=8192, n_gpu_layers=99, kv_offload="false")

    assert footprint.fullest.components["kv_cache"].expected == 0
    assert on_host(footprint)["kv_cache"] == 8192 * 131072


def test_the_last_layers_and_the_head_go_to_the_gpu_first() -> None:
    one = of(ctx_size=8192, n_gpu_layers=1)

    assert one.fullest.components["weights"].expected == 128256 * 4096 * 2 + 4096 * 4
    assert one.fullest.components["kv_cache"].expected == 0


def test_layers_that_only_predict_further_tokens_count_as_layers_and_are_not_loaded() -> None:
    """GLM-4.5 has 46 blocks, the last of them such a layer (llama-hparams.h, n_layer_nextn)."""
    file = Gguf(
        {
            "general.architecture": "glm4moe", "glm4moe.block_count": 3, "glm4moe.nextn_predict_layers": 1,
            "glm4moe.embedding_length": 64, "glm4moe.feed_forward_length": 128,
            "glm4moe.attention.head_count": 4, "glm4moe.attention.head_count_kv": [2, 2, 2],
            "glm4moe.context_length": 4096, "glm4moe.vocab_size": 100, "glm4moe.expert_count": 4,
            "glm4moe.expert_used_count": 2, "glm4moe.expert_feed_forward_length": 32,
        },
        (tensor("token_embd.weight", 64, 100), tensor("blk.0.attn_q.weight", 64, 64),
         tensor("blk.2.attn_q.weight", 64, 64)),
    )  # fmt: skip
    architecture = architecture_of_gguf(file, "glm.gguf")

    layout = layout_of_gguf(file, len(architecture.layers))

    assert (len(architecture.layers), architecture.draft_layers) == (2, 1)
    assert [layer.size for layer in layout.layers] == [64 * 64 * 2, 0]


# --- slots and context


def test_a_server_left_to_itself_has_four_slots_in_one_cache() -> None:
    footprint = of(ctx_size=8192)

    cache = footprint.kv_cache
    assert footprint.max_running_requests == 4
    assert (cache.capacity_tokens, cache.max_model_len_tokens) == (8192, 8192)
    assert cache.max_concurrency_requests == 1


def test_slots_split_the_context_in_steps_of_256_cells() -> None:
    """`-c 1000 -np 3` gives three of 512."""
    footprint = of(ctx_size=1000, parallel=3)

    cache = footprint.kv_cache
    assert (cache.capacity_tokens, cache.max_model_len_tokens) == (1536, 512)
    assert cache.max_concurrency_requests == 3
    assert on_host(footprint)["kv_cache"] == 1536 * 131072
    assert (cache.num_blocks, cache.stage_block_bytes) == (None, ())


def test_what_a_running_server_says_of_its_slots_wins_over_the_size_that_was_asked_for() -> None:
    """/slots: 3 of 512 each, of `-c 1000`; 2 that share 4096; 2 capped at what the model was made for."""
    split = of(ctx_size=1000, parallel=3, n_ctx=512, kv_unified=False)
    shared = of(parallel=2, n_ctx=4096, kv_unified=True)
    other = of(ctx_size=65536, parallel=2, n_ctx=4096, kv_unified=True)
    capped = of(ctx_size=400_000, parallel=2, n_ctx=131072, kv_unified=True)

    assert split.kv_cache.capacity_tokens == 1536
    assert shared.kv_cache.capacity_tokens == 4096
    assert other.kv_cache.capacity_tokens == 4096
    assert capped.kv_cache.capacity_tokens == 400_128


@pytest.mark.parametrize(("slots", "cells"), [(4, 8192), (3, 3 * 8192), (1, 8192)])
def test_a_running_server_with_the_default_number_of_slots_is_taken_to_share_its_cache(
    slots: int, cells: int
) -> None:
    footprint = of(parallel=slots, n_ctx=8192)

    assert footprint.kv_cache.capacity_tokens == cells
    assert any("State kv_unified" in line for line in footprint.assumptions) is (slots > 1)


def test_a_slot_serves_no_more_than_the_model_was_made_for() -> None:
    footprint = of(ctx_size=400_000, parallel=2)

    assert footprint.kv_cache.max_model_len_tokens == 131072
    assert footprint.kv_cache.capacity_tokens == 400_384
    assert any("made for no more" in line for line in footprint.assumptions)


def test_a_token_costs_k_and_v_of_all_layers_in_their_own_types() -> None:
    """32 layers of 8 heads of 128: 34 bytes for 32 elements in q8_0, 18 in q4_0."""
    plain, quantized = of(ctx_size=8192), of(ctx_size=8192, cache_type_k="q8_0", cache_type_v="q4_0")

    assert plain.kv_cache.bytes_per_token == 131072
    assert quantized.kv_cache.bytes_per_token == 32 * 8 * 4 * (34 + 18)
    assert plain.kv_cache.is_proportional


def test_older_builds_make_logits_of_the_whole_micro_batch() -> None:
    """512 rows of 128,256 logits in fp32 are 250.5 MiB."""
    old, new = (of(ctx_size=8192, n_gpu_layers=99, version=version) for version in ("b9000", "b9464"))

    more = old.fullest.components["activations"].expected - new.fullest.components["activations"].expected
    feed_forward = 3 * 512 * 14336 * 4
    assert more == 512 * 128256 * 4 - feed_forward


@pytest.mark.parametrize(
    ("version", "build"),
    [("b6470-1a2b3c4", 6470), ("11434", 11434), ("b0-unknown", None), ("0.3.36", None), (None, None)],
)
def test_a_build_is_its_number(version: str | None, build: int | None) -> None:
    assert llamacpp_build(version) == build


# --- what fits


def test_all_of_it_must_fit_since_all_of_it_is_allocated_at_the_start() -> None:
    large = of(gpu=H100, ctx_size=8192)
    small = of(gpu=described_gpu(16 * GIB, 1e12), ctx_size=8192, fit="off", n_gpu_layers=99)

    assert large.fits is True
    assert large.headroom_bytes == H100.visible_bytes.expected - large.fullest.total.expected
    assert small.fits is False


def test_a_server_lowers_a_context_that_was_not_asked_for_until_it_fits() -> None:
    """A card of 24 GiB, 1 GiB of it left free, has no room for 16 GiB of cache beside 14 of weights."""
    card = described_gpu(24 * GIB, 1e12)

    footprint = of(gpu=card)

    rank = footprint.fullest
    assert footprint.fits is True
    assert 30_000 < footprint.kv_cache.max_model_len_tokens < 70_000
    assert footprint.kv_cache.max_model_len_tokens % 256 == 0
    assert 0.9 * GIB < card.visible_bytes.expected - rank.total.expected < 1.2 * GIB
    assert any(line.startswith("--fit lowers the context") for line in footprint.assumptions)


def test_a_context_that_was_asked_for_stays_and_layers_go_to_the_host() -> None:
    footprint = of(gpu=described_gpu(16 * GIB, 1e12), ctx_size=32768)

    assert footprint.kv_cache.capacity_tokens == 32768
    assert on_host(footprint)["kv_cache"] > 0
    assert any("--fit leaves" in line for line in footprint.assumptions)


def test_experts_go_to_the_host_before_layers_do() -> None:
    footprint = of(QWEN, gpu=described_gpu(40 * GIB, 1e12), ctx_size=8192)

    assert any("--fit keeps the experts" in line for line in footprint.assumptions)
    assert footprint.fullest.components["kv_cache"].expected == 8192 * 98304
    assert on_host(footprint)["weights"] > 20 * GIB


def test_nothing_is_lowered_where_layers_were_asked_for() -> None:
    footprint = of(gpu=described_gpu(16 * GIB, 1e12), ctx_size=32768, n_gpu_layers=33)

    assert footprint.fits is False
    assert footprint.fullest.components["kv_cache"].expected == 32768 * 131072


def test_a_server_that_leaves_layers_on_the_host_fits_whatever_its_context() -> None:
    """It measures its own parts and gives up layers until its margin is left.

    14 GiB of weights on a card of 16 GiB leave room for few tokens beside all layers, for more beside fewer.
    """
    card = described_gpu(16 * GIB, 1e12)
    said = [
        of(gpu=card, ctx_size=context)
        for context in (1024, 2048, 4096, 8192, 16384, 24576, 32768, 65536, 131072)
    ]

    assert [one.fits for one in said] == [True] * len(said)
    assert len({line for one in said for line in one.assumptions if "--fit leaves" in line}) > 3
    for one in said:
        rank = one.fullest
        assert rank.total.high <= card.visible_bytes.high - GIB
        assert rank.total.expected == sum(part.expected for part in rank.components.values())


def test_a_server_that_may_not_move_layers_is_judged_by_its_high_bounds() -> None:
    """Weights of 14.0 GiB ± 1 % and a cache of 1 GiB, on cards on both sides of the bound."""
    wide, narrow = (
        of(gpu=described_gpu(size, 1e12), ctx_size=8192, n_gpu_layers=99)
        for size in (int(18.5 * GIB), int(16.2 * GIB))
    )

    assert (wide.fits, narrow.fits) == (True, False)


def test_the_longest_context_that_fits_does_not_depend_on_where_the_search_begins() -> None:
    """With layers that stay where they are, and with layers that move: whatever lies below it fits, too."""
    card = described_gpu(24 * GIB, 1e12)
    cases: tuple[tuple[dict[str, Any], int | None], ...] = (({"n_gpu_layers": "99"}, None), ({}, 131072))
    for settings, longest in cases:
        scenario = Scenario(model=LLAMA, engine="llamacpp", settings=settings, gpu=card)
        found = longest_context(scenario, "ctx_size")
        around = surroundings(scenario, seconds=60)

        assert found is not None
        assert longest in (None, found)
        assert around.longest_fitting is not None
        # A slot has cells in steps of 256.
        assert -(-around.longest_fitting // 256) == -(-found // 256)
        assert all(
            of(LLAMA, card, ctx_size=length, **settings).fits
            for length in range(256, found, max(256, found // 20))
        )
        if found < 131072:
            assert not of(LLAMA, card, ctx_size=found + 512, **settings).fits


def test_a_gpu_holds_its_cuda_context_beside() -> None:
    """451 MiB on an RTX 4090 (llama.cpp pull request 15860)."""
    runtime = of(gpu=H100, ctx_size=8192).fullest.components["runtime"]

    assert runtime.low <= 451 * MIB <= runtime.high


def test_a_calibration_of_the_build_and_gpu_replaces_the_table() -> None:
    measured = Calibration(engine="llamacpp", version="b11434", gpu=H100.name, context_bytes=600 * MIB)

    taken = of(gpu=H100, version="b11434-a", ctx_size=8192, calibration=measured)
    refused = of(gpu=H100, version="b11435-a", ctx_size=8192, calibration=measured)

    assert taken.fullest.components["runtime"].expected == 600 * MIB
    assert refused.fullest.components["runtime"].expected != 600 * MIB
    assert any("is not used here" in line for line in refused.assumptions)


def test_the_decode_ceiling_is_that_of_one_gpu_however_many_share_the_layers() -> None:
    """Llama-3.1-8B in 16 bits on H100: 221 tokens/s at 1k of context."""
    one, two = of(gpu=H100, ctx_size=8192), of(gpu=H100, ctx_size=8192, tensor_split="1,1")

    assert one.decode_ceiling is not None
    assert two.decode_ceiling is not None
    assert round(one.decode_ceiling(1, 1024)) == 221
    assert two.decode_ceiling(1, 1024) == one.decode_ceiling(1, 1024)
    assert of(gpu=H100, ctx_size=8192, n_gpu_layers=3).decode_ceiling is None


def test_a_model_that_is_no_gguf_yet_is_computed_as_if_it_were_one() -> None:
    """q4_k_m of Llama-3.1-8B: 4.58 GiB (llama.cpp, tools/quantize/README.md)."""
    config = {
        "model_type": "llama", "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32,
        "num_attention_heads": 32, "num_key_value_heads": 8, "vocab_size": 128256,
        "max_position_embeddings": 131072, "torch_dtype": "bfloat16", "tie_word_embeddings": False,
    }  # fmt: skip
    model = Model(architecture_of_config(config, "config.json"))

    footprint = of(model, n_gpu_layers=99, quantization="q4_k_m")

    rank = footprint.fullest
    whole = rank.components["weights"].expected + on_host(footprint)["weights"]
    assert whole / GIB == pytest.approx(4.58, rel=0.01)
    assert rank.components["weights"].low < rank.components["weights"].high


@pytest.mark.parametrize(
    ("flags", "rule"),
    [
        ({"ctx_size": "many"}, "--ctx-size"),
        ({"parallel": 0}, "--parallel 0"),
        ({"parallel": 5000, "ctx_size": 4096}, "--parallel 5000: llama.cpp has at most 256 slots"),
        ({"cache_type_k": "fp8"}, "--cache-type-k"),
        ({"cache_type_v": "q8_0", "flash_attn": "off"}, "--flash-attn"),
        ({"tensor_split": "a,b"}, "--tensor-split"),
        ({"tensor_split": "0,0"}, "--tensor-split"),
        ({"tensor_split": "1,1,1", "device": "CUDA0,CUDA1"}, "--device only 2"),
        ({"split_mode": "diagonal"}, "--split-mode"),
        ({"n_gpu_layers": "some"}, "--n-gpu-layers"),
        ({"flash_attn": "maybe"}, "--flash-attn"),
    ],
)
def test_nonsense_is_refused_by_the_name_of_its_flag(flags: dict[str, Any], rule: str) -> None:
    with pytest.raises(FootprintError) as error:
        of(**flags)

    assert rule in str(error.value)


# --- rules that hold for any launch

launches = st.fixed_dictionaries(
    {
        "parallel": st.integers(1, 4),
        "kv_unified": st.booleans(),
        "n_gpu_layers": st.integers(0, 40),
        "tensor_split": st.sampled_from(["1", "1,1", "3,1", "2,1,1", "0,1"]),
        "ubatch_size": st.sampled_from([64, 512]),
        "n_cpu_moe": st.sampled_from([0, 7, 60]),
    }
)


@pytest.mark.parametrize("model", [LLAMA, QWEN], ids=["dense", "experts"])
@limits(max_examples=40, deadline=None)
@given(launches, st.integers(1, 60_000))
def test_devices_together_hold_the_whole(model: Model, launch: dict[str, Any], context: int) -> None:
    split = of(model, ctx_size=context, fit="off", **launch)
    whole = of(
        model, ctx_size=context, fit="off", device="none", parallel=launch["parallel"],
        kv_unified=launch["kv_unified"], ubatch_size=launch["ubatch_size"],
    )  # fmt: skip

    for part in ("weights", "kv_cache"):
        devices = sum(rank.components[part].expected for rank in split.ranks)
        assert devices + on_host(split).get(part, 0) == on_host(whole)[part]


@limits(max_examples=40, deadline=None)
# Contexts of a few tokens bound the micro batch too, and its buffers are placed otherwise.
@given(launches, st.integers(512, 60_000), st.integers(512, 60_000))
def test_a_longer_context_never_takes_less(launch: dict[str, Any], first: int, second: int) -> None:
    shorter, longer = (
        of(ctx_size=context, fit="off", **launch) for context in (min(first, second), max(first, second))
    )

    for small, large in zip(shorter.ranks, longer.ranks, strict=True):
        assert small.total.expected <= large.total.expected
    assert sum(on_host(shorter).values()) <= sum(on_host(longer).values())


@limits(max_examples=40, deadline=None)
@given(st.integers(0, 33), st.integers(0, 33), st.sampled_from(["1", "1,1", "3,1"]))
def test_more_layers_on_gpus_leave_less_on_the_host(first: int, second: int, split: str) -> None:
    fewer, more = sorted((first, second))

    some, many = (
        of(ctx_size=8192, fit="off", n_gpu_layers=layers, tensor_split=split) for layers in (fewer, more)
    )

    assert on_host(many)["weights"] <= on_host(some)["weights"]
    assert on_host(many).get("kv_cache", 0) <= on_host(some).get("kv_cache", 0)


@limits(max_examples=40, deadline=None)
@given(launches)
def test_bounds_stay_in_order_and_total_is_the_sum(launch: dict[str, Any]) -> None:
    for rank in of(QWEN, ctx_size=8192, gpu=H100, **launch).ranks:
        for part in rank.components.values():
            assert 0 <= part.low <= part.expected <= part.high
            assert part.source
        assert rank.total.expected == sum(part.expected for part in rank.components.values())


# --- A drafter

LLAMA_8B_FOLDER = Path(brimline.demo.__file__).parent / "llama-3.1-8b"


def test_a_drafter_has_its_weights_once_and_a_context_for_each_slot() -> None:
    """Llama 8B in F16 without its input embedding: 7,504,924,672 × 2 B; 131,072 B of K/V for each token."""
    flags = {"ctx_size": "8192", "parallel": "2", "n_gpu_layers": "99", "fit": "off"}

    alone = predict("llamacpp", llama(), flags, gpu=H100)
    with_it = predict("llamacpp", llama(), {**flags, "model_draft": str(LLAMA_8B_FOLDER)}, gpu=H100)

    draft = with_it.fullest.components["draft_model"]
    weights, cache = 7_504_924_672 * 2, 4096 * 131_072
    assert weights + 2 * cache < draft.expected < weights + 2 * cache + 2 * GIB
    assert draft.low >= 0.99 * weights + cache
    assert with_it.fullest.total.expected - alone.fullest.total.expected == draft.expected
    # Its input embedding stays on the host.
    assert with_it.fullest.host["draft_model"].expected >= 128_256 * 4096 * 2


def test_a_drafter_may_stay_on_the_host() -> None:
    flags = {"ctx_size": "4096", "n_gpu_layers": "99", "model_draft": str(LLAMA_8B_FOLDER)}

    footprint = predict("llamacpp", llama(), {**flags, "n_gpu_layers_draft": "0"}, gpu=H100)

    assert footprint.fullest.host["draft_model"].expected > 14 * GIB


def test_a_drafter_that_is_not_here_is_said_not_to_be_counted() -> None:
    footprint = predict("llamacpp", llama(), {"ctx_size": "4096", "model_draft": "/no/draft.gguf"}, gpu=H100)

    assert "draft_model" not in footprint.fullest.components
    assert any(text.startswith("The draft model is not counted") for text in footprint.assumptions)
