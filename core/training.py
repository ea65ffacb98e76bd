"""The path of a run on one rank: device, data, engine, loop. Everything it finds goes to the rank's event file."""

from __future__ import annotations

import os
import socket
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from core import environment
from core.events import EventLog
from core.failure import Context
from core.layout import Rank, coordinates
from core.plugins import Vendor, load_alone
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

ADAPTER_FOLDER = "adapter"
"""In the run's folder: what LoRA trained, as peft reads it."""
PATIENCE_S = 120.0
"""The ranks' own time-out in a collective comes this much later than the launcher's, which says more."""


class Training:
    """One run on one rank; torch and what needs it are imported by its steps."""

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
        """All of it; ``store`` is where the ranks meet, None leaves that to the launcher."""
        from core import defaults

        vendor = load_alone(self._plan.vendor, self._plan.vendor_distribution, defaults)
        self._log.emit(ev.PhaseEvent, phase="device")
        device = vendor.init_device(self._plan, self._rank.local_rank)
        self.context.read_memory = partial(vendor.collect_memory, device)
        vendor.prepare_engine(self._plan, device)
        self._meet(device, store)
        described = environment.describe() | {"device": device.name} | vendor.describe_environment(device)
        self._log.emit(
            ev.DeviceEvent, device=device, environment=described, host=socket.gethostname(), pid=os.getpid()
        )
        self._train(vendor, device)

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

        self._log.emit(ev.PhaseEvent, phase="data")
        source = self._open_data()
        checkpoints = RunCheckpoints(self._plan, source.facts.sha256, self._rank.rank, self._log)
        self._log.emit(ev.PhaseEvent, phase="setup")
        engine = self._set_up_engine(vendor, device)
        checkpoints.load_into(engine)
        gas = self._plan.hyper_parameters.gradient_accumulation_steps
        loader = DeviceLoader(source, gas, torch.device(device.torch_device), checkpoints.step)
        try:
            self._loop = Loop(self._plan, engine, loader, self._log, checkpoints.step)
            self._measure(self._loop, engine, vendor, device)
        finally:
            loader.close()
        checkpoints.save_from(engine, self._loop.step)
        if self._plan.evaluation is not None:
            self._evaluate(self._plan.evaluation, engine)
        self._log.emit(ev.PhaseEvent, phase="finish")
        self._keep_adapters(engine)
        # Not where something failed: other ranks may hang in a collective, and nothing can be agreed on.
        engine.close()
        engine.leave()

    def _measure(self, loop: Loop, engine: Engine, vendor: Vendor, device: Device) -> None:
        """The loop's windows, with telemetry beside them; memory peaks, and the trace that the plan asks for."""
        from core.telemetry import TelemetrySampler

        sampler = TelemetrySampler(partial(vendor.collect_telemetry, device), self._log)
        try:
            loop.run()
            self._log.emit(ev.MemoryEvent, memory=vendor.collect_memory(device))
            if self._plan.measure.profile_steps:
                loop.profile(self._run_dir)
        finally:
            sampler.stop()

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

        from core.data.agreement import require_same
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
        require_same(
            f"data {facts.name!r}",
            facts.sha256,
            "give all nodes the same files of data and tokenizer; for generated data, the same software",
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
        from core.data.agreement import require_same
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
        weights = weights_sha256(plan, engine.device)
        require_same("initial weights", weights, "give all nodes the same files of weights, and the same software")
        self._log.emit(
            ev.ModelEvent,
            parameters_total=facts.parameters.total,
            parameters_trainable=facts.parameters.trainable,
            parameters_embedding=facts.parameters.embedding,
            parameters_forward_only=facts.parameters.forward_only,
            weights=facts.weights,
            optimizer=facts.optimizer,
            weights_sha256=weights,
        )
        return engine
