"""rgpu beside what people use: transformers with accelerate's offload, on the same weights, on one GPU."""

import gc
import importlib
import time
from typing import Any

import numpy as np
import torch
from transformers import AutoModelForCausalLM

from rgpu.experiments.benching.made_model import dense_model, qwen3_30b
from rgpu.policies.lru import Lru
from rgpu.policies.on_demand import OnDemand
from rgpu.policies.policy import Policy
from rgpu.replay.controller import Controller
from rgpu.replay.pool import PoolConfig
from rgpu.runtime.architecture import architecture_of
from rgpu.runtime.session import OffloadSession
from rgpu.store.layout import ExpertLayout
from rgpu.traces.moe_layers import moe_layers
from rgpu.types import ExpertKey, MoEShape

LAYERS, SLOTS, PROMPT, TOKENS = 6, 32, 16, 24
COLUMNS = ("contestant", "layers", "slots", "experts", "tpot_ms_p50", "reserved_gib", "same_tokens")


class _FromModule:
    """An `ExpertSource` of a stock model's own experts, in their arrangement."""

    in_place = True
    mapped_bytes = 0

    def __init__(self, layers: list[Any], layout: ExpertLayout) -> None:
        self.layout, self.layer_ids, self.experts = layout, tuple(range(len(layers))), layers[0].num_experts
        self.rows_SB = torch.empty(len(layers) * self.experts, layout.stride, dtype=torch.uint8)
        for key_layer, layer in enumerate(layers):
            for expert in range(self.experts):
                views = layout.views(self.rows_SB[key_layer * self.experts + expert])
                views.gate_up.copy_(layer.experts.gate_up_proj[expert])
                views.down.copy_(layer.experts.down_proj[expert])
        self.nbytes = self.ram_bytes = self.rows_SB.nbytes

    def shape(self, top_k: int) -> MoEShape:
        layers = len(self.layer_ids)
        sizes = (self.layout.payload_bytes,) * layers
        return MoEShape(layers, self.experts, top_k, self.layout.hidden, sizes, self.layer_ids)

    def row(self, key: ExpertKey) -> int:
        return key.layer * self.experts + key.expert

    def read_into(self, key: ExpertKey, out: np.ndarray, start: int = 0) -> None:
        np.copyto(out, self.rows_SB[self.row(key), start : start + out.nbytes].numpy())

    def close(self) -> None: ...


def compare() -> list[dict[str, Any]]:
    """A row a contestant: bfloat16, the first layers of a Qwen3-30B-A3B-shaped model, greedy, the router's own choices."""
    device, config = torch.device("cuda"), qwen3_30b(LAYERS)
    architecture = architecture_of(config, "Qwen3-30B-A3B")
    dense = dense_model(config, architecture, device, 0)
    model = _stock(dense, config)
    layout = ExpertLayout(architecture.intermediate, architecture.hidden, torch.bfloat16)
    source = _FromModule(moe_layers(model), layout)
    ids = torch.randint(0, config.vocab_size, (1, PROMPT), generator=torch.Generator().manual_seed(0)).to(device)
    rows, wanted = [], torch.zeros(0)
    contestants: list[tuple[str, Policy, int]] = [
        ("rgpu_lru", Lru(), SLOTS), ("rgpu_on_demand", OnDemand(), SLOTS), ("rgpu_resident", Lru(), config.num_experts),
    ]  # fmt: skip
    for name, policy, slots in contestants:
        tokens, row = _ours(name, dense, architecture, source, policy, slots, ids)
        wanted = tokens if not len(wanted) else wanted
        rows.append(row | {"same_tokens": bool(torch.equal(tokens, wanted))})
    del dense
    tokens, row = _timed("accelerate_cpu_offload", _offloaded(model, device), ids, 0)
    return [*rows, row | {"same_tokens": bool(torch.equal(tokens, wanted))}]


def _ours(
    name: str, dense: Any, architecture: Any, source: Any, policy: Policy, slots: int, ids: torch.Tensor
) -> tuple[torch.Tensor, dict[str, Any]]:
    pool = PoolConfig("layer", slots)
    with OffloadSession(
        dense,
        None,
        architecture,
        source,
        lambda shape: Controller(policy, shape, pool),
        record=False,
        device=ids.device,
    ) as session:
        return _timed(name, session.model, ids, slots)


def _offloaded(model: Any, device: torch.device) -> Any:
    """Each layer's experts are brought to the GPU when they run, by accelerate; everything else stays there."""
    accelerate = importlib.import_module("accelerate")
    for name, values in [*model.named_parameters(), *model.named_buffers()]:
        if ".experts." not in name:
            values.data = values.data.to(device)
    for layer in moe_layers(model):
        accelerate.cpu_offload(layer.experts, execution_device=device)
    return model


def _stock(dense: Any, config: Any) -> Any:
    """The stock model on the host with the dense part's weights and random experts."""
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16, experts_implementation="eager")
    some = torch.empty(1 << 22, dtype=torch.bfloat16).normal_(0, 0.02, generator=torch.Generator().manual_seed(2))
    weights = {name: values.cpu() for name, values in dense.state_dict().items()}
    for name, values in model.state_dict().items():
        if name not in weights:
            flat = torch.empty(values.numel(), dtype=torch.bfloat16)
            for number, start in enumerate(range(0, len(flat), len(some))):
                part = flat[start : start + len(some)]
                part.copy_(some.roll(number * 4099)[: len(part)])
            weights[name] = flat.view(values.shape)
    model.load_state_dict(weights, assign=True)
    model.model.rotary_emb = type(model.model.rotary_emb)(config)
    return model.eval().requires_grad_(False)


def _timed(name: str, model: Any, ids: torch.Tensor, slots: int) -> tuple[torch.Tensor, dict[str, Any]]:
    gc.collect()
    torch.cuda.empty_cache()
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    begins: list[float] = []
    handle = model.register_forward_pre_hook(lambda *_: begins.append(time.perf_counter()))
    out = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=TOKENS, min_new_tokens=TOKENS,
                         do_sample=False, pad_token_id=0)  # fmt: skip
    torch.cuda.synchronize()
    handle.remove()
    took = sorted(b - a for a, b in zip(begins[4:], begins[5:], strict=False))
    row = {"contestant": name, "layers": LAYERS, "slots": slots, "experts": 128,
           "tpot_ms_p50": round(1e3 * took[len(took) // 2], 3),
           "reserved_gib": round(torch.cuda.max_memory_reserved() / 2**30, 3)}  # fmt: skip
    return out[:, ids.shape[1] :].cpu(), row
