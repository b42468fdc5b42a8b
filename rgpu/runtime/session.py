"""`OffloadSession`: a transformers model that generates while its experts live in a store and run from a slot pool."""

import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from rgpu.checkpoint.plain import Quantizer
from rgpu.errors import InputError
from rgpu.memory.pinned import page_locked
from rgpu.memory.process import peak_rss_bytes, rss_anon_bytes
from rgpu.memory.slot_pool import make_pools
from rgpu.quant.layout import SlotLayout
from rgpu.replay.controller import Controller
from rgpu.replay.resizing import KEY as RESIZES
from rgpu.replay.resizing import Resized
from rgpu.runtime import before_attention
from rgpu.runtime.architecture import Architecture, read_architecture
from rgpu.runtime.compiled_parts import compile_parts
from rgpu.runtime.compute import Kernel, event_compute, no_kernel
from rgpu.runtime.device_executor import DeviceExecutor
from rgpu.runtime.devices import device_of
from rgpu.runtime.executor import CPU, FETCH, SPLIT, ZERO_COPY, PoolExecutor
from rgpu.runtime.loading import load_dense, load_tokenizer
from rgpu.runtime.lossy import Lossy
from rgpu.runtime.pool_sizes import PoolSizes
from rgpu.runtime.rerouting import LowCopies, Rerouter
from rgpu.runtime.step_graphs import StepGraphs
from rgpu.runtime.stores import check_lossy, low_copies, store_form
from rgpu.runtime.telemetry import Telemetry
from rgpu.store.convert import converted
from rgpu.store.source import ExpertSource
from rgpu.store.tiers import open_source
from rgpu.traces.moe_layers import moe_layers
from rgpu.traces.passes import PassTracker, lengths
from rgpu.traces.recorder import TraceRecorder
from rgpu.traces.storage import load_trace
from rgpu.traces.trace import DECODE, Trace
from rgpu.transfer.device import DeviceTransfer
from rgpu.transfer.host import HostTransfer
from rgpu.transfer.streams import CudaStreams, Streams
from rgpu.types import MoEShape, RoutingEvent

ControllerFactory = Callable[[MoEShape], Controller]


class OffloadSession:
    """A model with its store, pools, controller and transfer thread; `with OffloadSession.open(...) as session:`.

    `session.model.generate(...)` works as always; every decision comes from the controller and is in `session.log`.
    """

    def __init__(
        self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase | None, architecture: Architecture,
        store: ExpertSource, make_controller: ControllerFactory, *, hidden: bool = False, record: bool = True,
        handler: str = FETCH, threads: int | None = None, kernel: Kernel | None = None, telemetry: Telemetry | None = None,
        device: torch.device | None = None, graphs: bool = True, lossy: Lossy | None = None, low: ExpertSource | None = None,
        host_kernel: Kernel | None = None, fused: bool = False,
    ) -> None:  # fmt: skip
        self.model = model
        self.device = torch.device("cpu") if device is None else device
        self.graphs: StepGraphs | None = None
        self.tokenizer = tokenizer
        self.architecture = architecture
        self.store = store
        self._kernel, self._host_kernel = kernel, host_kernel
        self._lossy, self._low = lossy, low
        self.rerouter: Rerouter | None = None
        self.telemetry = Telemetry() if telemetry is None else telemetry
        self.startup: dict[str, float] = {}
        self._anon_before = rss_anon_bytes()
        self._stack = ExitStack()
        self._trace: Trace | None = None
        self._recorder: TraceRecorder | None = None
        try:
            if threads is not None:
                self._stack.callback(torch.set_num_threads, torch.get_num_threads())
                torch.set_num_threads(threads)
            if fused:
                compile_parts(model, self._stack)
            self._begin(make_controller, hidden, record, handler, graphs)
        except BaseException:
            self._stack.close()
            raise

    @classmethod
    def open(
        cls, model_dir: str | Path, make_controller: ControllerFactory, *, dtype: torch.dtype = torch.float32,
        store: str = "disk", threads: int | None = None, hidden: bool = False, record: bool = True,
        cache: Path | None = None, quantize: Quantizer | None = None, handler: str = FETCH, kernel: Kernel | None = None,
        ram_experts: int = 0, checked: bool = False, telemetry: Telemetry | None = None, device: str = "cpu",
        graphs: bool = True, lossy: Lossy | None = None, host_kernel: Kernel | None = None, fused: bool = False,
    ) -> "OffloadSession":  # fmt: skip
        """Opens the model in `model_dir`; the first time, its experts are converted to a store.

        Float checkpoints are held in `dtype`, or rounded to the storage format `quantize`; quantised ones stay as they are
        (`dtype` is then that of the rest of the model). `make_controller(shape)` builds the controller, each time anew (the
        first one only compiles). `store`: see `open_source`, as are `ram_experts` and `checked`. `handler`: how misses are
        served (see `PoolExecutor`). `kernel` computes quantised experts (`rgpu.kernels.compute_cpu.CpuCompute`). `hidden`:
        events and the recorded trace carry the router's input, which some policies and predictors read. `threads`: torch's,
        and those of the experts, while open. `cache`: folder of stores, by default `cache_folder()`. `device`: "cpu" or
        "cuda", where the model computes and the slots are; on a GPU `kernel` is `rgpu.kernels.compute_triton.on_gpu`, a store
        of kind "ram" is the one that copies at full speed, and with `graphs` decode steps on a static cache are CUDA graphs;
        `host_kernel` (`CpuCompute`) computes there what the handlers "cpu" and "split" leave to the processor.
        `fused`: norms, rotary embeddings and routers of decode steps are compiled (see `compile_parts`).
        `lossy`: a mode of `rgpu.runtime.lossy`, on the CPU; what it did is in `session.rerouter.section()`.
        Raises `InputError` for models that are missing, broken, not Mixture-of-Experts or of an unsupported layout.
        """
        folder, anon_before, target = Path(model_dir), rss_anon_bytes(), device_of(device)
        architecture = read_architecture(folder)
        if lossy is not None:
            check_lossy(lossy, architecture, target, quantize)
        began_s = time.perf_counter()
        path = converted(folder, store_form(architecture, dtype, quantize), cache)
        converted_s = time.perf_counter()
        experts = open_source(path, store, ram_experts=ram_experts, checked=checked)
        layout = experts.layout
        if odd := architecture.differs_from(experts.layer_ids, experts.experts, layout.intermediate, layout.hidden):
            raise InputError(f"cannot run {folder}: {odd}; use weights and config of one model")
        low = None if lossy is None or lossy.low is None else low_copies(folder, lossy.low, cache)
        opened_s = time.perf_counter()
        model = load_dense(folder, architecture, dtype, cache).to(target)
        loaded_s = time.perf_counter()
        session = cls(
            model, load_tokenizer(folder), architecture, experts, make_controller, hidden=hidden, record=record,
            handler=handler, threads=threads, kernel=kernel, telemetry=telemetry, device=target, graphs=graphs,
            lossy=lossy, low=low, host_kernel=host_kernel, fused=fused,
        )  # fmt: skip
        session._anon_before = anon_before
        session.startup = {
            "convert_s": converted_s - began_s, "open_store_s": opened_s - converted_s, "dense_s": loaded_s - opened_s,
            "fill_s": time.perf_counter() - loaded_s,
        }  # fmt: skip
        return session

    def _begin(
        self, make_controller: ControllerFactory, hidden: bool, record: bool, handler: str, graphs: bool
    ) -> None:
        self.shape = self.store.shape(self.architecture.top_k)
        make_controller(self.shape).observe(sample_event(self.shape, hidden))  # compiles the policy; thrown away
        self.controller = make_controller(self.shape)
        rows = [slots + self.controller.staging for slots in self.controller.slots]
        self.pools = make_pools(self.store.layout, rows, self.device)
        for pool in self.pools:
            self._stack.callback(pool.release)
        tracker = self._stack.enter_context(PassTracker(self.model))
        if self._lossy is not None:
            self.rerouter = Rerouter(
                self._lossy, self.model, self.controller, lambda: tracker.current, self._low_compute(), self._stack
            )
        if record:
            self._record(hidden)
        streams = self._streams()
        executor: PoolExecutor
        if streams is not None:
            moved = DeviceTransfer(self.store, self.pools, streams, observer=self.telemetry.observe)
            self.transfer: HostTransfer | DeviceTransfer = moved
        else:
            self.transfer = HostTransfer(self.store, self.pools, observer=self.telemetry.observe)
        self._stack.callback(self.transfer.close)
        if streams is not None and isinstance(self.store.layout, SlotLayout):
            executor = DeviceExecutor(
                self.controller, self.pools, moved, self._make_kernel(), lambda: tracker.current, hidden, self.store, handler,
                self.device, self._make_host_kernel(),
            )  # fmt: skip
        else:
            if streams is not None and handler != FETCH:
                raise InputError(
                    f"pool.miss: got {handler!r} with float experts on a GPU; expected fetch; quantise them, or set "
                    "pool.miss=fetch"
                )
            compute = event_compute(self.store, self.architecture, self._kernel, torch.get_num_threads())
            executor = PoolExecutor(
                self.controller,
                self.pools,
                self.transfer,
                compute,
                lambda: tracker.current,
                hidden,
                self.store,
                handler,
            )
        self._executor = executor
        for index, layer in enumerate(moe_layers(self.model)):
            layer.experts.layer, layer.experts.run = index, executor
            self._stack.callback(setattr, layer.experts, "run", None)
        if self.controller.waits:
            before_attention.attach(self.model, executor, self._stack)
        executor.filled()
        if graphs and isinstance(executor, DeviceExecutor):
            self.graphs = StepGraphs(self.model, executor, self._stack)
        self.sizes = PoolSizes(
            executor,
            self.device,
            lambda: tracker.passes if tracker.current is None else None,
            lambda: None if self.graphs is None else self.graphs.forget(),
        )
        self.telemetry.attach(self.model, self.controller, self.transfer, self._stack, self.rerouter)

    def _streams(self) -> Streams | None:
        """The GPU's queues, with memory and model made ready for it; None on a CPU."""
        if self.device.type != "cuda":
            return None
        if self.store.in_place and self.store.ram_bytes:
            self._stack.enter_context(page_locked(self.store.rows_SB))
        self.model.generation_config.disable_compile = (
            True  # what is compiled could not be cut where experts are decided
        )
        return CudaStreams(self.device)

    def _make_kernel(self) -> Callable[[], Any]:
        layout, gate, make = self.store.layout, self.architecture.gate, self._kernel
        assert isinstance(layout, SlotLayout) and gate is not None
        if make is None:
            raise no_kernel(layout, "compute_triton.on_gpu")
        return lambda: make(layout, gate, 1)

    def _make_host_kernel(self) -> Any:
        layout, gate = self.store.layout, self.architecture.gate
        assert isinstance(layout, SlotLayout) and gate is not None
        return None if self._host_kernel is None else self._host_kernel(layout, gate, torch.get_num_threads())

    def _low_compute(self) -> LowCopies | None:
        if self._low is None:
            return None
        return LowCopies(self._low, event_compute(self._low, self.architecture, self._kernel, torch.get_num_threads()))

    def _record(self, hidden: bool) -> None:
        folder = self._stack.enter_context(tempfile.TemporaryDirectory(prefix="rgpu-trace-"))
        recorder = TraceRecorder(
            self.model,
            Path(folder) / "own.safetensors",
            hidden=hidden,
            pre_attention=self.controller.waits,
            padding=True,
            expert_bytes=self.shape.expert_bytes,
            provenance=None if self._lossy is None else {"lossy": self._lossy.settings()},
        )
        self._recorder = recorder.__enter__()
        self._stack.callback(self._stop_recording)

    def _stop_recording(self) -> None:
        recorder, self._recorder = self._recorder, None
        if recorder is not None:
            error = InputError("not asked for")
            recorder.__exit__(InputError, error, None)

    def trace(self) -> Trace:
        """What the session has run so far, padding rows included; ends its recording."""
        if self._trace is None:
            recorder, self._recorder = self._recorder, None
            if recorder is None:
                raise InputError("no trace: got a session that does not record; open it with record=True")
            if self.sizes.history:
                recorder.writer.header.provenance[RESIZES] = self.sizes.history
            recorder.__exit__(None, None, None)
            self._trace = load_trace(recorder.writer.path)
        return self._trace

    @property
    def log(self) -> list[Any]:
        """The controller's decisions, in order."""
        return self.controller.log

    def misses_by_handler(self) -> dict[str, int]:
        """Misses by what served them."""
        executor, misses = self._executor, self.controller.accesses - self.controller.hits
        own = {handler: 0 for handler in ((FETCH, CPU) if self.device.type == "cpu" else (FETCH, ZERO_COPY, CPU))}
        if executor.handler != SPLIT:
            return own | {executor.handler: misses}
        return own | {FETCH: misses - executor.in_place, CPU: executor.in_place}

    def memory(self) -> dict[str, int]:
        """Bytes: `pool_bytes` (all slots, staging included), `dense_bytes` (everything but routed experts),
        `store_mapped_bytes` (file mapped read-only), `store_ram_bytes`, `low_precision_bytes` (copies of a lossy run in
        RAM), `peak_rss_bytes` (file pages included),
        `rss_anon_bytes` (private memory of the process now), `rss_anon_growth_bytes` (of that, since this session began
        to open), `experts_bytes` (what the experts of a resident model would take)."""
        anon = rss_anon_bytes()
        tensors = [*self.model.parameters(), *self.model.buffers()]
        dense = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}
        return {
            "pool_bytes": sum(pool.nbytes for pool in self.pools),
            "dense_bytes": sum(dense.values()),
            "store_mapped_bytes": self.store.mapped_bytes,
            "store_ram_bytes": self.store.ram_bytes,
            "low_precision_bytes": 0 if self._low is None else self._low.ram_bytes,
            "experts_bytes": sum(self.shape.expert_bytes) * self.shape.experts,
            "peak_rss_bytes": peak_rss_bytes(),
            "rss_anon_bytes": anon,
            "rss_anon_growth_bytes": anon - self._anon_before,
        }

    def set_memory_cap(self, nbytes: int, beside: int | None = None) -> list[Resized]:
        """Another cap from now on, between two passes (from a streamer of `generate`, say): pools give slots back, or get
        more, until they and `beside` (bytes of everything else; None: what that is now) are within `nbytes`. On a GPU of its
        memory, else of the private memory of the process. Decided by the policy, recorded in the trace, and without effect on
        the output. `InputError` with the smallest cap that works; then all is as it was."""
        return self.sizes.set_cap(nbytes, self.beside_pools() if beside is None else beside)

    def between_passes(self, call: Callable[[int, int], None]) -> None:
        """`call(past, new)` before every pass from now on: tokens that a row's cache holds, and that the pass adds to it. There
        caps and sizes of pools may be changed."""

        def before(_model: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            call(*lengths(args, kwargs))

        # first of all hooks: those that follow the pass must find it not begun
        handle = self.model.register_forward_pre_hook(before, prepend=True, with_kwargs=True)
        self._stack.callback(handle.remove)

    def after_passes(self, call: Callable[[int], None]) -> None:
        """`call(held)` after every pass: tokens that a row's cache holds. `generate` has not looked at the cache for the next
        one, so its size may change here too; otherwise as `between_passes`."""

        def after(_model: Any, args: tuple[Any, ...], kwargs: dict[str, Any], _output: Any) -> None:
            call(lengths(args, kwargs)[0])

        self._stack.callback(self.model.register_forward_hook(after, with_kwargs=True).remove)

    def beside_pools(self) -> int:
        """Bytes that are taken now in the memory where the slots are, but not by them."""
        if self.device.type == "cpu":
            return max(0, rss_anon_bytes() - sum(pool.written_bytes for pool in self.pools))
        free, total = torch.cuda.mem_get_info(self.device)
        return total - free - sum(pool.nbytes for pool in self.pools)

    def close(self) -> None:
        """Ends the transfer thread and the recording; the model cannot run afterwards."""
        self._stack.close()
        self.store.close()
        if self._low is not None:
            self._low.close()

    def __enter__(self) -> "OffloadSession":
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


def sample_event(shape: MoEShape, hidden: bool, pre_attention: bool = False) -> RoutingEvent:
    """A decode event of layer 0 such as a model of this shape gives, for compiling what decides before it is timed."""
    ids_TK = np.arange(shape.top_k, dtype=np.int16)[None]
    hidden_TD, entering_TD = (
        np.zeros((1, shape.hidden), np.float32) if there else None for there in (hidden, pre_attention)
    )
    phase_T, token_T = np.full(1, DECODE, np.uint8), np.zeros(1, np.int32)
    weights_TK = np.ones(ids_TK.shape, np.float32)
    return RoutingEvent(
        0, 0, ids_TK, weights_TK, hidden_TD, phase_T=phase_T, token_T=token_T, pre_attention_TD=entering_TD
    )
