"""The recorder: what it writes is what the model decided, for several architectures, and the model stays as it was."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from rgpu.errors import InputError
from rgpu.traces.recorder import TraceRecorder
from rgpu.traces.storage import TraceWriter, load_trace
from rgpu.traces.trace import Trace

KINDS = ("Qwen3Moe", "Olmoe", "Mixtral", "GptOss", "DeepseekV3")
MoE = Callable[..., Any]


def batch() -> tuple[torch.Tensor, torch.Tensor]:
    """Three prompts of 7, 4 and 2 tokens, left-padded."""
    tokens = torch.randint(2, 97, (3, 7), generator=torch.Generator().manual_seed(3))
    mask = torch.ones(3, 7, dtype=torch.long)
    mask[1, :3] = mask[2, :5] = 0
    return tokens, mask


def hooks(model: Any) -> list[int]:
    return [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules()]


def generate(model: Any, path: Path, **options: Any) -> tuple[Trace, torch.Tensor]:
    tokens, mask = batch()
    with TraceRecorder(model, path, **options) as recorder:
        recorder.sequences([{"domain": name} for name in "abc"])
        text = model.generate(tokens, attention_mask=mask, max_new_tokens=5, min_new_tokens=5, do_sample=False)
    return load_trace(path), text


@pytest.mark.parametrize("kind", KINDS)
def test_generation_of_a_padded_batch(tmp_path: Path, make_model: MoE, kind: str) -> None:
    model = make_model(kind)
    before, config = hooks(model), model.config.to_dict()
    trace, text = generate(model, tmp_path / "a.safetensors", hidden=True, router_logits=True)
    assert hooks(model) == before and model.config.to_dict() == config
    tokens, mask = batch()
    assert torch.equal(
        text, model.generate(tokens, attention_mask=mask, max_new_tokens=5, min_new_tokens=5, do_sample=False)
    )
    assert np.diff(trace.seq_offsets).tolist() == [11, 8, 6]  # the last token is never forwarded
    assert [(s["domain"], s["prompt_tokens"]) for s in trace.header.sequences] == [("a", 7), ("b", 4), ("c", 2)]
    assert trace.token_ids is not None and trace.phase is not None
    for s, start in enumerate((0, 3, 5)):
        rows = slice(trace.seq_offsets[s], trace.seq_offsets[s + 1])
        assert trace.token_ids[rows].tolist() == text[s, start:-1].tolist()
        assert trace.positions[rows].tolist() == list(range(11 - start))
        assert trace.phase[rows].tolist() == [0] * (7 - start) + [1] * 4
        assert trace.passes[rows].tolist() == [0] * (7 - start) + [1, 2, 3, 4]
    dense = {"Qwen3Moe": [0, 2], "DeepseekV3": [1, 2]}
    assert trace.header.layer_ids == dense.get(kind, [0, 1, 2])
    experts = [m for m in model.modules() if hasattr(m, "is_transposed")]
    assert trace.header.expert_bytes == [sum(p[0].numel() * 4 for p in m.parameters()) for m in experts]


@pytest.mark.parametrize("kind", KINDS)
def test_what_enters_a_layer(tmp_path: Path, make_model: MoE, kind: str) -> None:
    model = make_model(kind)
    tokens, _ = batch()
    with torch.no_grad():
        out = model(tokens, output_hidden_states=True)
    before = hooks(model)
    with TraceRecorder(model, tmp_path / "a.safetensors", pre_attention=True), torch.no_grad():
        model(tokens)
    assert hooks(model) == before
    trace = load_trace(tmp_path / "a.safetensors")
    entered = [
        out.hidden_states[layer].reshape(21, 16) for layer in trace.header.layer_ids
    ]  # dense layers are passed over
    assert trace.hidden is None and trace.pre_attention is not None
    assert np.array_equal(trace.pre_attention, torch.stack(entered, 1).half().numpy())
    plain, _ = generate(model, tmp_path / "b.safetensors", hidden=True)
    both, _ = generate(model, tmp_path / "b.safetensors", hidden=True, pre_attention=True)
    assert both.checksum() == plain.checksum() and plain.pre_attention is None


def test_experts_outside_numbered_layers_are_refused(tmp_path: Path, make_model: MoE) -> None:
    model = make_model("Olmoe", num_hidden_layers=1)
    model.experts, model.model.layers = model.model.layers[0].mlp.experts, torch.nn.ModuleList()
    with pytest.raises(InputError, match="state before attention of experts"):
        TraceRecorder(model, tmp_path / "a.safetensors", pre_attention=True)


@pytest.mark.parametrize("kind", ["Qwen3Moe", "Olmoe", "Mixtral", "GptOss"])
def test_ids_are_the_top_of_the_logits(tmp_path: Path, make_model: MoE, kind: str) -> None:
    model = make_model(kind)
    tokens, _ = batch()
    with TraceRecorder(model, tmp_path / "a.safetensors", router_logits=True), torch.no_grad():
        out = model(tokens, output_router_logits=True)
    trace = load_trace(tmp_path / "a.safetensors")
    logits_NLE = torch.stack(out.router_logits, 1)
    assert trace.router_logits is not None and trace.weights is not None
    assert np.array_equal(trace.router_logits, logits_NLE.to(torch.float16).numpy())
    best = logits_NLE.topk(trace.header.top_k, dim=-1)
    assert np.array_equal(trace.expert_ids, best.indices.numpy())
    assert len({tuple(row) for row in trace.expert_ids[:, 0].tolist()}) > 3
    if kind in ("Mixtral", "GptOss"):  # renormalised over the chosen
        assert np.allclose(trace.weights, best.values.softmax(-1).numpy(), atol=1e-3)


def test_grouped_and_biased_routing_is_what_the_router_decided(tmp_path: Path, make_model: MoE) -> None:
    model = make_model("DeepseekV3")
    decided: list[tuple[Any, ...]] = []
    routers = [m for m in model.modules() if type(m).__name__ == "DeepseekV3TopkRouter"]
    handles = [router.register_forward_hook(lambda _m, _i, output: decided.append(output)) for router in routers]
    tokens, _ = batch()
    with TraceRecorder(model, tmp_path / "a.safetensors", hidden=True), torch.no_grad():
        model(tokens)
    for handle in handles:
        handle.remove()
    trace = load_trace(tmp_path / "a.safetensors")
    assert trace.weights is not None
    assert np.array_equal(trace.expert_ids, torch.stack([d[2] for d in decided], 1).numpy())
    assert np.array_equal(trace.weights, torch.stack([d[1] for d in decided], 1).half().numpy())
    naive = torch.stack([d[0].topk(2)[1] for d in decided], 1).numpy()
    assert not np.array_equal(np.sort(trace.expert_ids), np.sort(naive))  # the test has teeth


def test_batch_rows_route_as_alone(tmp_path: Path, make_model: MoE) -> None:
    model = make_model("Qwen3Moe")
    together, _ = generate(model, tmp_path / "a.safetensors")
    tokens, mask = batch()
    with TraceRecorder(model, tmp_path / "b.safetensors") as recorder:
        for s in range(3):
            recorder.sequences([{"domain": "abc"[s]}])
            model.generate(tokens[s : s + 1, mask[s] == 1], max_new_tokens=5, min_new_tokens=5, do_sample=False)
    alone = load_trace(tmp_path / "b.safetensors")
    assert together.token_ids is not None and alone.token_ids is not None
    assert np.array_equal(together.expert_ids, alone.expert_ids)
    assert np.array_equal(together.token_ids, alone.token_ids)
    assert alone.header.sequences == together.header.sequences
    assert np.unique(alone.passes).tolist() == list(range(15))


def test_padding_rows_are_kept_on_demand(tmp_path: Path, make_model: MoE) -> None:
    trace, _ = generate(make_model("Olmoe"), tmp_path / "a.safetensors", padding=True)
    assert trace.phase is not None and np.diff(trace.seq_offsets).tolist() == [11, 11, 11]
    assert (trace.phase == 2).sum() == 3 + 5 and trace.phase[trace.seq_offsets[1]] == 2
    assert [s["prompt_tokens"] for s in trace.header.sequences] == [7, 4, 2]


def test_rows_after_the_end_of_text_are_left_out(tmp_path: Path, make_model: MoE) -> None:
    model = make_model("Mixtral")
    tokens, mask = batch()
    free = model.generate(tokens, attention_mask=mask, max_new_tokens=6, do_sample=False, eos_token_id=None)
    ends = int(free[0, 9])  # what row 0 says third becomes the end of text
    model.generation_config.eos_token_id = ends
    with TraceRecorder(model, tmp_path / "a.safetensors"):
        text = model.generate(tokens, attention_mask=mask, max_new_tokens=6, do_sample=False, pad_token_id=1)
    trace = load_trace(tmp_path / "a.safetensors")
    assert trace.token_ids is not None
    for s, start in enumerate((0, 3, 5)):
        row = text[s, start:].tolist()
        new = row[7 - start :]
        said = row[: 7 - start + (new.index(ends) if ends in new else len(new) - 1)]
        assert trace.token_ids[trace.seq_offsets[s] : trace.seq_offsets[s + 1]].tolist() == said


def test_two_recorders_share_a_writer(tmp_path: Path, make_model: MoE) -> None:
    from rgpu.traces.moe_layers import moe_layers
    from rgpu.traces.recorder import make_header

    model = make_model("Olmoe")
    tokens, _ = batch()
    with TraceWriter(tmp_path / "a.safetensors", make_header(model, moe_layers(model))) as writer, torch.no_grad():
        for domain in "ab":
            with TraceRecorder(model, writer) as recorder:
                recorder.sequences([{"domain": domain}] * 3)
                model(tokens)
    trace = load_trace(tmp_path / "a.safetensors")
    assert [s["domain"] for s in trace.header.sequences] == list("aaabbb") and np.unique(trace.passes).tolist() == [
        0,
        1,
    ]


def test_exceptions_restore_the_model_and_leave_no_file(tmp_path: Path, make_model: MoE) -> None:
    model = make_model("Qwen3Moe")
    before = hooks(model)
    tokens, _ = batch()
    with pytest.raises(KeyboardInterrupt), TraceRecorder(model, tmp_path / "a.safetensors"):
        model(tokens)
        raise KeyboardInterrupt
    assert hooks(model) == before and list(tmp_path.iterdir()) == []
    refused = pytest.raises(InputError, match="got 2 sequence descriptions; expected 3")
    with refused, TraceRecorder(model, tmp_path / "a.safetensors") as recorder:
        recorder.sequences([{}, {}])
        model(tokens)
    with pytest.raises(InputError, match="inner module"), TraceRecorder(model, tmp_path / "a.safetensors"):
        model.model(tokens)
    assert hooks(model) == before and list(tmp_path.iterdir()) == []


def test_a_failed_pass_leaves_nothing_behind(tmp_path: Path, make_model: MoE) -> None:
    model = make_model("Qwen3Moe")
    tokens, _ = batch()
    with TraceRecorder(model, tmp_path / "a.safetensors") as recorder, torch.no_grad():
        norm = model.model.norm.register_forward_pre_hook(lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            model(tokens)
        norm.remove()
        recorder.sequences([{"domain": name} for name in "abc"])
        model(tokens)
    trace = load_trace(tmp_path / "a.safetensors")
    assert trace.tokens == 21 and [s["domain"] for s in trace.header.sequences] == list("abc")


def test_dense_model_is_refused(tmp_path: Path) -> None:
    from transformers import LlamaConfig, LlamaForCausalLM

    small: dict[str, Any] = {
        "vocab_size": 9,
        "hidden_size": 8,
        "intermediate_size": 8,
        "num_hidden_layers": 1,
        "num_attention_heads": 1,
    }
    with pytest.raises(InputError, match="no Mixture-of-Experts layer"):
        TraceRecorder(LlamaForCausalLM(LlamaConfig(**small)), tmp_path / "a.safetensors")


def test_identity_of_a_saved_model(tmp_path: Path, make_model: MoE) -> None:
    from transformers import AutoModelForCausalLM

    from rgpu.traces.moe_layers import model_identity

    make_model("Olmoe").save_pretrained(tmp_path / "toy")
    name, revision = model_identity(AutoModelForCausalLM.from_pretrained(tmp_path / "toy"))
    assert name == "toy" and len(revision) == 64
    make_model("Olmoe", rms_norm_eps=1e-3).save_pretrained(tmp_path / "toy")
    assert model_identity(AutoModelForCausalLM.from_pretrained(tmp_path / "toy"))[1] != revision
