"""`RingLayer`: a sliding window's keys and values in a ring whose position is on the device, so that a step can be captured.

transformers' own layer of a static cache branches on a count that the host keeps, and moves the whole window by one place a
step. Here a step writes one row and reads the window in the order of positions: what attention gets, and the masks that
transformers makes for it, are those of its own layer bit for bit.

Legend: B sequences, H heads, T tokens of a pass, W tokens of a window, D head size.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from transformers.cache_utils import StaticLayer, StaticSlidingWindowLayer


class RingPlace:
    """Where the layers of one window size are in a sequence, counted by host and device alike.

    The first layer of a pass moves both; the others find what it worked out. While `captured`, the pass is recorded and not
    run, so only the device's count may be used.
    """

    def __init__(self, window: int, rolls: bool) -> None:
        self.window, self.rolls = window, rolls
        self.seen = 0
        self.captured = False
        self.length = torch.tensor(0, dtype=torch.long)
        self._places_W = torch.arange(window)
        self._slot: Any = None
        self._order_W: Any = None

    def to(self, device: torch.device) -> None:
        """Once the first layer knows where its tensors are."""
        if self.length.device != device:
            self.length, self._places_W = self.length.to(device), self._places_W.to(device)

    def enter(self, seen: int, tokens: int) -> None:
        """Begins a layer's part of a pass of `tokens` tokens, of which the layer has had `seen` before."""
        if seen == self.seen:
            if tokens == 1:
                self._slot = torch.remainder(self.length, self.window).view(1)
                start = (self.length + (1 - self.window)).clamp_min(0)
                self._order_W = torch.remainder(start + self._places_W, self.window)
            self.length.add_(tokens)
            self.seen += tokens
        elif seen + tokens != self.seen:
            raise RuntimeError(
                f"got a cache of which a layer has {seen} tokens where others have {self.seen}; expected all to have the "
                "same: a pass was cut short; start with a new cache"
            )

    def forget(self) -> None:
        """Lets go of what the last pass worked out."""
        self._slot = self._order_W = None

    def write(self, target_BHWD: torch.Tensor, new_BH1D: torch.Tensor) -> torch.Tensor:
        """One token's row into the ring; the window in the order of positions, what is not there yet last."""
        target_BHWD.index_copy_(2, self._slot, new_BH1D)
        return target_BHWD.index_select(2, self._order_W) if self.rolls else target_BHWD


class RingLayer(StaticLayer):  # type: ignore[misc]
    """A layer of a `StaticCache` with a sliding window: keys and values [B, H, W, D], a token's row at position modulo W.

    `rolls`: sequences may become longer than the window.
    """

    is_sliding = True
    is_croppable = False

    def __init__(self, place: RingPlace) -> None:
        super().__init__(max_cache_len=place.window)
        self.place, self.seen = place, 0

    @classmethod
    def of(cls, layer: StaticSlidingWindowLayer, place: RingPlace) -> "RingLayer":
        """One with the content of transformers' layer, in the same tensors."""
        made = cls(place)
        made.seen = seen = int(layer.cumulative_length_int)
        if layer.is_initialized:
            made.lazy_initialization(layer.keys, layer.values)
            made.keys, made.values = layer.keys, layer.values
            if seen > place.window:
                for tensor in (made.keys, made.values):
                    tensor.copy_(tensor.roll(seen % place.window, 2))
        return made

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        """See `StaticLayer`."""
        super().lazy_initialization(key_states, value_states)
        self.place.to(self.device)
        self.cumulative_length = self.place.length

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *_: Any, **__: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Takes a pass's keys and values [B, H, T, D]; what its attention reads, as `get_mask_sizes` says."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        tokens, before = key_states.shape[-2], self.seen
        self.place.enter(before, tokens)
        self.seen += tokens
        if tokens == 1:
            return self.place.write(self.keys, key_states), self.place.write(self.values, value_states)
        return self._pass(self.keys, key_states, before), self._pass(self.values, value_states, before)

    def _pass(self, ring_BHWD: torch.Tensor, new_BHTD: torch.Tensor, before: int) -> torch.Tensor:
        """Several tokens: the host knows where they go."""
        window, after = self.place.window, before + new_BHTD.shape[2]
        if after <= window:
            ring_BHWD[:, :, before:after] = new_BHTD
            return ring_BHWD
        kept = ring_BHWD.roll(-(before % window), 2)[:, :, 1:] if before >= window else ring_BHWD[:, :, :before]
        seen = torch.cat((kept, new_BHTD), 2) if before else new_BHTD
        ring_BHWD.copy_(seen[:, :, -window:].roll(after % window, 2))
        return seen

    def get_seq_length(self) -> Any:
        """Tokens so far: an int, or the device's count while a step is captured."""
        if self.place.captured and self.is_initialized:
            return self.place.length - (self.place.seen - self.seen)
        return self.seen

    def get_mask_sizes(self, query_length: int) -> tuple[int, Any]:
        """(keys that a pass of so many tokens reads, position of the first one), as transformers' own layer has them."""
        window, seen = self.place.window, self.get_seq_length()
        if query_length == 1:
            first = seen - window + 1
            return window, first.clamp_min(0) if isinstance(first, torch.Tensor) else max(first, 0)
        if seen >= window:
            return window + query_length - 1, seen - window + 1
        return max(window, seen + query_length), 0

    def reset(self) -> None:
        """Forgets the sequence."""
        super().reset()
        self.seen = self.place.seen = 0
        self.place.length.zero_()

    def crop(self, tokens_to_remove: int) -> None:
        """Not possible: what slid out of the window is gone."""
        raise RuntimeError(f"got crop({tokens_to_remove}) on a sliding window; expected none; use a DynamicCache")


def with_rings(cache: Any) -> None:
    """Puts a `RingLayer` in the place of every sliding window layer of a static cache, in place."""
    layers = getattr(cache, "layers", None) or []
    places: dict[Any, RingPlace] = {}
    for at, layer in enumerate(layers):
        if type(layer) is StaticSlidingWindowLayer and hasattr(layer, "cumulative_length_int"):
            kind = layer.max_cache_len, not getattr(layer, "_is_croppable", False), layer.cumulative_length_int
            place = places.get(kind)
            if place is None:
                place = places[kind] = RingPlace(*kind[:2])
                place.seen = kind[2]
                place.length.fill_(place.seen)
            layers[at] = RingLayer.of(layer, place)


def ring_layers(cache: Any) -> list[RingLayer]:
    """Those of a cache."""
    return [layer for layer in getattr(cache, "layers", None) or [] if isinstance(layer, RingLayer)]


@contextmanager
def captured(cache: Any) -> Iterator[None]:
    """While a pass is recorded: it moves nothing that the host counts."""
    layers = ring_layers(cache)
    before = [(layer.seen, layer.place.seen) for layer in layers]
    for layer in layers:
        layer.place.captured = True
    try:
        yield
    finally:
        for layer, (seen, place_seen) in zip(layers, before, strict=True):
            layer.seen, layer.place.seen, layer.place.captured = seen, place_seen, False
            layer.place.forget()  # these tensors are the graphs'


def replayed(cache: Any) -> None:
    """After a recorded pass of one token was run: the host's counts follow the device's."""
    layers = ring_layers(cache)
    for layer in layers:
        layer.seen += 1
    for place in {id(layer.place): layer.place for layer in layers}.values():
        place.seen += 1
