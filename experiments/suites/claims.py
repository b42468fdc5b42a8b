"""`rgpu reproduce suite=claims`: C1 to C9 of the Rotary GPU record, each with its test, figure, numbers and verdict."""

import importlib
import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from tqdm import tqdm

from rgpu.experiments.plot import render
from rgpu.experiments.suites.claim.arms import choose, described
from rgpu.experiments.suites.claim.claims_page import build_page
from rgpu.experiments.suites.claim.context import Setting
from rgpu.experiments.suites.claim.inputs import Inputs, gather
from rgpu.experiments.suites.claim.reported import reported
from rgpu.experiments.suites.claim.scoring import Bench
from rgpu.experiments.suites.claim.verdicts import Claim
from rgpu.results.provenance import config_hash, manifest, stamp, write_atomic, write_manifest
from rgpu.results.rows import append, read

TESTS = (
    "c1_semantic",
    "c2_surge",
    "c3_return",
    "c4_hit_rate",
    "c5_sync",
    "c6_heads",
    "c7_step",
    "c8_modes",
    "c9_rotation",
)


def all_tests() -> list[Callable[[Setting], Claim]]:
    return [importlib.import_module(f"rgpu.experiments.suites.claim.{name}").test for name in TESTS]


def setting_of(cfg: DictConfig, inputs: Inputs) -> Setting:
    """Capacities and the configuration chosen for each trace on its calibration half."""
    experts = inputs.reference.scored.header.num_experts
    quarter = experts // 4
    slots = (quarter,) if cfg.quick else (experts // 8, quarter, 3 * experts // 8, experts // 2)
    config = OmegaConf.to_container(cfg, resolve=True)
    checksums = [m.whole.header.checksum or m.whole.checksum() for m in (inputs.reference, inputs.switch)]
    identity = config_hash({"config": config, "inputs": checksums, "commit": manifest(config)["commit"], "suite": 2})
    bench = Bench(cfg.seed, cfg.workers or os.cpu_count() or 1, Path(cfg.out) / "claims" / f".parts-{identity}")
    materials = [m for m in (inputs.reference, inputs.routing) if m is not None]
    chosen = {m.name: choose(bench, m, quarter, cfg.quick) for m in tqdm(materials, desc="choosing", disable=None)}
    return Setting(inputs, bench, slots, quarter, chosen, stamp(config, seed=cfg.seed), cfg.quick)


def run(cfg: DictConfig) -> dict[str, Any]:
    began = time.perf_counter()
    out = Path(cfg.out) / "claims"
    inputs = gather(cfg.model, cfg.traces, cfg.shared, 12 if cfg.quick else None)
    setting = setting_of(cfg, inputs)
    claims = [test(setting) for test in tqdm(all_tests(), desc="claims", disable=None)]
    rows = out / "rows.parquet"
    rows.unlink(missing_ok=True)
    append(rows, [table for claim in claims for table in claim.rows])
    index = render(read(rows), out / "figures", [f"claim_{c.id.lower()}" for c in claims if c.rows])
    for claim in claims:
        drawn = [f for f in index["figures"] if f["name"] == f"claim_{claim.id.lower()}"]
        claim.figures = [str(out / "figures" / file) for f in drawn for file in f["files"]]
    facts = manifest(OmegaConf.to_container(cfg, resolve=True))
    write_manifest(out / "manifest.json", facts)
    document = {
        "suite": "claims",
        "claims": [claim.to_json() for claim in claims],
        "not_testable": reported(),
        "chosen": {name: described(arm) for name, arm in setting.chosen.items()},
        "reread_agreement": {inputs.reference.name: inputs.reference.agreement},
        "limits": limits(cfg, inputs),
        "rows": str(rows),
        "seconds": round(time.perf_counter() - began, 1),
    }
    write_atomic(out / "claims.json", (json.dumps(document, indent=2, ensure_ascii=False) + "\n").encode())
    setting.bench.clear()
    document["report"] = str(build_page(document, index, out))
    return document


def limits(cfg: DictConfig, inputs: Inputs) -> list[str]:
    """What a reader must know before quoting a verdict."""
    said = [
        "An independent implementation of the published description; the author's code is not public.",
        "The reference model is small (8 layers of 32 experts, top-4); it and gpt-oss-20b's routing are all that was tested.",
    ]
    if inputs.routing is None:
        said.append("The gpt-oss-20b trace was not there: every verdict rests on the reference model alone.")
    if cfg.quick:
        said.append("Quick form: few sequences, one capacity, few candidates. Run without quick=true before quoting.")
    return said
