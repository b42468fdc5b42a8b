"""What a model writes to three prompts, and how far two such texts are apart.

Legend: B sequences, N new tokens, V vocabulary.
"""

from typing import Any

import torch

TOKENS = 24
Text = tuple[torch.Tensor, list[torch.Tensor]]  # new tokens [B, N], logits of every step, N of [B, V]


def inputs() -> dict[str, torch.Tensor]:
    """Three prompts of unlike length, padded on the left."""
    made = torch.randint(3, 500, (3, 20), generator=torch.Generator().manual_seed(1))
    mask = torch.ones_like(made)
    for row, short in enumerate((0, 5, 12)):
        mask[row, :short], made[row, :short] = 0, 0
    return {"input_ids": made, "attention_mask": mask}


def generated(model: Any, **options: Any) -> Text:
    """(new tokens, logits of every step), greedily."""
    given = {name: value.to(model.device) for name, value in inputs().items()}
    out = model.generate(**given, max_new_tokens=TOKENS, min_new_tokens=TOKENS, do_sample=False, pad_token_id=0,
                         return_dict_in_generate=True, output_logits=True, disable_compile=True, **options)  # fmt: skip
    return out.sequences[:, 20:].cpu(), [step.float().cpu() for step in out.logits]


def same(a: Text, b: Text) -> bool:
    """Bit for bit."""
    return torch.equal(a[0], b[0]) and all(torch.equal(x, y) for x, y in zip(a[1], b[1], strict=True))


def far(a: Text, b: Text) -> float:
    """The largest difference of logits as a share of their size, NaN where there is one: over every step of a row until its
    tokens differ, that one included, as what follows answers another text."""
    differs_BN = (a[0] != b[0]).long().cumsum(1) > 0
    found = []
    for n, (x_BV, y_BV) in enumerate(zip(a[1], b[1], strict=True)):
        rows_B = ~differs_BN[:, n - 1] if n else torch.ones(len(x_BV), dtype=torch.bool)
        if rows_B.any():
            found.append((x_BV - y_BV)[rows_B].abs().max() / y_BV.abs().max())
    return float(torch.stack(found).max())


def agree(a: Text, b: Text) -> str:
    """How many of the tokens are the same until a row's first other one."""
    return f"{int(((a[0] != b[0]).long().cumsum(1) == 0).sum())} of {b[0].numel()} tokens alike"
