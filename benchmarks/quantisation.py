"""What quantised experts cost in language modelling, on the reference model; appends dated rows to
benchmarks/results/quantisation.jsonl.

    python benchmarks/quantisation.py [--tokens 4096] [--table table.md]

All routed experts are quantised and replaced by the numbers that the stored arrays stand for; the rest of the model stays
as it is, and everything is computed in float32. The loss is in nats per token on windows of the shipped held-out text,
`--tokens` of every domain. Its change is paired by window, so the standard error is that of the change, not of the text.
Formats that need 256 columns (q4_k, q6_k) do not fit experts that are 64 wide.

Legend: N rows, K columns of the stacked experts of a layer; rows are quantised alone, so stacking changes nothing.
"""

import argparse
import json
import math
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import bitsandbytes.functional
import gguf
import numpy as np
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from rgpu.quant.bf16 import Bf16
from rgpu.quant.int4 import Int4
from rgpu.quant.int4_fit import fit
from rgpu.quant.int8 import Int8
from rgpu.quant.layout import SlotLayout
from rgpu.quant.mxfp4 import Mxfp4
from rgpu.quant.nf4 import Nf4
from rgpu.quant.q8_0 import Q8_0
from rgpu.results.provenance import stamp

RESULTS = Path(__file__).parent / "results" / "quantisation.jsonl"
END_OF_TEXT = "<|endoftext|>"
Arrays = Mapping[str, torch.Tensor]


@dataclass(frozen=True)
class Variant:
    """A format and how its arrays are made; `provider` is the library that chose codes and scales."""

    format: Any
    quantiser: str
    quantise: Callable[[torch.Tensor], Arrays]
    provider: str = "rgpu"

    @property
    def label(self) -> str:
        """The format and its group, as the table names them."""
        if self.format.name == "bf16":
            return "bf16"
        kind = " asymmetric" if getattr(self.format, "asymmetric", False) else ""
        return f"{self.format.name}{kind}, " + (
            f"group {self.format.group}" if self.format.group else "one scale a row"
        )


def by_bitsandbytes(weight_NK: torch.Tensor) -> Arrays:
    """nf4 arrays of bitsandbytes' quantisation: its bytes hold the even column in the high nibble."""
    packed, state = bitsandbytes.functional.quantize_4bit(weight_NK.contiguous(), quant_type="nf4", blocksize=64)
    codes = torch.stack((packed.flatten() >> 4, packed.flatten() & 15), -1).reshape(weight_NK.shape)
    return Nf4().store(codes, state.absmax.reshape(weight_NK.shape[0], -1))


def q8_0_by_gguf(weight_NK: torch.Tensor) -> Arrays:
    """q8_0 arrays of gguf's quantisation: blocks of a half and 32 int8."""
    blocks = gguf_blocks(weight_NK, gguf.GGMLQuantizationType.Q8_0, 34)
    scale = blocks[..., :2].contiguous().view(torch.float16)[..., 0]
    codes = (blocks[..., 2:].contiguous().view(torch.int8).short() + 128).reshape(weight_NK.shape)
    return Q8_0().store(codes, scale)


def mxfp4_by_gguf(weight_NK: torch.Tensor) -> Arrays:
    """mxfp4 arrays of gguf's quantisation: blocks of a scale and 16 bytes, low nibbles first."""
    blocks = gguf_blocks(weight_NK, gguf.GGMLQuantizationType.MXFP4, 17)
    codes = torch.cat((blocks[..., 1:] & 15, blocks[..., 1:] >> 4), -1).reshape(weight_NK.shape)
    return Mxfp4().store(codes, blocks[..., 0])


def gguf_blocks(weight_NK: torch.Tensor, kind: Any, size: int) -> torch.Tensor:
    """uint8 [N, blocks, size]."""
    return torch.from_numpy(gguf.quants.quantize(weight_NK.numpy(), kind)).reshape(weight_NK.shape[0], -1, size)


def variants() -> Iterator[Variant]:
    """Every row of the table, the reference first."""
    yield Variant(Bf16(), "none", lambda w: Bf16().store(w.bfloat16()))
    for group in (0, 64):
        yield Variant(Int8(group), "nearest", Int8(group).quantize)
    yield Variant(Q8_0(), "nearest", q8_0_by_gguf, "gguf")
    for group in (32, 64):
        for asymmetric in (False, True):
            fmt = Int4(group, asymmetric)
            yield Variant(fmt, "nearest", fmt.quantize)
            yield Variant(fmt, "fit", lambda w, fmt=fmt: fit(fmt, w))  # type: ignore[misc]
    yield Variant(Nf4(), "nearest", by_bitsandbytes, "bitsandbytes")
    yield Variant(Mxfp4(), "OCP", Mxfp4().quantize)
    yield Variant(Mxfp4(), "nearest", mxfp4_by_gguf, "gguf")


def windows(folder: Path, tokenizer: Any, tokens: int, context: int) -> dict[str, torch.Tensor]:
    """int64 [W, context + 1] of each domain: consecutive windows of its documents, joined by the end-of-text token."""
    found = {}
    for file in sorted(folder.glob("*.txt")):
        documents = [text.strip() for text in file.read_text(encoding="utf-8").split(END_OF_TEXT) if text.strip()]
        ids: list[int] = []
        for text in documents:
            ids += [*tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"], tokenizer.eos_token_id]
        count = min(tokens, len(ids) - 1) // context
        if not count:
            raise SystemExit(f"{file}: got {len(ids)} tokens; expected more than {context}; lower --context")
        found[file.stem] = torch.stack([torch.tensor(ids[i * context : (i + 1) * context + 1]) for i in range(count)])
    if not found:
        raise SystemExit(f"{folder}: got no text file; expected one .txt a domain; set --heldout")
    return found


@torch.inference_mode()
def losses(model: Any, ids_WT: torch.Tensor, batch: int = 4) -> np.ndarray:
    """float64 [W]: nats per token of each window."""
    found = []
    for ids in ids_WT.split(batch):
        logits = model(ids[:, :-1]).logits.float()
        nats = torch.nn.functional.cross_entropy(logits.transpose(1, 2), ids[:, 1:], reduction="none")
        found.append(nats.double().mean(1))
    return torch.cat(found).numpy()


def replace_experts(
    parameters: dict[str, torch.nn.Parameter], original: dict[str, torch.Tensor], variant: Variant
) -> tuple[float, float]:
    """Puts the stored numbers into the model. (relative error of all weights, CPU ns a weight to quantise)."""
    wrong = whole = spent = 0.0
    for name, weight in original.items():
        plain_NK = weight.reshape(-1, weight.shape[-1])
        began = time.process_time()
        arrays = variant.quantise(plain_NK)
        spent += time.process_time() - began
        numbers_NK = variant.format.unpack(arrays)
        wrong += float((numbers_NK.double() - plain_NK.double()).square().sum())
        whole += float(plain_NK.double().square().sum())
        parameters[name].data.copy_(numbers_NK.reshape(weight.shape))
    return math.sqrt(wrong / whole), 1e9 * spent / sum(weight.numel() for weight in original.values())


def rows_of(
    variant: Variant,
    layout: SlotLayout,
    error: float,
    ns: float,
    found: dict[str, np.ndarray],
    base: dict[str, np.ndarray],
) -> Iterator[dict[str, Any]]:
    """One row a metric and domain; `se` is the standard error over windows, paired with the reference for `delta`."""
    about: dict[str, Any] = {"benchmark": "quantisation", "provider": variant.provider, "format": variant.label}
    about |= {"quantiser": variant.quantiser, "bits_per_weight": layout.bits_per_weight}
    yield about | {"metric": "relative_weight_error", "unit": "ratio", "x": "experts", "value": error}
    yield about | {"metric": "quantise_cpu_ns_per_weight", "unit": "ns", "x": "experts", "value": ns}
    pooled, pooled_base = np.concatenate(list(found.values())), np.concatenate(list(base.values()))
    for domain, nats, plain in (*((d, found[d], base[d]) for d in found), ("all", pooled, pooled_base)):
        about_domain = about | {"unit": "nats/token", "x": domain, "windows": len(nats)}
        yield about_domain | {"metric": "loss", "value": nats.mean()}
        se = (nats - plain).std(ddof=1) / math.sqrt(len(nats)) if len(nats) > 1 else None
        yield about_domain | {"metric": "loss_delta", "value": (nats - plain).mean(), "se": se}


def table_of(rows: list[dict[str, Any]], domains: list[str]) -> str:
    """Markdown: a line a variant."""
    head = ["format", "quantiser", "by", "bits/weight", "weight error", *domains, "all", "change of all"]
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    for key in dict.fromkeys((r["format"], r["quantiser"], r["provider"]) for r in rows):
        mine = [r for r in rows if (r["format"], r["quantiser"], r["provider"]) == key]
        value = {(r["metric"], r["x"]): r for r in mine}
        change = value["loss_delta", "all"]
        cells = [
            *key,
            f"{mine[0]['bits_per_weight']:.3f}",
            f"{100 * value['relative_weight_error', 'experts']['value']:.2f} %",
        ]
        cells += [f"{value['loss', domain]['value']:.4f}" for domain in (*domains, "all")]
        plain = key[1] == "none"
        cells.append(
            "0" if plain else f"{change['value']:+.4f} ± {change['se']:.4f}" if change["se"] is not None else ""
        )
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=Path("assets/reference"))
    parser.add_argument("--heldout", type=Path, default=Path("assets/heldout"))
    parser.add_argument("--tokens", type=int, default=4096, help="of every domain")
    parser.add_argument("--context", type=int, default=512)
    parser.add_argument("--threads", type=int, default=1, help="more only on a machine that is otherwise idle")
    parser.add_argument("--table", type=Path, help="also write the table, as Markdown, to this file")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    model = AutoModelForCausalLM.from_pretrained(arguments.model, dtype=torch.float32, local_files_only=True).eval()
    tokenizer = AutoTokenizer.from_pretrained(arguments.model, local_files_only=True)
    text = windows(arguments.heldout, tokenizer, arguments.tokens, arguments.context)
    parameters = {n: p for n, p in model.named_parameters() if ".experts." in n}
    original = {name: parameter.detach().clone() for name, parameter in parameters.items()}
    config = model.config
    facts = stamp({"benchmark": "quantisation", "tokens": arguments.tokens, "context": arguments.context})
    rows: list[dict[str, Any]] = []
    base: dict[str, np.ndarray] = {}
    for variant in variants():
        error, ns = replace_experts(parameters, original, variant)
        found = {domain: losses(model, ids) for domain, ids in text.items()}
        base = base or found
        layout = SlotLayout(config.moe_intermediate_size, config.hidden_size, variant.format)
        made = list(rows_of(variant, layout, error, ns, found, base))
        rows += made
        print(
            f"{variant.label:32s} {variant.quantiser:8s} {variant.provider:13s} error {error:.4f} loss {made[-2]['value']:.4f}"
        )
    about = {"model": arguments.model.name, "context": arguments.context, "threads": arguments.threads}
    RESULTS.parent.mkdir(exist_ok=True)
    with RESULTS.open("a") as out:
        for row in rows:
            out.write(json.dumps(row | about | facts) + "\n")
    if arguments.table:
        arguments.table.write_text(table_of(rows, list(text)))


if __name__ == "__main__":
    main()
