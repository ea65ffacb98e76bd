"""One rank of one run: device, engine, data, loop. Everything it finds goes to its event file."""

from __future__ import annotations

import errno
import os
import socket
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from core import environment, notices, process, stacks
from core.errors import AccelMarkError
from core.events import EventListener, EventLog
from core.failure import Context, classify, told
from core.gather import exchange
from core.guard import Close, Guard
from core.launch import RUN_DIR_VARIABLE
from core.layout import coordinates
from core.plugins import Vendor, load_alone
from core.watch import RankWatch
from schemas import event as ev
from schemas.plan import Plan

if TYPE_CHECKING:
    import torch
    from torch._C._distributed_c10d import Store

    from core.data.source import DataSource
    from core.engines.base import Engine
    from core.loop import Loop
    from schemas.chip import Device
    from schemas.evaluation import EvaluationSpec

PLAN_FILE = "plan.json"
ADAPTER_FOLDER = "adapter"
"""In the run's folder: what LoRA trained, as peft reads it."""
EXIT_UNWRITABLE = 74
"""Of a worker that cannot write its events; EX_IOERR of sysexits.h."""
_UNWRITABLE = {errno.ENOSPC, errno.EFBIG, errno.EDQUOT, errno.EROFS, errno.EIO}
PATIENCE_S = 120.0
"""The ranks' own time-out in a collective comes this much later than the launcher's, which says more."""


@dataclass(frozen=True)
class Rank:
    """This process among the others, as torch's launcher counts them."""

    rank: int
    local_rank: int
    world_size: int

    @classmethod
    def from_environment(cls) -> Rank:
        """Read RANK, LOCAL_RANK and WORLD_SIZE."""
        return cls(*(int(os.environ[name]) for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE")))


def main() -> int:
    """Entry of a worker that ``core.run`` launched: the plan lies in the run folder."""
    process.die_with_parent(RUN_DIR_VARIABLE)
    run_dir = Path(os.environ[RUN_DIR_VARIABLE])
    rank = Rank.from_environment()
    stacks.dump_on_request(run_dir, rank.rank)
    _log_to_file(run_dir, rank)
    plan = Plan.model_validate_json((run_dir / PLAN_FILE).read_text(encoding="utf-8"))
    return work(plan, run_dir, rank, partial(meeting_store, rank) if plan.topology.nodes > 1 else None)


def meeting_store(rank: Rank) -> Store:
    """Where the ranks of all nodes meet, as the launcher's variables say."""
    from torch.distributed.rendezvous import rendezvous

    store: Store = next(rendezvous("env://", rank.rank, rank.world_size))[0]
    return store


def work(  # noqa: PLR0913, PLR0917 - what a launcher of ours does by itself is handed in under another
    plan: Plan,
    run_dir: Path,
    rank: Rank,
    open_store: Callable[[], Store] | None = None,
    close: Close | None = None,
    listener: EventListener | None = None,
) -> int:
    """Do this rank's part and return the exit code.

    ``open_store`` gives where the ranks meet, and where their events are gathered at the end; None leaves both to
    the launcher. ``close`` is called last, with the exit code, where no launcher of ours watches. ``listener`` is
    told every event of this rank.
    """
    log = EventLog(run_dir, rank.rank)
    if listener is not None:
        log.listeners.append(listener)
    log.emit(ev.PhaseEvent, phase="start")
    worker = _Worker(plan, rank, log, run_dir)
    watch = None if close is None else RankWatch(rank.rank, plan.measure, time.monotonic())
    store: Store | None = None

    def last(code: int) -> None:
        if store is not None:
            exchange(store, run_dir, rank.rank, rank.world_size, failed=code != 0)
        if close is not None:
            close(code)

    guard = Guard(log, run_dir, lambda: worker.step, watch, last, orderly=open_store is not None)
    try:
        store = open_store() if open_store is not None else None
        with notices.recorded(log):
            worker.run(store)
        log.emit(ev.FinishEvent)
        code = 0
    except BaseException as error:  # whatever ends this rank, the record has to say so
        code = _report(error, worker, log)
    guard.main_thread_ended(code)
    return code


def _report(error: BaseException, worker: _Worker, log: EventLog) -> int:
    """Say what ended this rank, and return its exit code."""
    status, reason = classify(error, worker.context)
    code = error.exit_code if isinstance(error, AccelMarkError) else 1
    step = getattr(error, "step", worker.step)  # a loss is read when later steps are queued already
    trace = traceback.format_exc()
    try:
        memory = worker.context.memory() if status == "oom" else None
        if memory is not None:
            log.emit(ev.MemoryEvent, memory=memory)
            reason = f"{reason} ({told(memory)})"
        log.emit(ev.ErrorEvent, status=status, step=step, reason=reason, traceback=trace, exit_code=code)
        traceback.print_exc()
    except OSError:
        return EXIT_UNWRITABLE
    return EXIT_UNWRITABLE if isinstance(error, OSError) and error.errno in _UNWRITABLE else code


class _Worker:
    """The path of a run on one rank, in order."""

    def __init__(self, plan: Plan, rank: Rank, log: EventLog, run_dir: Path) -> None:
        self._plan, self._rank, self._log, self._run_dir = plan, rank, log, run_dir
        self._loop: Loop | None = None
        self.context = Context(plan.vendor)
        """What is there by now, for the case that something fails."""

    @property
    def step(self) -> int | None:
        """The step that was begun last; None before the first."""
        return self._loop.step if self._loop else None

    def run(self, store: Store | None) -> None:
        import torch.distributed as dist

        from core import defaults

        vendor = load_alone(self._plan.vendor, self._plan.vendor_distribution, defaults)
        device = vendor.init_device(self._plan, self._rank.local_rank)
        self.context.read_memory = partial(vendor.collect_memory, device)
        vendor.prepare_engine(self._plan, device)
        self._meet(device, store)
        described = environment.describe() | {"device": device.name} | vendor.describe_environment(device)
        self._log.emit(
            ev.DeviceEvent, device=device, environment=described, host=socket.gethostname(), pid=os.getpid()
        )
        try:
            self._train(vendor, device)
        finally:
            if sys.exc_info()[0] is None:  # other ranks may hang in a collective; then nothing can be agreed on
                dist.destroy_process_group()

    def _meet(self, device: Device, store: Store | None) -> None:
        """Join the other ranks."""
        from core.process_group import join

        place = (self._rank.rank, self._rank.world_size) if store else (-1, -1)
        join(device, self._patience(), store, *place)

    def _patience(self) -> timedelta:
        measure = self._plan.measure
        longest_s = max(measure.start_timeout_s, measure.setup_timeout_s, measure.timeout_s)
        return timedelta(seconds=longest_s + PATIENCE_S)

    def _train(self, vendor: Vendor, device: Device) -> None:
        import torch

        from core.checkpoint.of_run import RunCheckpoints
        from core.data.loader import DeviceLoader
        from core.loop import Loop
        from core.telemetry import TelemetrySampler

        self._log.emit(ev.PhaseEvent, phase="data")
        source = self._open_data()
        checkpoints = RunCheckpoints(self._plan, source.facts.sha256, self._rank.rank, self._log)
        self._log.emit(ev.PhaseEvent, phase="setup")
        engine = self._set_up_engine(vendor, device)
        checkpoints.load_into(engine)
        gas = self._plan.hyper_parameters.gradient_accumulation_steps
        loader = DeviceLoader(source, gas, torch.device(device.torch_device), checkpoints.step)
        sampler = TelemetrySampler(partial(vendor.collect_telemetry, device), self._log)
        try:
            self._loop = Loop(self._plan, engine, loader, self._log, checkpoints.step)
            self._loop.run()
            self._log.emit(ev.MemoryEvent, memory=vendor.collect_memory(device))
            if self._plan.measure.profile_steps:
                self._loop.profile(self._run_dir)
        finally:
            sampler.stop()
            loader.close()
        checkpoints.save_from(engine, self._loop.step)
        if self._plan.evaluation is not None:
            self._evaluate(self._plan.evaluation, engine)
        self._log.emit(ev.PhaseEvent, phase="finish")
        self._keep_adapters(engine)
        engine.close()

    def _keep_adapters(self, engine: Engine) -> None:
        """Save what was trained, if that is small: the adapters, by rank 0."""
        if self._plan.lora is None:
            return
        from core.models.adapters import save_adapters

        tensors = engine.adapters()  # all ranks gather what is sharded
        if self._rank.rank == 0:
            save_adapters(tensors, self._plan.lora, self._plan.weights, self._run_dir / ADAPTER_FOLDER)

    def _open_data(self) -> DataSource:
        """This rank's data; one process a node makes what is generated and verifies what is not."""
        import torch.distributed as dist

        from core.data.catalog import data_format
        from core.evaluate.catalog import evaluator

        plan, rank = self._plan, self._rank
        reads = data_format(plan)
        if rank.local_rank == 0:
            reads.make(plan)
            if plan.evaluation is not None:
                evaluator(plan.evaluation.benchmark).make(plan.evaluation)
        dist.barrier()
        replica = coordinates(plan.parallel, rank.rank).data
        source = reads.open_source(plan, replica=replica, verify=rank.local_rank == 0)
        facts = source.facts
        self._log.emit(
            ev.DataEvent,
            data=facts.name,
            manifest_sha256=facts.sha256,
            sequences=facts.sequences,
            tokens=facts.tokens,
        )
        return source

    def _evaluate(self, spec: EvaluationSpec, engine: Engine) -> None:
        """Ask the trained model a benchmark's questions, on all ranks together."""
        from core.data.embedded import tokenizer_file
        from core.evaluate.catalog import Respondent, evaluator

        self._log.emit(ev.PhaseEvent, phase="evaluate")
        with engine.evaluating() as model:
            respondent = Respondent(
                model=model,
                device=engine.device,
                tokenizer=tokenizer_file(self._plan),
                vocab_size=self._plan.model.vocab_size,
                max_length=self._plan.model.max_positions,
                vision=self._plan.vision,
                rank=self._rank.rank,
                world_size=self._rank.world_size,
            )
            accuracy = evaluator(spec.benchmark).evaluate(
                spec, respondent, lambda done, total: self._log.emit(ev.ProgressEvent, done=done, total=total)
            )
        self._log.emit(ev.AccuracyEvent, benchmark=spec.benchmark, accuracy=accuracy)

    def _set_up_engine(self, vendor: Vendor, device: Device) -> Engine:
        import torch

        from core import cases
        from core.engines.base import load_engine
        from core.models.fingerprint import weights_sha256

        plan = self._plan
        engine = load_engine(plan.engine)(plan, device)
        case = cases.resolve(plan.case_location).case
        if plan.lora is not None:
            torch.manual_seed(plan.hyper_parameters.seed + self._rank.rank)  # dropout differs between replicas

        def build_model(stage: int) -> torch.nn.Module:
            model = vendor.build_model(case, plan, device, stage)
            self.context.add(model)
            return model

        facts = engine.setup(
            build_model,
            lambda optimizer, model: vendor.optimizer_wrap(optimizer, model, plan, device),
        )
        self._log.emit(
            ev.ModelEvent,
            parameters_total=facts.parameters.total,
            parameters_trainable=facts.parameters.trainable,
            parameters_embedding=facts.parameters.embedding,
            parameters_forward_only=facts.parameters.forward_only,
            weights=facts.weights,
            optimizer=facts.optimizer,
            weights_sha256=weights_sha256(plan, engine.device),
        )
        return engine


def _log_to_file(run_dir: Path, rank: Rank) -> None:
    """Send stdout and stderr, also of native code, to this rank's log in the run folder."""
    folder = run_dir / "logs"
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / f"rank{rank.rank:05d}.log").open("ab", buffering=0) as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)


if __name__ == "__main__":
    code = main()
    sys.stdout.flush()
    sys.stderr.flush()
    # A failed rank must not wait for collectives that will never complete; and native threads have been seen to
    # abort an interpreter that shut down in good order.
    os._exit(code)
