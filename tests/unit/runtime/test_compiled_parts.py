"""Fused norms, rotary and routers: the same text, and everything put back. Compiled without a compiler here: what is fused
for one-token steps is traced and run by torch itself."""

from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from rgpu.errors import InputError
from rgpu.runtime import compiled_parts
from rgpu.runtime.compiled_parts import compile_parts, compiled
from tests.live_models import build, generate, prompts


@pytest.mark.parametrize("kind", ["qwen3_moe", "gpt_oss"])
def test_the_same_text_and_everything_put_back(kind: str, tmp_path: Path) -> None:
    model: Any = AutoModelForCausalLM.from_pretrained(build(kind, tmp_path))
    tokens, logits = generate(model, prompts(2))
    own = {name: dict(vars(module)) for name, module in model.named_modules()}
    with ExitStack() as outer:
        assert compile_parts(model, outer, backend="eager") == ["norms", "rotary", "routers"]
        assert sum("forward" in vars(module) for module in model.modules()) > 4
        fused, values = generate(model, prompts(2))
        assert torch.equal(tokens, fused)
        for ours, theirs in zip(values, logits, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)
    assert {name: dict(vars(module)) for name, module in model.named_modules()} == own


def test_two_sessions_share_the_rotary_embedding(tmp_path: Path) -> None:
    from transformers.models.qwen3_moe import modeling_qwen3_moe as home

    original = home.apply_rotary_pos_emb
    models: list[Any] = [AutoModelForCausalLM.from_pretrained(build("qwen3_moe", tmp_path)) for _ in range(2)]
    first, second = ExitStack(), ExitStack()
    compile_parts(models[0], first, backend="eager")
    compile_parts(models[1], second, backend="eager")
    replaced = home.apply_rotary_pos_emb
    assert replaced is not original
    first.close()
    assert home.apply_rotary_pos_emb is replaced
    second.close()
    assert home.apply_rotary_pos_emb is original


def test_many_batch_sizes_are_compiled() -> None:
    made: list[int] = []

    def backend(graph: Any, _inputs: Any) -> Any:
        made.append(1)
        return graph.forward

    def double(x: torch.Tensor) -> torch.Tensor:
        return x * 2

    fused = compiled(double, backend)
    for size in range(2, 14):
        assert torch.equal(fused(torch.ones(size)), torch.full((size,), 2.0))
    assert len(made) == 12 and compiled(double, backend) is fused


def test_another_model_of_the_kind_keeps_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = counting(monkeypatch)
    models: list[Any] = [AutoModelForCausalLM.from_pretrained(build("qwen3_moe", tmp_path)) for _ in range(2)]
    with ExitStack() as stack:
        compile_parts(models[0], stack)
        with pytest.raises(IndexError):  # a pass that fails is over as well
            models[0](input_ids=torch.full((1, 1), 10**6))
        generate(models[1], prompts(1))
        assert not calls
        generate(models[0], prompts(1))
        assert calls


def test_no_compiler_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model: Any = AutoModelForCausalLM.from_pretrained(build("qwen3_moe", tmp_path))
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CC", raising=False)
    with ExitStack() as stack, pytest.raises(InputError, match="^fused: got no C compiler; expected [^\n]*; [^\n]*$"):
        compile_parts(model, stack)


def counting(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Grows by every call of a fused part."""
    calls: list[int] = []

    def counted(function: Any, _backend: str) -> Any:
        def run(*args: Any, **kwargs: Any) -> Any:
            calls.append(1)
            return function(*args, **kwargs)

        return run

    monkeypatch.setattr(compiled_parts, "compiled", counted)
    return calls


def test_only_steps_of_one_token_are_fused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = counting(monkeypatch)
    model: Any = AutoModelForCausalLM.from_pretrained(build("qwen3_moe", tmp_path))
    with ExitStack() as stack:
        compile_parts(model, stack)
        ids = torch.arange(2 * 20).reshape(2, 20) % 60
        with torch.no_grad():
            cache = model(ids).past_key_values
            assert not calls
            model(ids[:, :1], past_key_values=cache)
    assert calls
