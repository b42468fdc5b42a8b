"""The pool is the only private copy of experts that the process holds."""

import json
import subprocess
import sys
from pathlib import Path

import torch
from transformers import Qwen3MoeConfig, Qwen3MoeForCausalLM

SCRIPT = """
import json, sys
import torch
torch.set_num_threads(1)
from pathlib import Path
from rgpu.memory.process import rss_anon_bytes
from rgpu.policies.lru import Lru
from rgpu.replay.controller import Controller
from rgpu.replay.pool import PoolConfig
from rgpu.runtime.architecture import read_architecture
from rgpu.runtime.loading import load_resident
from rgpu.runtime.session import OffloadSession

folder, cache = Path(sys.argv[1]), Path(sys.argv[2])
ids = torch.arange(2, 8)[None]
make = lambda shape: Controller(Lru(), shape, PoolConfig("layer", 2))
with OffloadSession.open(folder, make, cache=cache) as warm:  # converts the store, compiles, fills caches
    warm.model.generate(ids, max_new_tokens=2, do_sample=False)
del warm
before = rss_anon_bytes()
with OffloadSession.open(folder, make, cache=cache) as session:
    session.model.generate(ids, max_new_tokens=6, do_sample=False)
    memory = session.memory()
del session
between = rss_anon_bytes()
resident = load_resident(folder, read_architecture(folder), torch.float32)
resident.generate(ids, max_new_tokens=6, do_sample=False)
print(json.dumps({"pooled": memory["rss_anon_bytes"] - before, "resident": rss_anon_bytes() - between, **memory}))
"""


def test_anonymous_memory_does_not_hold_the_experts(tmp_path: Path) -> None:
    config = Qwen3MoeConfig(
        vocab_size=64, hidden_size=256, intermediate_size=64, moe_intermediate_size=256, num_hidden_layers=4,
        num_attention_heads=4, num_key_value_heads=2, head_dim=32, num_experts=20, num_experts_per_tok=2,
    )  # fmt: skip
    torch.manual_seed(0)
    Qwen3MoeForCausalLM(config).save_pretrained(tmp_path / "model")
    arguments = [sys.executable, "-c", SCRIPT, str(tmp_path / "model"), str(tmp_path / "cache")]
    done = subprocess.run(arguments, capture_output=True, text=True, check=True)
    got = json.loads(done.stdout.splitlines()[-1])
    experts = 4 * 20 * 3 * 256 * 256 * 4
    assert got["experts_bytes"] == experts
    assert got["pool_bytes"] == experts // 10
    assert experts <= got["store_mapped_bytes"] <= experts + 4096
    assert got["peak_rss_bytes"] > got["rss_anon_bytes"]
    assert got["resident"] > 0.8 * experts
    assert got["pooled"] < 0.4 * experts
