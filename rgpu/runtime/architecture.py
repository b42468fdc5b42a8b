"""Which experts a local model has, found on a skeleton without weights."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PretrainedConfig, PreTrainedModel

from rgpu.checkpoint.experts import checkpoint_files
from rgpu.errors import InputError
from rgpu.quant.gates import apply_gate
from rgpu.traces.moe_layers import moe_layers
from rgpu.types import Gate

_UNABLE = {"has_gate": True, "has_post_expert_norm": False}  # flags of experts that rgpu computes


@dataclass(frozen=True, slots=True)
class Architecture:
    """A model's config, its class, the class of its experts modules, where those sit (`layer_ids` of the model) and
    their size: `experts` a layer of which `top_k` are routed, `intermediate` and `hidden` the dimensions of one.

    How the module holds them: `transposed` ([D, 2I]), `interleaved` (rows of gate and up alternate), `bias`. `gate` is how an
    expert joins its projections, None where no kernel knows it. `quantised`: the checkpoint's quantisation settings, or None.
    """

    config: PretrainedConfig
    model_class: type[PreTrainedModel]
    experts_class: type[torch.nn.Module]
    layer_ids: tuple[int, ...]
    experts: int
    top_k: int
    intermediate: int
    hidden: int
    transposed: bool = False
    interleaved: bool = False
    bias: bool = False
    gate: Gate | None = None
    quantised: dict[str, Any] | None = None

    def differs_from(self, layer_ids: tuple[int, ...], experts: int, intermediate: int, hidden: int) -> str:
        """What sets these weights apart from the config, in words; "" when they fit."""
        ours = (self.layer_ids, self.experts, self.intermediate, self.hidden)
        if ours == (layer_ids, experts, intermediate, hidden):
            return ""
        say = "{1} experts of {2} x {3} in layers {0}".format
        return f"got weights of {say(list(layer_ids), experts, intermediate, hidden)}; config.json says {say(*ours)}"


def read_architecture(model_dir: Path) -> Architecture:
    """Reads config.json and builds the model on the meta device. Raises `InputError` for a folder that is missing or
    incomplete, a model without routed experts, and experts of a layout that rgpu cannot run."""
    checkpoint_files(model_dir)
    config = _config(model_dir)
    quantised = getattr(config, "quantization_config", None)
    if quantised is not None:
        del config.quantization_config  # what is left is loaded as plain numbers, whatever the experts are stored in
    return architecture_of(config, f"{model_dir}", quantised)


def architecture_of(config: PretrainedConfig, name: str, quantised: dict[str, Any] | None = None) -> Architecture:
    """The architecture that a config describes; `name` is the model's in errors."""
    mapping: Any = AutoModelForCausalLM._model_mapping
    if type(config) not in mapping:
        raise InputError(
            f"cannot run {name}: got model type '{config.model_type}' without a causal language model in "
            "transformers; expected a Mixture-of-Experts one such as qwen3_moe or olmoe"
        )
    model_class = mapping[type(config)]
    with torch.device("meta"):
        skeleton = model_class(config)
    layers = moe_layers(skeleton)
    classes = {type(layer.experts) for layer in layers}
    experts = layers[0].experts
    odd = [f"{n}={getattr(experts, n)}" for n, value in _UNABLE.items() if getattr(experts, n, value) != value]
    if odd or len(classes) > 1 or not hasattr(experts, "gate_up_proj"):
        got = ", ".join(odd) or " and ".join(sorted(c.__name__ for c in classes))
        raise InputError(
            f"cannot run {name}: got experts with {got}; expected gated experts (gate_up_proj, down_proj) as in "
            "qwen3_moe, mixtral or gpt_oss; choose such a model"
        )
    layer_ids = tuple(layer.layer_id for layer in layers)
    text = config.get_text_config()
    transposed = bool(experts.is_transposed)
    shape = tuple(experts.gate_up_proj.shape[1:])
    doubled, hidden = shape[::-1] if transposed else shape
    return Architecture(
        config, model_class, classes.pop(), layer_ids, layers[0].num_experts, int(text.num_experts_per_tok), doubled // 2,
        hidden, transposed, not experts.is_concatenated, bool(experts.has_bias), gate_of(experts), quantised,
    )  # fmt: skip


def gate_of(experts: Any) -> Gate | None:
    """The `Gate` that does what an experts module does to its projections, found by trying; None: no kernel has it."""
    limit, alpha = getattr(experts, "limit", None), float(getattr(experts, "alpha", None) or 1.702)
    candidates = [Gate("silu"), Gate("gelu_tanh")]
    if limit:
        candidates = [Gate(kind, alpha, float(limit)) for kind in ("gpt_oss", "silu", "gelu_tanh")]
    g, u = torch.linspace(-9, 9, 32), torch.linspace(8, -7, 32).roll(5)
    both = torch.stack([g, u], dim=-1).flatten() if not experts.is_concatenated else torch.cat([g, u])
    wanted = experts._apply_gate(both[None])[0]
    close = (gate for gate in candidates if torch.allclose(apply_gate(gate, g, u), wanted, rtol=1e-5, atol=1e-5))
    return next(close, None)


def _config(model_dir: Path) -> PretrainedConfig:
    if not (model_dir / "config.json").exists():
        raise InputError(
            f"no model at {model_dir}: got a folder without config.json; expected a transformers model folder"
        )
    try:
        config: PretrainedConfig = AutoConfig.from_pretrained(model_dir, local_files_only=True)
    except (OSError, ValueError, KeyError) as error:
        line = " ".join(str(error).split())[:160]
        raise InputError(f"cannot read {model_dir}/config.json: got {line}; expected a transformers config") from None
    return config
