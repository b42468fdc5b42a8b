"""Expert shapes and gates of models people run, and the configurations of kernels that the compile gate checks.

Dimensions are those of the models' published configs. Legend: D hidden size, I expert width, E experts a layer, K top-k.
"""

from dataclasses import dataclass

import torch

from rgpu.quant.bf16 import Bf16
from rgpu.quant.format import QuantFormat
from rgpu.quant.formats import FORMATS
from rgpu.quant.int4 import Int4
from rgpu.quant.int8 import Int8
from rgpu.quant.layout import SlotLayout
from rgpu.quant.mxfp4 import Mxfp4
from rgpu.types import Gate

NVIDIA = ("sm80", "sm89", "sm90", "sm100", "sm120")
AMD = ("gfx942", "gfx1100")


@dataclass(frozen=True, slots=True)
class ModelShape:
    """One layer of routed experts: `hidden` D, `intermediate` I, `experts` E, `top_k` K, its gate and biases."""

    name: str
    hidden: int
    intermediate: int
    experts: int
    top_k: int
    gate: Gate = Gate()
    bias: bool = False

    def layout(self, fmt: QuantFormat) -> SlotLayout:
        """The slot of one of its experts in a format."""
        return SlotLayout(self.intermediate, self.hidden, fmt, self.bias)


_GPT_OSS = Gate("gpt_oss", limit=7.0)
MODELS = (
    ModelShape("Qwen3-30B-A3B", 2048, 768, 128, 8),
    ModelShape("Qwen3.6-35B-A3B", 2048, 512, 256, 8),
    ModelShape("gpt-oss-20b", 2880, 2880, 32, 4, _GPT_OSS, True),
    ModelShape("gpt-oss-120b", 2880, 2880, 128, 4, _GPT_OSS, True),
    ModelShape("Mixtral-8x7B", 4096, 14336, 8, 2),
    ModelShape("DeepSeek-V2-Lite", 2048, 1408, 64, 6),
)

FAMILIES: tuple[tuple[str, QuantFormat], ...] = (
    ("int4-g128", Int4()),
    ("int4-g32-zero", Int4(32, True, torch.bfloat16)),
    ("int4-g128-order", Int4(act_order=True)),
    *((fmt.name, fmt) for fmt in FORMATS if not isinstance(fmt, Int4 | Int8 | Bf16)),
    ("int8-g32", Int8(32)),
    ("int8-rows", Int8()),
    ("bf16", Bf16()),
)


def gated() -> tuple[tuple[str, SlotLayout, Gate, int], ...]:
    """(name, layout, gate, top-k) of what the gate compiles: every family at Qwen3-30B-A3B's shape, mxfp4 at gpt-oss's."""
    qwen, oss = MODELS[0], MODELS[2]
    same = ("q8_0",)  # the code of int8 with groups
    rows = tuple((name, qwen.layout(fmt), qwen.gate, qwen.top_k) for name, fmt in FAMILIES if name not in same)
    return (*rows, ("mxfp4-gpt-oss", oss.layout(Mxfp4()), oss.gate, oss.top_k))
