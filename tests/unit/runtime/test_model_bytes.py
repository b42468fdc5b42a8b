"""Facts of a config against the tensors and caches of real small models."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import CONFIG_MAPPING, AutoModelForCausalLM, DynamicCache, StaticCache

from rgpu.errors import InputError
from rgpu.planning.memory_plan import plan_memory
from rgpu.quant.formats import by_name
from rgpu.quant.layout import SlotLayout
from rgpu.replay.timing.cost import cost_of
from rgpu.runtime.kv_cache import cache_bytes
from rgpu.runtime.model_bytes import facts_of, read_facts, skeleton_of
from rgpu.runtime.ring_cache import with_rings
from rgpu.traces.moe_layers import moe_layers

EXPERTS, TOP_K = 6, 2
COMMON: dict[str, Any] = {
    "vocab_size": 96, "hidden_size": 32, "num_hidden_layers": 4, "num_attention_heads": 4, "num_key_value_heads": 2,
    "num_experts_per_tok": TOP_K, "max_position_embeddings": 700, "intermediate_size": 48, "pad_token_id": 0,
}  # fmt: skip
LATENT = {
    "kv_lora_rank": 16, "q_lora_rank": 24, "qk_rope_head_dim": 8, "qk_nope_head_dim": 16, "v_head_dim": 16,
    "moe_intermediate_size": 16, "n_routed_experts": EXPERTS, "n_shared_experts": 1, "n_group": 1, "topk_group": 1,
    "first_k_dense_replace": 1, "num_key_value_heads": 4,
}  # fmt: skip
FAMILIES: dict[str, dict[str, Any]] = {
    "qwen3_moe": {"num_experts": EXPERTS, "moe_intermediate_size": 16, "head_dim": 16, "mlp_only_layers": [0]},
    "olmoe": {"num_experts": EXPERTS},
    "mixtral": {"num_local_experts": EXPERTS, "tie_word_embeddings": True},
    "gpt_oss": {"num_local_experts": EXPERTS, "head_dim": 16, "sliding_window": 12},
    "deepseek_v3": LATENT,
    "qwen2_moe": {"num_experts": EXPERTS, "moe_intermediate_size": 16, "shared_expert_intermediate_size": 40},
    "qwen3_next": {
        "num_experts": EXPERTS, "moe_intermediate_size": 16, "shared_expert_intermediate_size": 40, "head_dim": 16,
        "linear_num_key_heads": 2, "linear_num_value_heads": 4, "linear_key_head_dim": 8, "linear_value_head_dim": 8,
    },
    "granitemoe": {"num_local_experts": EXPERTS},
    "phimoe": {"num_local_experts": EXPERTS},
    "glm4_moe": {"n_routed_experts": EXPERTS, "moe_intermediate_size": 16, "head_dim": 16, "n_group": 1, "topk_group": 1},
    "ernie4_5_moe": {"moe_num_experts": EXPERTS, "moe_k": TOP_K, "moe_intermediate_size": 16},
    "minimax_m2": {"num_local_experts": EXPERTS, "head_dim": 16},
    "mimo_v2_flash": {"n_routed_experts": EXPERTS, "moe_intermediate_size": 16, "sliding_window": 12},
}  # fmt: skip


@pytest.fixture(scope="module", params=FAMILIES)
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, Any]:
    """(folder with weights, folder with config.json alone, the model in float32)."""
    kind = request.param
    torch.manual_seed(0)
    made = AutoModelForCausalLM.from_config(CONFIG_MAPPING[kind](**{**COMMON, **FAMILIES[kind]}), dtype=torch.float32)
    folder, bare = tmp_path_factory.mktemp(kind), tmp_path_factory.mktemp(f"{kind}_bare")
    made.save_pretrained(folder)
    (bare / "config.json").write_text((folder / "config.json").read_text())
    return folder, bare, made.eval()


def tensor_bytes(model: Any, module: Any = None) -> int:
    routed = {id(p) for layer in moe_layers(model) for p in layer.experts.parameters()}
    tensors = {id(t): t for t in (*(module or model).parameters(), *(module or model).buffers())}
    return sum(t.numel() * t.element_size() for key, t in tensors.items() if key not in routed)


def test_dense_bytes_are_those_of_the_model(model: tuple[Path, Path, Any]) -> None:
    _, bare, real = model
    facts = read_facts(bare, "float32")
    assert facts.dense_bytes == tensor_bytes(real)
    tied = real.get_input_embeddings().weight is real.get_output_embeddings().weight
    assert facts.embedding_bytes == tensor_bytes(real, real.get_input_embeddings())
    assert facts.head_bytes == (0 if tied else tensor_bytes(real, real.get_output_embeddings()))
    layers = real.get_decoder().layers
    assert [part.bytes for part in facts.parts] == [tensor_bytes(real, layer) for layer in layers]
    assert all(part.attention for part in facts.parts)
    assert [at for at, part in enumerate(facts.parts) if part.router] == list(facts.layer_ids)


def test_dense_bytes_of_a_model_loaded_in_half(model: tuple[Path, Path, Any]) -> None:
    """What transformers keeps in float32 counts in float32."""
    folder, bare, _ = model
    for name in ("bfloat16", "float16"):
        loaded = AutoModelForCausalLM.from_pretrained(folder, dtype=getattr(torch, name))
        assert read_facts(bare, name).dense_bytes == tensor_bytes(loaded), name


@pytest.mark.parametrize(("batch", "tokens"), [(1, 1), (1, 7), (3, 12), (2, 40)])
def test_kv_bytes_are_those_of_a_real_cache(model: tuple[Path, Path, Any], batch: int, tokens: int) -> None:
    _, bare, real = model
    cache = DynamicCache(config=real.config)
    with torch.inference_mode():
        out = real(input_ids=torch.ones(batch, tokens, dtype=torch.long), past_key_values=cache, use_cache=True)
    assert out is not None
    facts = read_facts(bare, "float32")
    assert facts.kv_bytes(tokens, batch) == cache_bytes(cache)
    by_hand = sum(t.numel() * t.element_size() for layer in cache.layers for t in held(layer))
    assert by_hand == cache_bytes(cache)


@pytest.mark.parametrize("tokens", [7, 12, 40])
def test_a_cache_of_fixed_size_takes_whole_windows(tokens: int) -> None:
    """transformers' own as well as the rings that graphs need."""
    config = CONFIG_MAPPING["gpt_oss"](**{**COMMON, **FAMILIES["gpt_oss"]})
    cache = StaticCache(config=config, max_cache_len=tokens)
    facts = facts_of(skeleton_of(config, torch.float32), "float32", "float32")
    for _ in range(2):
        for layer in range(config.num_hidden_layers):
            cache.update(torch.zeros(2, 2, 3, 16), torch.zeros(2, 2, 3, 16), layer)
        assert facts.kv_bytes(tokens, 2, fixed=True) == sum(
            layer.keys.nbytes + layer.values.nbytes for layer in cache.layers
        )
        with_rings(cache)
    plan = plan_memory(facts, vram=1 << 34, ram=1 << 34, context=tokens, batch=2)
    assert next(row.bytes for row in plan.rows if row.name == "KV cache") == facts.kv_bytes(tokens, 2, fixed=True)


def held(layer: Any) -> list[torch.Tensor]:
    states = [*getattr(layer, "conv_states", {}).values(), *getattr(layer, "recurrent_states", {}).values()]
    return [t for t in (layer.keys if hasattr(layer, "keys") else None, getattr(layer, "values", None), *states)
            if isinstance(t, torch.Tensor)]  # fmt: skip


def test_kv_bytes_grow_token_by_token(model: tuple[Path, Path, Any]) -> None:
    """A cache filled by a prompt and then one token at a time holds what one of that length holds."""
    _, bare, real = model
    facts, cache = read_facts(bare, "float32"), DynamicCache(config=real.config)
    with torch.inference_mode():
        for tokens in (9, *[1] * 8):
            real(input_ids=torch.ones(1, tokens, dtype=torch.long), past_key_values=cache, use_cache=True)
            seen = cache.get_seq_length()
            assert facts.kv_bytes(seen) == cache_bytes(cache)


def test_expert_bytes_and_shape(model: tuple[Path, Path, Any]) -> None:
    _, bare, real = model
    layers = moe_layers(real)
    for name, size in (("float32", 4), ("bfloat16", 2), ("float16", 2)):
        facts = read_facts(bare, name)
        numbers = sum(p.numel() for p in layers[0].experts.parameters()) // EXPERTS
        assert (facts.layers, facts.experts, facts.top_k) == (len(layers), EXPERTS, TOP_K)
        assert facts.expert_bytes == size * numbers
        assert facts.expert_stride >= facts.expert_bytes and facts.expert_stride % 128 == 0
        assert facts.max_context == 700
    bias = bool(layers[0].experts.has_bias)
    layout = SlotLayout(facts.intermediate, facts.hidden, by_name("int8", group=0), bias)
    stored = read_facts(bare, "bfloat16", "int8", group=0)
    assert (stored.expert_bytes, stored.expert_stride) == (layout.payload_bytes, layout.stride)
    assert stored.dense_bytes == read_facts(bare, "bfloat16").dense_bytes


def test_cost_of_the_reference_model_is_the_one_written_down() -> None:
    import yaml  # type: ignore[import-untyped]

    written = cost_of(yaml.safe_load(Path("conf/cost/reference.yaml").read_text()), 8)
    facts = read_facts("assets/reference", "float32")
    cost = facts.cost()
    norms = [part.norms for part in facts.parts]  # the file leaves norms out
    assert (cost.dense_bytes - norms).tolist() == written.dense_bytes.tolist()
    assert cost.dense_flop.tolist() == [2.0 * part.weights for part in facts.parts]
    for name in ("kv_bytes", "attention_flop", "expert_bytes", "expert_flop", "windowed"):
        assert getattr(cost, name).tolist() == getattr(written, name).tolist(), name
    assert (cost.head_bytes, cost.head_flop, cost.window) == (written.head_bytes, written.head_flop, written.window)


def test_cost_in_equal_layers_keeps_the_sums(model: tuple[Path, Path, Any]) -> None:
    _, bare, _ = model
    facts = read_facts(bare, "bfloat16")
    own, other = facts.cost(), facts.cost(7, 3)
    scale = facts.layer_scale(7)
    for name in ("dense_bytes", "dense_flop", "kv_bytes", "attention_flop"):
        assert getattr(other, name).sum() * scale == pytest.approx(getattr(own, name).sum())
    assert 3 * other.expert_bytes.sum() * scale == pytest.approx(TOP_K * own.expert_bytes.sum())
    assert 3 * other.expert_flop.sum() * scale == pytest.approx(TOP_K * own.expert_flop.sum())
    dense = sum(p.bytes for p in facts.parts) + facts.head_weights * facts.itemsize + sum(kv.state for kv in facts.kv)
    assert own.dense_bytes.sum() == dense


def test_a_quantised_checkpoint_counts_as_plain_numbers(tmp_path: Path) -> None:
    config = CONFIG_MAPPING["gpt_oss"](**{**COMMON, **FAMILIES["gpt_oss"], "intermediate_size": 64}).to_dict()
    config["quantization_config"] = {"quant_method": "mxfp4"}
    (tmp_path / "config.json").write_text(json.dumps(config))
    facts = read_facts(tmp_path, None, "mxfp4")
    assert facts.dtype == "bfloat16"
    assert facts.expert_bytes == SlotLayout(64, 32, by_name("mxfp4"), True).payload_bytes


@pytest.mark.parametrize(
    ("config", "needle"),
    [
        ({"model_type": "llama", "hidden_size": 32, "num_attention_heads": 4, "num_hidden_layers": 1}, "Mixture-of-Experts"),
        ({"model_type": "t5"}, "without a causal language model"),
        ({"model_type": "no_such_model"}, "cannot read the config"),
        ({"model_type": "qwen3_moe", "num_experts": 4, "num_attention_heads": 0}, "cannot plan"),
        ({"model_type": "minimax", **COMMON}, "cache"),
        (None, "without config.json"),
    ],
)  # fmt: skip
def test_what_cannot_be_planned_says_so_in_one_line(config: Any, needle: str, tmp_path: Path) -> None:
    if config is not None:
        (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(InputError, match=needle) as error:
        read_facts(tmp_path, "float32")
    assert "\n" not in str(error.value)


def test_unknown_names_say_so(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match="no such folder"):
        read_facts("/no/such/folder")
    with pytest.raises(InputError, match="dtype"):
        read_facts("assets/reference", "float8")
    with pytest.raises(InputError, match="storage format"):
        read_facts("assets/reference", "float32", "int3")
    with pytest.raises(InputError, match="expected none"):
        read_facts("assets/reference", "float32", "bfloat16", group=8)
    with pytest.raises(InputError, match="multiple of 128"):
        read_facts("assets/reference", "float32", "int4")

    def offline(name: str, **_: Any) -> Any:
        raise OSError("We couldn't connect to 'https://huggingface.co'\nto load the files")

    monkeypatch.setattr("rgpu.runtime.model_bytes.AutoConfig.from_pretrained", offline)
    with pytest.raises(InputError, match="couldn't connect to 'https://huggingface.co'; give a folder"):
        read_facts("owner/name")


PEAK = """
import json, sys, threading, time
import torch
from transformers import AutoConfig, AutoModelForCausalLM
from rgpu.memory.process import rss_anon_bytes
from rgpu.planning.workspace import workspace_bytes
from rgpu.runtime.model_bytes import facts_of, read_facts, skeleton_of
from rgpu.runtime.ring_cache import with_rings
torch.set_num_threads(1)
context = int(sys.argv[2])
facts = read_facts(sys.argv[1], "float32")
model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(sys.argv[1]), dtype=torch.float32,
                                         experts_implementation="eager").eval()
generate = lambda n, new: model.generate(torch.full((1, n), 5), max_new_tokens=new, do_sample=False, eos_token_id=None,
                                         pad_token_id=0)
generate(9, 2)
before = peak = rss_anon_bytes()
done = False
def watch():
    global peak
    while not done:
        peak = max(peak, rss_anon_bytes())
        time.sleep(0.0005)
thread = threading.Thread(target=watch)
thread.start()
generate(context - 4, 4)
done = True
thread.join()
print(json.dumps({"grown": peak - before, "planned": facts.kv_bytes(context) + workspace_bytes(facts, context, 1, context)}))
"""


@pytest.mark.parametrize("kind", ["qwen3_moe", "gpt_oss", "deepseek_v3"])
def test_a_run_stays_within_what_is_planned_for_it(kind: str, tmp_path: Path) -> None:
    """Cache and workspace from above, and not by much, against the private memory of a process that reads a prompt."""
    wide = {"hidden_size": 512, "num_attention_heads": 16, "vocab_size": 4000, "max_position_embeddings": 2048}
    few = {"num_key_value_heads": 16} if kind == "deepseek_v3" else {"head_dim": 32}
    settings = {**COMMON, **FAMILIES[kind], **wide, **few, "mlp_only_layers": []}
    CONFIG_MAPPING[kind](**settings).save_pretrained(tmp_path)
    done = subprocess.run(
        [sys.executable, "-c", PEAK, str(tmp_path), "1500"], capture_output=True, text=True, check=True
    )
    got = json.loads(done.stdout.splitlines()[-1])
    assert 0.4 * got["planned"] < got["grown"] < got["planned"] + (16 << 20), got
