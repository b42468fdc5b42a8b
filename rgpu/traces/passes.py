"""Who is who in a forward pass: sequence, position, phase and token of every row that the experts see.

Legend: B batch rows, Q tokens a row in this pass, T = B * Q rows in the flattened order [batch, token] of the experts.
"""

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

import numpy as np

from rgpu.errors import InputError
from rgpu.traces.trace import DECODE, PADDING, PROMPT

_CACHE_NAMES = ("cache", "past_key_values")  # the argument's name from transformers 5.24 on, and before


@dataclass(frozen=True, slots=True)
class PassInfo:
    """One forward pass, row by row.

    `sequence_T` int64 number of the row's sequence (counted over the tracker's life); `position_T` int32 index of the
    token among the real tokens of its sequence (0 for left padding); `phase_T` uint8 0 prompt, 1 decode, 2 padding;
    `token_T` int32 input token (-1 where the caller passed embeddings). `fresh`: the pass began new sequences.
    """

    pass_id: int
    sequence_T: np.ndarray
    position_T: np.ndarray
    phase_T: np.ndarray
    token_T: np.ndarray
    batch: int
    fresh: bool

    @property
    def rows(self) -> int:
        return len(self.phase_T)


class PassTracker:
    """Follows a transformers causal model through `forward` and `generate`: `current` describes the running pass.

    `current` is None between passes and `last` keeps the latest one. A call with an empty cache (or none) begins one
    new sequence a batch row; a call of several tokens is a prompt, of one token on a filled cache a decode step.
    Padding is read from the attention mask; in a batch a row whose generated input is one of `eos_ids` (default:
    those of the model's generation config; pass () where generation ignores them) is padding from then on, as
    `generate` feeds finished rows until the last one ends. Beam search, which permutes rows, is not followed.
    """

    def __init__(self, model: Any, eos_ids: Collection[int] | None = None) -> None:
        self.model = model
        self.eos_ids = np.asarray(sorted(_eos_ids(model) if eos_ids is None else eos_ids), np.int64)
        self.current: PassInfo | None = None
        self.last: PassInfo | None = None
        self.sequences = 0  # sequences begun so far
        self.passes = 0  # passes begun so far
        self._first = 0  # number of the current batch's first sequence
        self._seen_B = np.zeros(0, np.int64)  # real tokens so far
        self._finished_B = np.zeros(0, bool)
        self._hooks: list[Any] = []

    def attach(self) -> "PassTracker":
        """Hook the model; raises `InputError` when this tracker is attached already."""
        if self._hooks:
            raise InputError("cannot attach the pass tracker: got an attached one; expected detach() first")
        self._hooks = [
            self.model.register_forward_pre_hook(self._enter, with_kwargs=True),
            self.model.register_forward_hook(self._leave, always_call=True),
        ]
        return self

    def detach(self) -> None:
        """Remove the hooks; the model is as before."""
        for hook in self._hooks:
            hook.remove()
        self._hooks, self.current = [], None

    def __enter__(self) -> "PassTracker":
        return self.attach()

    def __exit__(self, *_: object) -> None:
        self.detach()

    def _enter(self, _model: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        ids = kwargs.get("input_ids", args[0] if args else None)
        embeds = kwargs.get("inputs_embeds")
        source = ids if ids is not None else embeds
        if source is None:
            raise InputError("cannot follow the pass: got neither input_ids nor inputs_embeds; call the model with one")
        batch, queries = int(source.shape[0]), int(source.shape[1])
        mask = kwargs.get("attention_mask", args[1] if len(args) > 1 else None)
        past = _past_length(next((kwargs[name] for name in _CACHE_NAMES if kwargs.get(name) is not None), None))
        token_BQ = (
            np.full((batch, queries), -1, np.int64) if ids is None else ids.detach().cpu().numpy().astype(np.int64)
        )
        self.current = self._describe(token_BQ, _real_tokens(mask, batch, queries, past), past)
        self.last = self.current

    def _leave(self, *_: object) -> None:
        self.current = None

    def _describe(self, token_BQ: np.ndarray, real_BQ: np.ndarray, past: int) -> PassInfo:
        batch, queries = token_BQ.shape
        fresh = past == 0 or batch != len(self._seen_B)
        if fresh:
            self._first, self.sequences = self.sequences, self.sequences + batch
            self._seen_B, self._finished_B = np.zeros(batch, np.int64), np.zeros(batch, bool)
        phase_BQ = np.full((batch, queries), DECODE if past and queries == 1 else PROMPT, np.uint8)
        if past and queries == 1 and batch > 1:
            self._finished_B |= np.isin(token_BQ[:, 0], self.eos_ids)
        real_BQ = real_BQ & ~self._finished_B[:, None]
        phase_BQ[~real_BQ] = PADDING
        position_BQ = np.maximum(self._seen_B[:, None] + np.cumsum(real_BQ, 1) - 1, 0)
        self._seen_B = self._seen_B + real_BQ.sum(1)
        info = PassInfo(
            pass_id=self.passes,
            sequence_T=np.repeat(np.arange(self._first, self._first + batch, dtype=np.int64), queries),
            position_T=position_BQ.reshape(-1).astype(np.int32),
            phase_T=phase_BQ.reshape(-1),
            token_T=token_BQ.reshape(-1).astype(np.int32),
            batch=batch,
            fresh=fresh,
        )
        self.passes += 1
        return info


def lengths(args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[int, int]:
    """(tokens a row's cache holds, tokens a row has in this call) of a model's arguments."""
    source = next((kwargs[name] for name in ("input_ids", "inputs_embeds") if kwargs.get(name) is not None), None)
    source = args[0] if source is None else source
    return _past_length(next((kwargs[name] for name in _CACHE_NAMES if kwargs.get(name) is not None), None)), int(
        source.shape[1]
    )


def _eos_ids(model: Any) -> list[int]:
    config = getattr(model, "generation_config", None) or getattr(model, "config", None)
    ids = getattr(config, "eos_token_id", None)
    if ids is None:
        return []
    return [int(i) for i in ids] if isinstance(ids, list | tuple) else [int(ids)]


def _past_length(cache: Any) -> int:
    """Tokens already in the cache (0 without one)."""
    return 0 if cache is None else int(cache.get_seq_length())


def _real_tokens(mask: Any, batch: int, queries: int, past: int) -> np.ndarray:
    """bool [B, Q]: which inputs are tokens and not padding, from a 2-D mask or the diagonal of a 4-D one."""
    if isinstance(mask, dict):
        mask = mask.get("full_attention", next(iter(mask.values()), None))
    if mask is None or not hasattr(mask, "dim"):
        return np.ones((batch, queries), bool)
    if mask.dim() == 2:
        real_BQ: np.ndarray = (mask[:, -queries:] if mask.shape[1] >= queries else mask).detach().cpu().numpy() != 0
        return np.broadcast_to(real_BQ, (batch, queries))
    at = min(past, mask.shape[-1] - queries)  # of a full window the mask shows what is left of the past
    own = mask[:, 0].diagonal(offset=at, dim1=1, dim2=2)[:, :queries]  # each token's view of itself
    seen = own if own.dtype.is_floating_point is False else own == 0
    return np.broadcast_to(seen.bool().detach().cpu().numpy(), (batch, queries))
