"""Provenance: what a run was, without a path of this machine."""

import json
from pathlib import Path

import pytest

from rgpu.results.provenance import config_hash, manifest, portable, stamp, write_manifest
from rgpu.results.rows import SCHEMA


def test_absolute_paths_never_leave(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    config = {
        "trace": {"path": str(tmp_path / "assets" / "t.safetensors")},
        "model": Path("/somewhere/else/model"),
        "overrides": [f"trace.path={tmp_path}/x.npz", "policy=lru", "out=/tmp/some where/out"],
        "prompt": "either/or, and 1/2",
        "other": str(tmp_path.parent / "shared" / "traces" / "t.npz"),
    }
    text = json.dumps(manifest(config))
    assert str(tmp_path) not in text
    assert str(tmp_path.parent) not in text
    assert "/somewhere" not in text
    found = manifest(config)["config"]
    assert found["trace"]["path"] == "assets/t.safetensors"
    assert found["overrides"] == ["trace.path=x.npz", "policy=lru", "out=out"]
    assert found["prompt"] == config["prompt"]
    assert found["other"] == "shared/traces/t.npz"


def test_the_hash_is_of_content_not_of_order_or_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert config_hash({"a": 1, "b": [1, 2]}) == config_hash({"b": (1, 2), "a": 1})
    assert config_hash({"a": 1}) != config_hash({"a": 2})
    assert config_hash({"p": str(tmp_path / "t")}) == config_hash({"p": "t"})


def test_manifest_is_json_and_a_stamp_fits_the_rows(tmp_path: Path) -> None:
    facts = manifest({"seed": 3, "when": object()})
    write_manifest(tmp_path / "manifest.json", facts)
    assert json.loads((tmp_path / "manifest.json").read_text()) == portable(facts)
    assert facts["cores"] >= 1
    assert "numpy" in facts["versions"]
    assert set(stamp({})) <= set(SCHEMA.names)
