"""Is the engine right on a GPU? Tiny models with real weights, against stock transformers there and against ourselves.

Each check gives (name, holds, what was found).
"""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from transformers import CONFIG_MAPPING, AutoModelForCausalLM

from rgpu.experiments.benching import growth_check
from rgpu.experiments.benching.texts import TOKENS, agree, far, generated, same
from rgpu.kernels.compute_cpu import CpuCompute
from rgpu.kernels.compute_triton import on_gpu
from rgpu.planning.top_k import TopK
from rgpu.policies.joint_forecast import JointForecast
from rgpu.policies.lru import Lru
from rgpu.policies.on_demand import OnDemand
from rgpu.predictors.pre_attention import PreAttention
from rgpu.quant.int4 import Int4
from rgpu.quant.mxfp4 import Mxfp4
from rgpu.replay.controller import Controller, replay_events
from rgpu.replay.pool import PoolConfig
from rgpu.replay.resizing import Resizes
from rgpu.replay.stream import routing_events
from rgpu.runtime.architecture import read_architecture
from rgpu.runtime.device_executor import ON_THE_HOST
from rgpu.runtime.loading import load_resident
from rgpu.runtime.ring_cache import ring_layers
from rgpu.runtime.session import OffloadSession
from rgpu.traces.recorder import TraceRecorder
from rgpu.traces.storage import load_trace

COLUMNS = ("check", "holds", "found")
EXPERTS, TOP_K, LAYERS = 16, 4, 4
NEAR = 1e-3  # of the largest logit, in float32
_COMMON: dict[str, Any] = {
    "vocab_size": 512, "hidden_size": 256, "num_hidden_layers": LAYERS, "num_attention_heads": 4, "num_key_value_heads": 2,
    "head_dim": 64, "num_experts_per_tok": TOP_K, "max_position_embeddings": 512, "eos_token_id": 1, "bos_token_id": 2,
    "pad_token_id": 0, "initializer_range": 0.1,
}  # fmt: skip
KINDS: dict[str, dict[str, Any]] = {
    "qwen3_moe": {
        "num_experts": EXPERTS,
        "moe_intermediate_size": 128,
        "intermediate_size": 256,
        "norm_topk_prob": True,
    },
    # every other layer has a window, which is full while the text is made
    "gpt_oss": {"num_local_experts": EXPERTS, "intermediate_size": 128, "sliding_window": 28},
}
WINDOWS = (8, 20)  # shorter than the prompts, and as long
Result = tuple[str, bool, str]


def checks(folder: Path) -> Iterator[Result]:
    """Everything, in the order of what it rests on; a check that raises is a check that fails."""
    for kind in KINDS:
        where = _built(kind, folder / kind)
        for dtype in (torch.float32, torch.bfloat16):
            name = f"{kind} {str(dtype).removeprefix('torch.')} experts on the GPU as stock eager, bit for bit"
            yield _guarded(name, _floats, where, folder / "stores", dtype)
        quant = Int4(32) if kind == "qwen3_moe" else Mxfp4()
        yield from _quantised(kind, where, folder / "stores", quant)
    for window in WINDOWS:
        where = _built("gpt_oss", folder / f"window{window}", sliding_window=window)
        for slots, what in ((5, "a quarter resident"), (EXPERTS, "all resident")):
            name = f"gpt_oss mxfp4, window of {window}, {what}: graphs as transformers' own cache, bit for bit"
            yield _guarded(name, _windows, where, folder / "stores", slots)
    yield _guarded(growth_check.NAME, growth_check.grown)


def _built(kind: str, where: Path, **changed: Any) -> Path:
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(CONFIG_MAPPING[kind](**(_COMMON | KINDS[kind] | changed))).save_pretrained(where)
    return where


def _guarded(name: str, check: Callable[..., tuple[bool, str]], *arguments: Any) -> Result:
    try:
        return (name, *check(*arguments))
    except Exception as error:
        return name, False, f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"


def _floats(where: Path, stores: Path, dtype: torch.dtype) -> tuple[bool, str]:
    stock = load_resident(where, read_architecture(where), dtype).cuda()
    wanted = generated(stock)
    with OffloadSession.open(
        where, lambda shape: Controller(Lru(), shape, PoolConfig("layer", 5)), dtype=dtype, cache=stores, store="ram",
        device="cuda", record=False,
    ) as session:  # fmt: skip
        made = generated(session.model)
    return same(made, wanted), f"largest difference {far(made, wanted):.2e}"


def _windows(where: Path, stores: Path, slots: int) -> tuple[bool, str]:
    """Windows as rings in graphs beside transformers' static and growing caches, which no graph touches."""
    made: dict[bool, list[Any]] = {}
    for graphs in (False, True):
        with OffloadSession.open(
            where, lambda shape: Controller(Lru(), shape, PoolConfig("layer", slots)), dtype=torch.bfloat16, cache=stores,
            store="ram", device="cuda", record=False, quantize=Mxfp4(), kernel=on_gpu, graphs=graphs,
        ) as session:  # fmt: skip
            made[graphs] = [generated(session.model, cache_implementation="static") for _ in range(2)]
            if graphs:
                assert session.graphs is not None
                assert session.graphs.failed is None, session.graphs.failed
                replayed, rings = session.graphs.replayed, len(ring_layers(session.graphs._cache[0]))
    (static, again), ours = made[False], made[True]
    held = same(static, again) and all(same(one, static) for one in ours)
    apart, exact = _from_growing(where, stores, slots)
    return held and replayed > TOKENS and exact > 0 and rings > 0 and apart < NEAR, (
        f"{replayed} steps replayed on {rings} rings, {far(ours[0], static):.2e} apart; {apart:.2e} from a growing cache in "
        f"float32, {exact} replayed"
    )


def _from_growing(where: Path, stores: Path, slots: int) -> tuple[float, int]:
    """(how far rings in graphs are from transformers' growing cache, steps replayed), in float32: bfloat16 rounds too much."""
    made: list[Any] = []
    replayed = 0
    for graphs in (False, True):
        with OffloadSession.open(
            where, lambda shape: Controller(Lru(), shape, PoolConfig("layer", slots)), dtype=torch.float32, cache=stores,
            store="ram", device="cuda", record=False, quantize=Mxfp4(), kernel=on_gpu, graphs=graphs,
        ) as session:  # fmt: skip
            made.append(generated(session.model, **({"cache_implementation": "static"} if graphs else {})))
            replayed += 0 if session.graphs is None else session.graphs.replayed
    return far(made[1], made[0]), replayed


def _quantised(kind: str, where: Path, stores: Path, quant: Any) -> Iterator[Result]:
    def opened(slots: int, handler: str = "fetch", policy: Any = None, **options: Any) -> OffloadSession:
        chosen: dict[str, Any] = {"store": "ram", "device": "cuda", "kernel": on_gpu, "record": False} | options
        pool = PoolConfig("layer", slots)
        return OffloadSession.open(
            where, lambda shape: Controller(policy or Lru(), shape, pool), cache=stores, quantize=quant, handler=handler,
            **({"dtype": torch.bfloat16} | chosen),
        )  # fmt: skip

    name = f"{kind} {quant.name}"
    with opened(EXPERTS, device="cpu", kernel=CpuCompute, dtype=torch.float32) as session:
        on_cpu = generated(session.model)
    with opened(EXPERTS, graphs=False, dtype=torch.float32) as session:
        on_gpu_too = generated(session.model)
        exact = generated(session.model, cache_implementation="static")
    error, found = far(on_gpu_too, on_cpu), agree(on_gpu_too, on_cpu)
    yield (
        f"{name} in float32 on the GPU near the CPU's kernel",
        error < 0.01,
        f"{error:.2e} of the largest logit, {found}",
    )
    with opened(EXPERTS, graphs=False) as session:
        resident = generated(session.model)
        static = generated(session.model, cache_implementation="static")
    ways: list[tuple[str, dict[str, Any]]] = [
        ("a quarter resident, fetch", {"slots": 5}),
        ("one slot", {"slots": 2}),
        ("on demand", {"slots": 5, "policy": OnDemand()}),
        ("a quarter resident, zero copy", {"slots": 5, "handler": "zero_copy"}),
        ("from a file, past the page cache", {"slots": 5, "store": "direct"}),
        ("from a tier", {"slots": 5, "store": "tier", "ram_experts": 20}),
    ]
    for text, options in ways:

        def growing(options: dict[str, Any] = options) -> tuple[bool, str]:
            with opened(graphs=False, **options) as session:
                made = generated(session.model)
            return same(made, resident), f"largest difference {far(made, resident):.2e}"

        def replayed(options: dict[str, Any] = options) -> tuple[bool, str]:
            with opened(**options) as session:
                made = [generated(session.model, cache_implementation="static") for _ in range(2)]
                graphs = session.graphs
            assert graphs is not None
            held = same(made[0], static) and same(made[1], static) and graphs.replayed > TOKENS
            return (
                held,
                f"{graphs.replayed} steps replayed of {graphs.captured} captures, {far(made[0], static):.2e} apart",
            )

        yield _guarded(f"{name}, {text}: bits of the resident run", growing)
        yield _guarded(f"{name}, {text}: graphs", replayed)
    for handler in ON_THE_HOST:
        yield _guarded(
            f"{name} in float32, a quarter resident, {handler}: near the resident run, graphs or not",
            lambda handler=handler: _beside(opened, handler, exact),  # type: ignore[misc]
        )
    yield _guarded(f"{name}, all resident: the step as one graph", lambda: _whole(opened, static))
    yield _guarded(f"{name} in float32, fused dense parts: near the others", lambda: _fused(opened, exact))
    yield _guarded(f"{name}: a replay of the run's own trace decides the same", lambda: _again(opened))
    early = f"{name}, prefetch by what enters a layer, graphs cut before attention: bits, and the replay's decisions"
    yield _guarded(early, _before_attention, where, stores, quant, static)
    yield _guarded(f"{name}: pools that change their size between steps of graphs", lambda: _resized(opened, static))


def _beside(opened: Any, handler: str, exact: Any) -> tuple[bool, str]:
    """Misses on the processor: the same up to the rounding of its sums, and some were computed there. In float32: in
    bfloat16 the rounding of one expert moves the tiny models' logits by a tenth and more."""
    apart, served, replayed, found = [], [], 0, []
    for graphs in (False, True):
        with opened(5, handler, graphs=graphs, host_kernel=CpuCompute, dtype=torch.float32) as session:
            made = generated(session.model, cache_implementation="static")
            apart.append(far(made, exact))
            found.append(agree(made, exact))
            served.append(session.misses_by_handler()["cpu"])
            replayed += 0 if session.graphs is None else session.graphs.replayed
    return all(one < NEAR for one in apart) and min(served) > 0 and replayed > 0, (
        f"{apart[0]:.2e} of the largest logit without graphs ({found[0]}), {apart[1]:.2e} in {replayed} steps of graphs "
        f"({found[1]}), {served} misses on the processor"
    )


def _whole(opened: Any, static: Any) -> tuple[bool, str]:
    with opened(EXPERTS) as session:
        made = [generated(session.model, cache_implementation="static") for _ in range(3)]
        whole, captured = sum(key[1] for key in session.graphs._captured), len(session.graphs._captured)
    return all(same(one, static) for one in made) and whole > 0, f"{whole} of {captured} captures kept is in one piece"


def _fused(opened: Any, exact: Any) -> tuple[bool, str]:
    """Fused sums round otherwise in the last bits, and then alike whatever is resident, with graphs or without."""
    ways: list[dict[str, Any]] = [{"slots": EXPERTS, "graphs": False}, {"slots": EXPERTS}, {"slots": 5}]
    made = []
    for way in ways:
        with opened(way.pop("slots"), fused=True, dtype=torch.float32, **way) as session:
            made += [generated(session.model, cache_implementation="static") for _ in range(2)]
    alike = all(same(one, made[0]) for one in made)
    apart, found = far(made[0], exact), agree(made[0], exact)
    return (
        alike and apart < NEAR,
        f"{apart:.2e} of the largest logit, {found}, {len(made)} runs {'' if alike else 'not '}alike",
    )


def _resized(opened: Any, static: Any) -> tuple[bool, str]:
    """The bits of pools of one size, decisions that a replay finds again, and memory that goes with the slots."""
    sizes = {6: 2, 12: 12, 18: 4}
    freed: list[float] = []
    with opened(5, record=True) as session:
        stride = session.store.layout.stride

        def change(past: int, new: int) -> None:
            rows = sizes.get(past - 20)
            if new == 1 and rows:
                given = stride * (sum(session.sizes.rows()) - rows * LAYERS)
                before = torch.cuda.memory_allocated()
                session.sizes.resize([rows] * LAYERS)
                if given > 0:
                    freed.append((before - torch.cuda.memory_allocated()) / given)

        session.between_passes(change)
        made = generated(session.model, cache_implementation="static")
        captured, trace = session.graphs.captured, session.trace()
        fresh = Controller(Lru(), session.shape, PoolConfig("layer", 5))
        replay_events(fresh, routing_events(trace), Resizes.of(trace))
        held = fresh.log == session.log and len(session.sizes.history) == 3 * LAYERS
    held = held and same(made, static) and captured > 3 and min(freed) > 0.99
    return held, f"{captured} captures, {far(made, static):.2e} apart, {min(freed):.0%} of the slots' bytes free"


def _again(opened: Any) -> tuple[bool, str]:
    with opened(5, record=True) as session:
        generated(session.model, cache_implementation="static")
        replayed = session.graphs.replayed
        fresh = Controller(Lru(), session.shape, PoolConfig("layer", 5))
        replay_events(fresh, routing_events(session.trace()))
        same_log = fresh.log == session.log and fresh.hits == session.controller.hits
    return same_log and replayed > 0 and bool(fresh.log), f"{len(fresh.log)} decisions, {replayed} steps of graphs"


def _before_attention(
    where: Path, stores: Path, quant: Any, static: Any, device: str = "cuda", kernel: Any = on_gpu
) -> tuple[bool, str]:
    model, path = load_resident(where, read_architecture(where), torch.float32), where / "before.safetensors"
    with TraceRecorder(model, path, hidden=True, router_logits=True, pre_attention=True):
        generated(model)
    predictor = PreAttention(epochs=0, horizon=2).fit(load_trace(path))
    policies: tuple[Any, ...] = (Lru(), JointForecast())
    said, held = [], True
    for policy in policies:

        def made(shape: Any, policy: Any = policy) -> Controller:
            pool, planner = PoolConfig("layer", 6), TopK(TOP_K, horizon=2)
            return Controller(policy, shape, pool, predictor=predictor, planner=planner)

        with OffloadSession.open(
            where, made, dtype=torch.bfloat16, cache=stores, store="ram", device=device, quantize=quant, kernel=kernel
        ) as session:
            text = [generated(session.model, cache_implementation="static") for _ in range(2)]
            steps, log, used = session.graphs, session.log, session.controller.prefetch_hits
            fresh = replay_events(made(session.shape), routing_events(session.trace()))
        replayed = 0 if steps is None else steps.replayed
        alike, agreed = all(same(one, static) for one in text), fresh.log == log
        held = held and alike and agreed and replayed > TOKENS and used > 0
        said.append(
            f"{policy.name}: {replayed} steps of graphs, {used} loads used, {'' if alike else 'not '}the bits, "
            f"{'' if agreed else 'not '}the decisions"
        )
    return held, "; ".join(said)
