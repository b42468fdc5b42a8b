"""The formats by name."""

from typing import Any

import torch

from rgpu.errors import InputError
from rgpu.quant.bf16 import Bf16
from rgpu.quant.format import QuantFormat
from rgpu.quant.fp8_block import Fp8Block
from rgpu.quant.int4 import Int4
from rgpu.quant.int8 import Int8
from rgpu.quant.mxfp4 import Mxfp4
from rgpu.quant.nf4 import Nf4
from rgpu.quant.nvfp4 import Nvfp4
from rgpu.quant.q4_k import Q4K
from rgpu.quant.q6_k import Q6K
from rgpu.quant.q8_0 import Q8_0

FORMATS: tuple[QuantFormat, ...] = (
    *(Bf16(), Int8(), Int4(), Fp8Block(), Mxfp4(), Nvfp4(), Nf4()),
    *(Q4K(), Q6K(), Q8_0()),
)
_OPTIONS = {"int8": ("group", "scale_dtype"), "int4": ("group", "asymmetric", "scale_dtype", "act_order")}
_DTYPES = {"float16": torch.float16, "bfloat16": torch.bfloat16, "float32": torch.float32}


def named(fmt: QuantFormat) -> dict[str, Any]:
    """{"name": ..., options}: what `by_name(**...)` makes an equal format of, as JSON."""
    options = {option: getattr(fmt, option) for option in _OPTIONS.get(fmt.name, ())}
    names = {dtype: name for name, dtype in _DTYPES.items()}
    return {"name": fmt.name} | {
        option: names[value] if isinstance(value, torch.dtype) else value for option, value in options.items()
    }


def by_name(name: str, **options: Any) -> QuantFormat:
    """The format `name` with `options` (int8: group, scale_dtype; int4: these, asymmetric and act_order; others: none).

    `scale_dtype` is a dtype or its name. Raises `InputError` for names, options or values that do not exist."""
    known = {fmt.name: type(fmt) for fmt in FORMATS}
    if name not in known:
        raise InputError(f"got the storage format {name!r}; expected one of {', '.join(known)}")
    allowed = _OPTIONS.get(name, ())
    if unknown := sorted(set(options) - set(allowed)):
        raise InputError(f"{name}: got the option {unknown[0]!r}; expected {', '.join(allowed) or 'none'}")
    dtype = options.get("scale_dtype")
    if isinstance(dtype, str):
        if dtype not in _DTYPES:
            raise InputError(f"{name}: got {dtype!r} scales; expected one of {', '.join(_DTYPES)}")
        options["scale_dtype"] = _DTYPES[dtype]
    return known[name](**options)
