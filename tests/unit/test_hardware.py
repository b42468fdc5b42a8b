"""Hardware profiles: each shipped one loads, says where its numbers come from, and survives a round trip."""

import math
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from rgpu.errors import InputError
from rgpu.hardware import GPU, HOST, profile_of

CONF = Path(__file__).resolve().parents[2] / "conf" / "hardware"
NAMES = sorted(p.stem for p in CONF.glob("*.yaml"))


def entries(name: str) -> dict[str, Any]:
    return plain((CONF / f"{name}.yaml").read_text())


def plain(text: str) -> dict[str, Any]:
    data = OmegaConf.to_container(OmegaConf.create(text))
    assert isinstance(data, dict)
    return {str(key): value for key, value in data.items()}


@pytest.mark.parametrize("name", NAMES)
def test_shipped_profiles(name: str) -> None:
    profile = profile_of(entries(name))
    assert profile.name == name
    assert set(profile.sources) == {*HOST, *(GPU if profile.has_gpu else ())}
    for source in profile.sources.values():
        assert source.startswith(("datasheet: ", "measured by others: ", "assumption: ")), source
    again = profile_of(plain(profile.to_yaml()))
    assert again == profile and again.sources == profile.sources
    machine = profile.machine()
    assert machine.link_rate <= machine.bytes_per_s
    assert machine.link_bytes_per_s == 1e9 * float(profile.link_gb_per_s or profile.disk_gb_per_s)


def test_the_profiles_of_the_project_are_there() -> None:
    wanted = {"rtx4060_laptop", "rtx3060", "rtx4090", "rtx5060ti", "rtx5090", "h200", "laptop_nvme"}
    assert wanted <= set(NAMES)
    assert not profile_of(entries("laptop_nvme")).has_gpu


def test_any_text_survives_a_round_trip() -> None:
    data = entries("rtx4090") | {"name": "null", "sync_us": {"value": 1e-7, "source": 'a "quoted" \\ one: #'}}
    profile = profile_of(data)
    again = profile_of(plain(profile.to_yaml()))
    assert again == profile and again.name == "null" and again.sync_us == 1e-7


@pytest.mark.parametrize(
    ("change", "line"),
    [
        ({"name": None}, "hardware: got no name; expected"),
        ({"sync_us": None}, "hardware rtx4090: got no sync_us; expected sync_us: {value: ..., source: ...}"),
        ({"sync_ms": 1}, "hardware rtx4090: got the entry 'sync_ms'; expected cpu_gb_per_s"),
        ({"link_gb_per_s": 25}, "hardware rtx4090: got link_gb_per_s=25; expected {value"),
        ({"link_gb_per_s": {"value": 25, "source": " "}}, "hardware rtx4090: got link_gb_per_s="),
        (
            {"link_gb_per_s": {"value": 0, "source": "x"}},
            "hardware rtx4090: got link_gb_per_s=0; expected a number above 0",
        ),
        ({"sync_us": {"value": -1, "source": "x"}}, "hardware rtx4090: got sync_us=-1; expected a number from 0"),
        (
            {"sync_us": {"value": 1e14, "source": "x"}},
            "hardware rtx4090: got sync_us=100000000000000.0; expected a number",
        ),
        (
            {"sync_us": {"value": math.inf, "source": "x"}},
            "hardware rtx4090: got sync_us=inf; expected a number from 0 to",
        ),
        (
            {"vram_gb": {"value": math.nan, "source": "x"}},
            "hardware rtx4090: got vram_gb=nan; expected a number from 0 to",
        ),
        (
            {"link_gb_per_s": {"value": 25e9, "source": "bytes"}},
            "hardware rtx4090: got link_gb_per_s=25000000000.0; expected a number from 0 to 1,000,000",
        ),
        ({"sync_us": {"value": True, "source": "x"}}, "hardware rtx4090: got sync_us=True; expected a number from 0"),
    ],
)
def test_mistakes_are_one_line(change: dict[str, Any], line: str) -> None:
    data = {k: v for k, v in (entries("rtx4090") | change).items() if v is not None}
    with pytest.raises(InputError) as caught:
        profile_of(data)
    assert str(caught.value).startswith(line) and "\n" not in str(caught.value)
