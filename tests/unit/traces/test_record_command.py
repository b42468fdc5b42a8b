"""`rgpu record` and the function behind it, on a tiny model with a tokenizer of words."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf

from rgpu.errors import InputError
from rgpu.experiments.loading import load_model
from rgpu.experiments.prompts import Prompt, read_prompts
from rgpu.experiments.record import record, run
from rgpu.traces.storage import load_trace

SETTINGS = OmegaConf.load(Path(__file__).parents[3] / "conf" / "record.yaml")


@pytest.fixture
def folder(tmp_path: Path, make_model: Callable[..., Any]) -> Path:
    """A checkpoint with tokenizer, and `text/` with two domains of three documents."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = Tokenizer(models.WordLevel({f"w{i:02d}": i for i in range(97)}, unk_token="w96"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    fast: Any = PreTrainedTokenizerFast
    fast(tokenizer_object=words, pad_token="w01", eos_token="w01").save_pretrained(tmp_path / "toy")
    make_model("Olmoe").save_pretrained(tmp_path / "toy")
    (tmp_path / "text").mkdir()
    for domain, step in (("code", 2), ("prose", 3)):
        texts = [" ".join(f"w{2 + (d * 7 + i * step) % 90:02d}" for i in range(10 - d)) for d in range(3)]
        (tmp_path / "text" / f"{domain}.txt").write_text("\n<|endoftext|>\n".join(texts) + "\n<|endoftext|>\n")
    return tmp_path


def settings(folder: Path, **changes: Any) -> Any:
    base = {"model": str(folder / "toy"), "prompts": str(folder / "text"), "out": str(folder / "t.safetensors")}
    return OmegaConf.merge(SETTINGS, base, {"prompt_tokens": 8, "max_new_tokens": 4, "min_new_tokens": 4}, changes)


def test_prompts_take_turns(folder: Path) -> None:
    _, tokenizer = load_model(str(folder / "toy"))
    prompts = read_prompts(folder / "text", tokenizer, 5, limit=3)
    assert [p.meta["document"] for p in prompts] == ["code/0", "prose/0", "code/1"]
    assert prompts[1].token_ids == (2, 5, 8, 11, 14) and prompts[1].meta["domain"] == "prose"
    assert len(read_prompts(folder / "text" / "code.txt", tokenizer, 5)) == 3


@pytest.mark.parametrize("batch", [1, 3])
def test_generate(folder: Path, batch: int) -> None:
    said = run(settings(folder, batch=batch, limit=None))
    trace = load_trace(said["trace"])
    assert (said["sequences"], said["tokens"], said["prompt_tokens"], said["decode_tokens"]) == (6, 66, 48, 18)
    assert json.loads(json.dumps(said))["bytes"] == sum(f.stat().st_size for f in folder.glob("t.*safetensors"))
    assert trace.header.on_policy and trace.hidden is not None and trace.header.model == "toy"
    assert trace.header.sequences[1] == {
        "kind": "generation",
        "domain": "prose",
        "document": "prose/0",
        "prompt_tokens": 8,
    }


def test_states_before_attention_on_demand(folder: Path) -> None:
    said = run(settings(folder, pre_attention=True, hidden=False, limit=2))
    trace = load_trace(said["trace"])
    assert trace.hidden is None and trace.pre_attention is not None and said["arrays"][-1] == "pre_attention"
    assert said["bytes"] == sum(f.stat().st_size for f in folder.glob("t.*safetensors"))


def test_prompt_mode_is_not_on_policy(folder: Path) -> None:
    said = run(settings(folder, mode="prompt", batch=2, hidden=False, router_logits=True, limit=None))
    trace = load_trace(said["trace"])
    assert not trace.header.on_policy and trace.hidden is None and trace.router_logits is not None
    assert said["tokens"] == said["prompt_tokens"] == 48 and trace.header.sequences[0]["kind"] == "prompt"


def test_sampling_repeats_by_seed_and_spares_the_callers_state(folder: Path) -> None:
    model, tokenizer = load_model(str(folder / "toy"))
    prompts = [Prompt((2, 3, 4), {"domain": "x", "switches": [2]})]
    texts = []
    state = torch.random.get_rng_state()
    for seed in (0, 0, 1):
        record(
            model,
            tokenizer,
            prompts,
            folder / "s.safetensors",
            max_new_tokens=12,
            min_new_tokens=12,
            temperature=1.0,
            seed=seed,
        )
        trace = load_trace(folder / "s.safetensors")
        assert trace.token_ids is not None and trace.header.sequences[0]["switches"] == [2]
        texts.append(trace.token_ids)
    assert np.array_equal(texts[0], texts[1]) and not np.array_equal(texts[0], texts[2])
    assert torch.equal(state, torch.random.get_rng_state())


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"model": "/nope/x"}, "no such folder"),
        ({"model": "assets/nope"}, "no such folder"),
        ({"prompts": "nope"}, "no text file"),
        ({"mode": "dream"}, "mode=dream; expected one of generate, prompt"),
        ({"dtype": "int7"}, "dtype=int7"),
        ({"batch": 0}, "batch=0"),
        ({"limit": 0}, "limit=0"),
        ({"max_new_tokens": 60}, "got 68 tokens of text; expected at most 64"),
        ({"out": "t.txt"}, "expected .safetensors"),
    ],
)
def test_mistakes(folder: Path, changes: dict[str, Any], said: str) -> None:
    before = sorted(folder.iterdir())
    with pytest.raises(InputError) as caught:
        run(settings(folder, **changes))
    assert said in str(caught.value) and "\n" not in str(caught.value) and sorted(folder.iterdir()) == before


def test_broken_checkpoints(folder: Path) -> None:
    weights = folder / "toy" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(InputError, match="expected a complete transformers checkpoint"):
        load_model(str(folder / "toy"))
    (folder / "toy" / "config.json").unlink()
    with pytest.raises(InputError, match=r"without config\.json"):
        load_model(str(folder / "toy"))
