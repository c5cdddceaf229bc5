"""Launch settings, from command lines as people write them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from brimline.engines.launch import (
    config_file,
    image_version,
    mismatches,
    misspelt,
    normalize,
    parse_launch,
    settings_of_config,
    split_command,
    unwrapped,
)
from brimline.engines.llamacpp import ADAPTER as LLAMACPP
from brimline.engines.sglang import ADAPTER as SGLANG
from brimline.engines.trtllm import ADAPTER as TRTLLM
from brimline.engines.vllm import ADAPTER as VLLM


def vllm(command: str) -> dict[str, str]:
    return parse_launch(split_command(command), VLLM)


def llamacpp(command: str) -> dict[str, str]:
    return parse_launch(split_command(command), LLAMACPP)


@pytest.mark.parametrize(
    "program",
    [
        "vllm serve",
        "/opt/venv/bin/vllm serve",
        "/usr/bin/python3 /opt/venv/bin/vllm serve",
        "uv run vllm serve",
        "CUDA_VISIBLE_DEVICES=0,1 vllm serve",
        "python -m vllm.entrypoints.cli.main serve",
    ],
)
def test_the_model_stands_behind_serve(program: str) -> None:
    settings = vllm(f"{program} meta-llama/Llama-3.1-8B -tp 2 --max-model-len 128k")

    assert settings == {
        "model": "meta-llama/Llama-3.1-8B",
        "tensor_parallel_size": "2",
        "max_model_len": "128000",
    }


@pytest.mark.parametrize(
    "program",
    [
        "python -m vllm.entrypoints.openai.api_server",
        "python3 -u -m vllm.entrypoints.openai.api_server",
        "/opt/venv/bin/python3.11 -O -m vllm.entrypoints.openai.api_server",
        "VLLM_USE_V1=1 python3 -m vllm.entrypoints.openai.api_server",
        "python /src/vllm/entrypoints/openai/api_server.py",
    ],
)
def test_a_module_or_script_takes_its_model_by_flag(program: str) -> None:
    settings = vllm(f"{program} --model /models/llama --max-num-seqs 64")

    assert settings == {"model": "/models/llama", "max_num_seqs": "64"}


def test_a_lower_case_unit_is_decimal_and_an_upper_case_one_binary() -> None:
    # human_readable_int of vLLM 0.32, engine/arg_utils.py
    assert vllm("vllm serve m --max-model-len 128k")["max_model_len"] == "128000"
    assert vllm("vllm serve m --max-model-len 128K")["max_model_len"] == "131072"
    assert vllm("vllm serve m --max-model-len 131072")["max_model_len"] == "131072"


def test_flag_and_value_may_be_one_word() -> None:
    settings = vllm("vllm serve m --gpu-memory-utilization=0.90 -tp=4 --kv-cache-dtype=fp8")

    assert settings == {
        "model": "m",
        "gpu_memory_utilization": "0.9",
        "tensor_parallel_size": "4",
        "kv_cache_dtype": "fp8",
    }


def test_underscores_in_a_flag_are_hyphens() -> None:
    assert vllm("vllm serve m --max_model_len 4096") == {"model": "m", "max_model_len": "4096"}


def test_a_no_flag_is_false_and_takes_no_value() -> None:
    settings = vllm("vllm serve --no-enable-prefix-caching m")
    behind = vllm("vllm serve m --no-enable-prefix-caching --enable-chunked-prefill")

    assert settings == {"enable_prefix_caching": "false", "model": "m"}
    assert behind == {"model": "m", "enable_prefix_caching": "false", "enable_chunked_prefill": "true"}


def test_a_switch_takes_no_value_even_before_a_word() -> None:
    assert vllm("vllm serve m --enforce-eager extra -tp 2") == {
        "model": "m",
        "enforce_eager": "true",
        "tensor_parallel_size": "2",
    }


def test_a_json_value_stays_as_it_was_quoted() -> None:
    settings = vllm(
        'vllm serve m --speculative-config \'{"method": "ngram", "num_speculative_tokens": 3}\' '
        '-O "{\\"level\\": 3}"'
    )

    assert settings == {
        "model": "m",
        "speculative_config": '{"method": "ngram", "num_speculative_tokens": 3}',
        "compilation_config": '{"level": 3}',
    }


def test_lines_may_be_continued() -> None:
    settings = vllm(
        "vllm serve '/models/my llama' \\\n  --tensor-parallel-size 2 \\\n  --max-model-len \\\n  32768\n"
    )

    assert settings == {"model": "/models/my llama", "tensor_parallel_size": "2", "max_model_len": "32768"}


def test_a_negative_number_is_a_value_and_no_flag() -> None:
    assert vllm("vllm serve m --seed -1 --swap-space -0.5") == {
        "model": "m",
        "seed": "-1",
        "swap_space": "-0.5",
    }


def test_the_last_of_several_wins() -> None:
    assert vllm("vllm serve m -tp 2 --tensor-parallel-size 4")["tensor_parallel_size"] == "4"


def test_addresses_and_names_are_no_settings() -> None:
    settings = vllm("vllm serve m --host 0.0.0.0 --port 8000 --served-model-name chat chat-2 --uds /tmp/s")

    assert settings == {"model": "m"}


def test_short_flags_of_vllm_have_their_long_names() -> None:
    settings = vllm("vllm serve m -tp 2 -pp 3 -dp 4 -dcp 2 -q awq -ep")

    assert settings == {
        "model": "m",
        "tensor_parallel_size": "2",
        "pipeline_parallel_size": "3",
        "data_parallel_size": "4",
        "decode_context_parallel_size": "2",
        "quantization": "awq",
        "enable_expert_parallel": "true",
    }


@pytest.mark.parametrize("program", ["llama-server", "/usr/local/bin/llama-server", "./llama-server"])
def test_minus_m_of_llama_server_is_its_model(program: str) -> None:
    settings = llamacpp(f"{program} -m x.gguf -c 4096 -np 4 -ctk q8_0 -fa")

    assert settings == {
        "model": "x.gguf",
        "ctx_size": "4096",
        "parallel": "4",
        "cache_type_k": "q8_0",
        "flash_attn": "true",
    }


def test_long_flags_of_llama_server_mean_the_same() -> None:
    settings = llamacpp(
        "llama-server --model /m/x.gguf --ctx-size 4096 --parallel 4 --cache-type-k q8_0 --cache-type-v q4_0 "
        "--flash-attn on --gpu-layers 99 --metrics --host :: --port 8080"
    )

    assert settings == {
        "model": "/m/x.gguf",
        "ctx_size": "4096",
        "parallel": "4",
        "cache_type_k": "q8_0",
        "cache_type_v": "q4_0",
        "flash_attn": "on",
        "n_gpu_layers": "99",
        "metrics": "true",
    }


@pytest.mark.parametrize(
    ("flag", "unified"),
    [("-kvu", "true"), ("--kv-unified", "true"), ("-no-kvu", "false"), ("--no-kv-unified", "false")],
)
def test_a_unified_cache_is_told_from_a_split_one(flag: str, unified: str) -> None:
    assert llamacpp(f"llama-server {flag} -m x.gguf") == {"kv_unified": unified, "model": "x.gguf"}


def test_short_and_long_form_of_keeping_the_cache_off_the_gpu_agree() -> None:
    short = llamacpp("llama-server -m x.gguf -nkvo -c 512")

    assert short == llamacpp("llama-server -m x.gguf --no-kv-offload -c 512")
    assert short == {"model": "x.gguf", "kv_offload": "false", "ctx_size": "512"}


def test_unbalanced_quotes_are_a_value_error() -> None:
    with pytest.raises(ValueError, match="No closing quotation"):
        split_command("vllm serve 'm")


@given(
    st.lists(
        st.text(max_size=8) | st.sampled_from(["-m", "--", "-", "serve", "--x", "python", "-1", "--no-"])
    )
)
def test_any_words_give_settings(words: list[str]) -> None:
    for adapter in (VLLM, LLAMACPP):
        settings = parse_launch(words, adapter)

        assert all(isinstance(value, str) for value in settings.values())


# --- which command line is whose


@pytest.mark.parametrize(
    ("command", "engines"),
    [
        ("vllm serve m", ["vllm"]),
        ("/usr/bin/python3 /opt/bin/vllm serve m", ["vllm"]),
        ("python -m vllm.entrypoints.openai.api_server --model m", ["vllm"]),
        ("python3 /src/vllm/entrypoints/openai/api_server.py", ["vllm"]),
        ("vllm bench throughput", []),
        ("nginx -g 'daemon off;'", []),
        ("/app/llama-server -m x.gguf", ["llamacpp"]),
        ("llama-cli -m x.gguf", []),
        ("python3 -m sglang.launch_server --model-path m --tp 2", ["sglang"]),
        ("sglang serve --model-path m", ["sglang"]),
        ("trtllm-serve m --tp_size 2", ["trtllm"]),
        ("trtllm-serve serve m", ["trtllm"]),
    ],
)
def test_the_program_tells_the_engine(command: str, engines: list[str]) -> None:
    words = split_command(command)

    assert [
        adapter.name for adapter in (LLAMACPP, SGLANG, TRTLLM, VLLM) if adapter.launch_program(words)
    ] == engines


@pytest.mark.parametrize(
    "size", ["--tp 2", "--tp-size 2", "--tensor-parallel-size 2", "--tensor-parallel-size=2"]
)
@pytest.mark.parametrize("model", ["--model m", "--model-path m"])
def test_sglangs_flags_have_one_name(model: str, size: str) -> None:
    words = split_command(f"python -m sglang.launch_server {model} {size} --mem-fraction-static 0.8")

    assert parse_launch(words, SGLANG) == {"model_path": "m", "tp_size": "2", "mem_fraction_static": "0.8"}


@pytest.mark.parametrize("program", ["trtllm-serve", "trtllm-serve serve", "/usr/local/bin/trtllm-serve"])
def test_the_model_stands_behind_trtllm_serve(program: str) -> None:
    words = split_command(f"{program} /models/m --tp_size 2 --max_seq_len 8192")

    assert parse_launch(words, TRTLLM) == {"model": "/models/m", "tp_size": "2", "max_seq_len": "8192"}


@pytest.mark.parametrize(
    ("command", "gpus"),
    [
        ("vllm serve m", 1),
        ("vllm serve m -tp 2", 2),
        ("vllm serve m -tp 2 --device cpu", 0),
        ("VLLM_CPU_KVCACHE_SPACE=40 vllm serve m -tp 2", 0),
        ("vllm serve m -tp 2 -pp 3 -dp 4", 24),
        ("vllm serve m -tp 2 -pcp 2", 4),
        ("vllm serve m -tp two", None),
        ("vllm serve m -tp 2 -dp 8 -dpl 2", 4),
        ("vllm serve m -tp 2 -dp 8 -dpn 3", 2),
        ("vllm serve m -tp 8 -pp 2 --nnodes 2 --node-rank 0", None),
        ("vllm serve m -tp 8 -pp 2 --distributed-executor-backend ray", None),
    ],
)
def test_a_vllm_server_uses_the_product_of_its_parallel_sizes(command: str, gpus: int | None) -> None:
    assert VLLM.world_size(vllm(command)) == gpus


@pytest.mark.parametrize(
    ("settings", "gpus"),
    [
        ({}, 1),
        ({"tp_size": "4", "pp_size": "2"}, 8),
        ({"tp_size": "16", "nnodes": "2"}, None),
        ({"tp_size": "8", "dp_size": "8"}, None),
        ({"tp_size": "two"}, None),
    ],
)
def test_an_sglang_server_uses_the_product_of_its_parallel_sizes(
    settings: dict[str, str], gpus: int | None
) -> None:
    assert SGLANG.world_size(settings) == gpus


def test_llama_cpp_spreads_over_what_it_sees_so_its_settings_do_not_say() -> None:
    assert LLAMACPP.world_size({"tensor_split": "1,1"}) is None


# --- comparing


@pytest.mark.parametrize(
    ("name", "value", "text"),
    [
        ("max_model_len", 131072, "131072"),
        ("max_model_len", "128K", "131072"),
        ("max_model_len", "131072.0", "131072"),
        ("max_model_len", "auto", "auto"),
        ("gpu_memory_utilization", "0.90", "0.9"),
        ("gpu_memory_utilization", 0.9, "0.9"),
        ("tensor_parallel_size", 2.0, "2"),
        ("enable_prefix_caching", True, "true"),
        ("enable_prefix_caching", "True", "true"),
        ("kv_cache_dtype", "fp8", "fp8"),
        ("seed", "nan", "nan"),
        ("max_model_len", "9" * 400, "9" * 400),
    ],
)
def test_one_value_has_one_spelling(name: str, value: object, text: str) -> None:
    assert normalize(name, value) == text


def test_only_settings_that_are_declared_and_live_are_compared() -> None:
    declared = {"max_model_len": "4096", "kv_cache_dtype": "fp8", "enforce_eager": "true"}
    live = {"max_model_len": "8192", "kv_cache_dtype": "fp8", "block_size": "16"}

    assert mismatches(declared, live) == {"max_model_len": True, "kv_cache_dtype": False}


def test_a_declared_auto_is_the_engines_own_choice_and_differs_from_nothing() -> None:
    assert mismatches({"kv_cache_dtype": "auto"}, {"kv_cache_dtype": "fp8"}) == {}


def test_a_declared_fp8_cache_that_the_server_does_not_have_differs() -> None:
    assert mismatches({"kv_cache_dtype": "fp8"}, {"kv_cache_dtype": "auto"}) == {"kv_cache_dtype": True}


def test_a_setting_that_is_nearly_a_flag_is_doubted() -> None:
    doubts = misspelt({"tensor_paralel_size": "2", "max_model_len": "8192", "seed": "1"}, VLLM)

    assert doubts == [
        "'tensor_paralel_size' is no flag of vLLM known here; did you mean 'tensor_parallel_size'?"
    ]


def test_a_flag_that_looks_like_another_and_is_one_is_not_doubted() -> None:
    assert misspelt({"dcp_size": "2"}, SGLANG) == []


@pytest.mark.parametrize(
    ("command", "words"),
    [
        ("bash -c 'vllm serve m -tp 2'", ["vllm", "serve", "m", "-tp", "2"]),
        ("/bin/bash -lc 'cd /x && exec vllm serve m'", ["vllm", "serve", "m"]),
        ("docker run image sh -c 'X=1 vllm serve m; sleep 1'", ["vllm", "serve", "m"]),
        ("vllm serve m", ["vllm", "serve", "m"]),
        ("bash -c 'python train.py'", ["bash", "-c", "python train.py"]),
        ("bash -c", ["bash", "-c"]),
    ],
)
def test_the_command_within_a_shell_is_found(command: str, words: list[str]) -> None:
    assert unwrapped(split_command(command), [VLLM, LLAMACPP]) == words


@pytest.mark.parametrize(
    ("command", "version"),
    [
        ("docker run vllm/vllm-openai:v0.19.0 --model m", "0.19.0"),
        ("docker run registry:5000/vllm/vllm-openai:0.20.1-cu129 --model m", "0.20.1"),
        ("docker run vllm/vllm-openai:latest --model m", None),
        ("docker run vllm/vllm-openai --model m", None),
        ("vllm serve m", None),
    ],
)
def test_the_tag_of_an_image_is_a_version(command: str, version: str | None) -> None:
    assert image_version(split_command(command), VLLM) == version


@pytest.mark.parametrize(
    ("command", "file"),
    [
        ("vllm serve m --config a.yaml", "a.yaml"),
        ("vllm serve m --config=a.yaml -tp 2", "a.yaml"),
        ("vllm serve m --config", None),
        ("vllm serve m", None),
    ],
)
def test_a_command_line_names_its_file_of_settings(command: str, file: str | None) -> None:
    assert config_file(split_command(command), VLLM) == file


def test_keys_of_a_file_of_settings_are_flags() -> None:
    """vLLM 0.33, utils/argparse_utils.py load_config_file: nested ones become JSON."""
    stated = {"tensor-parallel-size": 2, "enforce-eager": True, "max_model_len": "16K", "port": 8000,
              "speculative-config": {"method": "ngram"}}  # fmt: skip

    assert settings_of_config(stated, VLLM) == {
        "tensor_parallel_size": "2",
        "enforce_eager": "true",
        "max_model_len": "16384",
        "speculative_config": '{"method": "ngram"}',
    }


def test_a_model_path_is_compared_by_its_last_part() -> None:
    live = {"model": "/root/.cache/models/llama-8b"}

    assert mismatches({"model": "/models/llama-8b/"}, live) == {"model": False}
    assert mismatches({"model": "/models/llama-70b"}, live) == {"model": True}


def test_the_arguments_of_a_container_image_are_the_servers() -> None:
    docker = "docker run --gpus all -p 8000:8000 --ipc=host vllm/vllm-openai:v0.9.2"

    assert vllm(f"{docker} --model m --tensor-parallel-size 2") == {"model": "m", "tensor_parallel_size": "2"}


def test_a_path_with_the_name_of_an_image_in_it_is_no_image() -> None:
    program = "/opt/vllm-cpu-0.32.0/bin/python /opt/vllm-cpu-0.32.0/bin/vllm serve"

    assert vllm(f"{program} /models/a --max-num-seqs 8") == {"model": "/models/a", "max_num_seqs": "8"}


def test_the_model_may_stand_behind_the_flags() -> None:
    assert vllm("vllm serve -tp 2 org/model") == {"tensor_parallel_size": "2", "model": "org/model"}


def test_minus_one_is_the_engines_own_choice() -> None:
    assert mismatches({"parallel": "-1"}, {"parallel": "4"}) == {}


@pytest.mark.parametrize(
    ("command", "settings"),
    [
        ("VLLM_CPU_KVCACHE_SPACE=40 vllm serve m", {"kv_cache_memory_bytes": str(40 << 30)}),
        ("docker run -e VLLM_CPU_KVCACHE_SPACE=1 vllm-cpu m", {"kv_cache_memory_bytes": str(1 << 30)}),
        ("docker run --name server --rm vllm/vllm-cpu:v0.19.0 m", {}),
        ("docker run --rm public.ecr.aws/q9t5s3a7/vllm-cpu-release-repo:v0.19.0 --model m", {}),
    ],
)
def test_a_vllm_server_on_the_cpu_is_known_by_its_image_or_its_pool(
    command: str, settings: dict[str, str]
) -> None:
    assert parse_launch(split_command(command), VLLM) == {"device": "cpu", "model": "m", **settings}


@pytest.mark.parametrize(
    "command",
    [
        "vllm serve /models/vllm-cpu",
        "vllm serve org/vllm-cpu-tuned -tp 2",
        "vllm serve m --tensor-parallel-size 2 --served-model-name vllm-cpu-baseline",
        "python -m vllm.entrypoints.openai.api_server --otlp-traces-endpoint http://vllm-cpu.mon:4317",
        "VLLM_CPU_KVCACHE_SPACE=0 vllm serve m",
        "docker run vllm/vllm-openai --model m",
        "docker run -d --name vllm-cpu -v vllm-cpu:/root vllm/vllm-openai:v0.9.2 --model vllm-cpu",
    ],
)
def test_another_vllm_server_is_not_taken_for_one_on_the_cpu(command: str) -> None:
    assert "device" not in parse_launch(split_command(command), VLLM)


def test_names_like_an_image_behind_the_program_hide_no_setting() -> None:
    command = "vllm serve org/vllm-cpu-tuned -tp 2 --served-model-name vllm-openai"

    assert vllm(command) == {"model": "org/vllm-cpu-tuned", "tensor_parallel_size": "2"}
