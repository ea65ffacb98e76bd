"""All checks, in the order in which they run and are shown."""

from __future__ import annotations

from core.engines.catalog import ENGINES
from core.errors import UsageError
from core.testing.check import Check

_PLANNED = ("chips.sourced", "launch_env.plans")
_ON_DEVICE = ("init_device.takes_device",)
_RUNS = (
    *_ON_DEVICE,
    "init_device.pins_fp32",
    "describe_environment.tells",
    "build_model.builds",
    "optimizer_wrap.keeps_recipe",
)
"""What a whole run goes through, so that it is blamed for nothing that has a check of its own."""

CHECKS: tuple[Check, ...] = (
    Check(
        id="chips.sourced",
        hook="chips",
        place="launcher",
        proves="every chip has a name of its own, and each of its numbers a source",
        call="core.testing.launcher_checks:chips_are_sourced",
    ),
    Check(
        id="chips.dense_peaks",
        hook="chips",
        place="launcher",
        proves="peaks are dense ones: by their sources, and by how they relate",
        call="core.testing.launcher_checks:peaks_are_dense",
        needs=("chips.sourced",),
    ),
    Check(
        id="probe.known_chips",
        hook="probe",
        place="launcher",
        proves="what this machine holds is told in time, twice alike, in chips that the plugin lists",
        call="core.testing.launcher_checks:probe_knows_its_chips",
        needs=("chips.sourced",),
        if_declared=True,
    ),
    Check(
        id="launch_env.plans",
        hook="launch_env",
        place="launcher",
        proves="a case can be planned for every chip, and the workers' variables are the same each time",
        call="core.testing.launcher_checks:chips_can_be_planned",
        needs=("chips.sourced",),
    ),
    Check(
        id="launcher.no_torch",
        hook="chips",
        place="launcher",
        proves="the hooks of the launcher's side import no torch",
        call="core.testing.launcher_checks:no_torch_is_imported",
        needs=("probe.known_chips", *_PLANNED),
    ),
    # Last of its process: it looks at installed cases, which asks every vendor.
    Check(
        id="hardware_configs.plannable",
        hook="hardware_configs",
        place="launcher",
        proves="every config that the plugin adds to an installed case can be planned",
        call="core.testing.launcher_checks:configs_can_be_planned",
        needs=_PLANNED,
        if_declared=True,
    ),
    Check(
        id="tune.plannable",
        hook="tune",
        place="launcher",
        proves="tuned runs can be planned on every chip, and compute in a step what they would without the plugin",
        call="core.testing.launcher_checks:tuned_runs_can_be_planned",
        needs=_PLANNED,
        if_declared=True,
    ),
    Check(
        id="init_device.takes_device",
        hook="init_device",
        place="fp32",
        proves="the device computes, under the name, index and collective backend that are told of it",
        call="core.testing.device_checks:takes_device",
        needs=_PLANNED,
    ),
    Check(
        id="init_device.refuses_missing",
        hook="init_device",
        place="fp32",
        proves="a rank without a device gets an error that says so",
        call="core.testing.device_checks:refuses_missing_device",
        needs=_ON_DEVICE,
    ),
    Check(
        id="init_device.pins_fp32",
        hook="init_device",
        place="fp32",
        proves="under fp32, products and convolutions have fp32's error, not TF32's",
        call="core.testing.precision_checks:fp32_is_fp32",
        needs=_ON_DEVICE,
    ),
    # Early on, before training has raised the process's own peak.
    Check(
        id="collect_memory.counts",
        hook="collect_memory",
        place="fp32",
        proves="a block of a known size raises the peak by that size, and no peak is over the capacity",
        call="core.testing.memory_checks:peak_counts_allocations",
        needs=_ON_DEVICE,
    ),
    Check(
        id="collect_memory.resets",
        hook="collect_memory",
        place="fp32",
        proves="after warm-up's reset the peak no longer holds what was freed before",
        call="core.testing.memory_checks:peak_is_reset",
        needs=("collect_memory.counts",),
    ),
    Check(
        id="collect_memory.out_of_memory",
        hook="collect_memory",
        place="fp32",
        proves="an allocation that cannot be is told as out of memory, counted, and leaves the device usable",
        call="core.testing.memory_checks:survives_out_of_memory",
        needs=("init_device.pins_fp32",),
    ),
    Check(
        id="describe_environment.tells",
        hook="describe_environment",
        place="fp32",
        proves="versions are texts by name, the same when asked again",
        call="core.testing.device_checks:describes_environment",
        needs=_ON_DEVICE,
        if_declared=True,
    ),
    Check(
        id="build_model.builds",
        hook="build_model",
        place="fp32",
        proves="the model has the case's parameters, and on the device the loss that core's has on the CPU",
        call="core.testing.training_checks:builds_the_model",
        needs=_ON_DEVICE,
    ),
    Check(
        id="build_model.repeats",
        hook="build_model",
        place="fp32",
        proves="the same weights and batches give the same losses twice",
        call="core.testing.training_checks:training_repeats",
        needs=("build_model.builds",),
    ),
    Check(
        id="build_model.checkpointing",
        hook="build_model",
        place="fp32",
        proves="selective and full activation checkpointing change neither loss nor gradients",
        call="core.testing.training_checks:checkpointing_changes_nothing",
        needs=("build_model.builds",),
    ),
    Check(
        id="optimizer_wrap.keeps_recipe",
        hook="optimizer_wrap",
        place="fp32",
        proves="parameters and settings stay, and each step goes where AdamW goes on the CPU",
        call="core.testing.training_checks:optimizer_keeps_the_recipe",
        needs=("build_model.builds",),
        if_declared=True,
    ),
    Check(
        id="optimizer_wrap.checkpoint",
        hook="optimizer_wrap",
        place="fp32",
        proves="weights and optimizer state, saved and loaded, train on to where an unbroken run comes",
        call="core.testing.checkpoint_checks:state_goes_on",
        needs=("build_model.repeats", "optimizer_wrap.keeps_recipe"),
    ),
    Check(
        id="collect_telemetry.sane",
        hook="collect_telemetry",
        place="fp32",
        proves="numbers on a device at work are possible ones, and none is 0 for unknown",
        call="core.testing.device_checks:telemetry_is_sane",
        needs=_ON_DEVICE,
        if_declared=True,
    ),
    Check(
        id="chips.peaks_reached",
        hook="chips",
        place="fp32",
        proves="a large product reaches between half of each stated peak and all of it",
        call="core.testing.device_checks:peaks_are_reached",
        needs=(*_ON_DEVICE, "chips.dense_peaks", "init_device.pins_fp32"),
    ),
    Check(
        id="init_device.pins_tf32",
        hook="init_device",
        place="tf32",
        proves="under tf32, products have TF32's error, and where the chip has a TF32 peak, really use it",
        call="core.testing.precision_checks:tf32_is_tf32",
        needs=_ON_DEVICE,
    ),
    Check(
        id="init_device.autocast",
        hook="init_device",
        place="amp",
        proves="autocast to bf16 reaches linear layers, and gradients of fp32 weights are fp32",
        call="core.testing.precision_checks:autocast_is_bf16",
        needs=_ON_DEVICE,
    ),
    Check(
        id="build_model.tuned",
        hook="build_model",
        place="tuned",
        proves="compiled, with the attention of tuned runs, checkpointed or not, loss and gradients are the CPU's",
        call="core.testing.training_checks:tuned_runs_train_alike",
        needs=("tune.plannable", "build_model.checkpointing"),
    ),
    Check(
        id="optimizer_wrap.tuned",
        hook="optimizer_wrap",
        place="tuned",
        proves="in compiled runs, too, each step goes where AdamW goes on the CPU",
        call="core.testing.training_checks:optimizer_keeps_the_recipe",
        needs=("tune.plannable", "optimizer_wrap.keeps_recipe"),
        if_declared=True,
    ),
    Check(
        id="optimizer_wrap.tuned_checkpoint",
        hook="optimizer_wrap",
        place="tuned",
        proves="a compiled run, saved and loaded, trains on to where an unbroken one comes",
        call="core.testing.checkpoint_checks:state_goes_on",
        needs=("build_model.tuned", "optimizer_wrap.tuned", "optimizer_wrap.checkpoint"),
    ),
    Check(
        id="init_device.collectives",
        hook="init_device",
        place="ranks",
        proves="between two ranks, the collectives that engines use give what they must",
        call="core.testing.rank_checks:collectives_are_right",
        needs=_ON_DEVICE,
    ),
    *(
        Check(
            id=f"engine.{engine.name}",
            hook="prepare_engine",
            place="run",
            proves=f"a run under {engine.name} ends well, with the losses and gradient norms of the CPU",
            call=f"core.testing.run_checks:{engine.name}_follows_the_reference",
            needs=_RUNS,
        )
        for engine in ENGINES
    ),
    Check(
        id="run.out_of_memory",
        hook="collect_memory",
        place="run",
        proves="a run that needs more memory than there is leaves a record that says so",
        call="core.testing.run_checks:out_of_memory_is_recorded",
        needs=("engine.torch", "collect_memory.out_of_memory"),
    ),
)


def check_called(check_id: str) -> Check:
    """The check with that id; UsageError lists the known ones."""
    for check in CHECKS:
        if check.id == check_id:
            return check
    raise UsageError(f"no check {check_id!r}", f"use one of: {', '.join(check.id for check in CHECKS)}")
