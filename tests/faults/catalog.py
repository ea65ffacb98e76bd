"""The faults that every release has to withstand; tests play each once, ``campaign.py`` as often as it is told."""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
from collections.abc import Sequence
from functools import cache
from pathlib import Path

from schemas.record import Record
from tests.faults.faults import HANGS, ROOT, Fault, Scene

BEFORE_ANY_ENGINE = ("torch",)
"""The launcher refuses the run and starts no process, so no engine can make a difference: it is played on one."""
LONG = ("measure.steps=100000",)
DISK_BYTES = 1_300_000


def _corrupt_data(scene: Scene) -> Sequence[str]:
    folder = _prepared(scene)
    tokens = bytearray((folder / "tokens.bin").read_bytes())
    tokens[len(tokens) // 2] ^= 1
    (folder / "tokens.bin").write_bytes(tokens)
    return ["--set", f"data.path={folder}"]


def _short_data(scene: Scene) -> Sequence[str]:
    return ["--set", f"data.path={_prepared(scene)}"]


def _prepared(scene: Scene) -> Path:
    """A prepared data set of 64 sequences of 32 tokens: where the generated corpus begins, under another name."""
    from core.data.embedded import embedded_data
    from core.data.manifest import MANIFEST_FILE

    made = embedded_data(scene.cache, seed=0, sequences=64, sequence_length=32, model_vocab_size=512)
    folder = scene.folder / "data"
    shutil.copytree(made, folder)
    tokens = (folder / "tokens.bin").read_bytes()[: 2 * (64 * 32 + 1)]
    (folder / "tokens.bin").write_bytes(tokens)
    manifest = json.loads((folder / MANIFEST_FILE).read_bytes()) | {
        "name": "mine", "generated": False, "tokens": len(tokens) // 2,
        "token_sha256": hashlib.sha256(tokens).hexdigest(),
    }  # fmt: skip
    (folder / MANIFEST_FILE).write_text(json.dumps(manifest), encoding="utf-8")
    return folder


def _raising_config(scene: Scene) -> Sequence[str]:
    case = scene.folder / "llama2_7b"
    shutil.copytree(ROOT / "cases" / "llama2_7b", case, ignore=shutil.ignore_patterns("__pycache__"))
    (case / "config_CPUx1x1.py").write_text("raise RuntimeError('a config with a bug')\n", encoding="utf-8")
    return ["--case", str(case), "--config", "CPUx1x1"]


def _unwritable(scene: Scene) -> Sequence[str]:
    # Not by a file mode, which does not hold for root.
    (scene.folder / "file").write_text("", encoding="utf-8")
    return ["--out", str(scene.folder / "file" / "runs")]


@cache
def _no_mount() -> str | None:
    try:
        done = subprocess.run(
            ["unshare", "-rm", "mount", "-t", "tmpfs", "t", "/mnt"], check=False, capture_output=True
        )
    except OSError:
        return "unshare is not installed"
    return None if done.returncode == 0 else "this user may not mount a small disk"


def _small_disk(scene: Scene, command: Sequence[str]) -> Sequence[str]:
    """A disk of its own that vanishes with the run, so the run's folder is copied out of it at the end."""
    disk = scene.folder / "disk"
    disk.mkdir()
    script = (
        'd="$1"; o="$2"; shift 2; mount -t tmpfs -o size="$SIZE" tmpfs "$d" || exit 99; mkdir "$d/runs"; "$@"; '
        'code=$?; cp -r "$d/runs" "$o"; exit $code'
    )
    inside = [word if word != str(scene.out) else str(disk / "runs") for word in command]
    size = f"SIZE={DISK_BYTES}"
    return ["env", size, "unshare", "-rm", "sh", "-c", script, "sh", str(disk), str(scene.out), *inside]


def _torchrun(_: Scene, command: Sequence[str]) -> Sequence[str]:
    """Every process is a rank then, and no launcher of ours watches."""
    python, _dash, module, *words = command
    agent = ["-m", "torch.distributed.run", "--standalone", "--local-addr", "127.0.0.1", "--nproc-per-node", "2"]
    return [python, *agent, "-m", "--", module, *words]


def _measured_all(_: Scene, record: Record) -> list[str]:
    return [] if record.throughput is not None else ["what was measured is lost"]


def _four_epochs(_: Scene, record: Record) -> list[str]:
    return [] if record.epochs == 4 else [f"{record.epochs} epochs"]


def _names_straggler(_: Scene, record: Record) -> list[str]:
    named = [warning for warning in record.warnings if warning.startswith("straggler: rank 1 waits")]
    return [] if named else [f"warnings {record.warnings}"]


def _in_order(scene: Scene, record: Record) -> list[str]:
    """Durations are by a monotonic clock, and so is the order of events."""
    wrong = [] if (record.duration_s or 1e9) < 80 else [f"lasted {record.duration_s} s"]
    for file in scene.out.glob("*/events/*.jsonl"):
        times = [json.loads(line)["time_unix_s"] for line in file.read_text(encoding="utf-8").splitlines()]
        wrong += [] if times == sorted(times) else [f"{file.name} is out of order"]
    return wrong


FAULTS: tuple[Fault, ...] = (
    Fault("rank_killed", "kill forward 1 4", reason=r"^rank 1 after step 3 .*SIGKILL", steps=3),
    Fault("agent_killed", "kill_agent forward 1 4", reason=r"^rank 0, 1 after step 3 .*agent.*signal 9", steps=3),
    Fault("launcher_killed", "kill_launcher forward 0 4", reason=r"^rank 0, 1 after step 3 .*launcher", steps=3,
          rebuilt=True),
    Fault("oom_on_one_rank", "device_oom forward 1 4", status="oom", steps=3,
          reason=r"^rank 1 in step 4: .*memory"),
    Fault("out_of_host_memory", "host_oom forward 1 4", status="oom", reason=r"^rank 1 in step 4: MemoryError",
          steps=3),
    Fault("nan_loss", "nan forward 1 4", status="nan", reason=r"^rank \d in step 4: loss is nan", steps=3),
    Fault("inf_loss", "inf forward 1 4", status="nan", reason=r"^rank \d in step 4: loss is (inf|nan)", steps=3),
    Fault("inf_gradient", "inf_gradient forward 1 4", status="nan", steps=4,
          reason=r"^rank \d in step 4: loss is \d\S* and gradient norm (inf|nan) \(fix: "),
    Fault("raise", "raise optimizer 1 4", reason=r"^rank 1 in step 4: ValueError: the plugin has a bug$", steps=3),
    Fault("hang_before_collective", "sleep forward 1 4", status="hang", stacks=2, steps=3, sets=HANGS,
          reason=r"^rank 1 after step 3 is in .*saboteur.*; rank 0 waits in .*measure.timeout_s"),
    Fault("hang_inside_collective", "receive forward 1 4", status="hang", stacks=2, steps=3, sets=HANGS,
          reason=r"^rank 0 after step 3 waits in .*rank 1 after step 3 waits in recv.*measure.timeout_s"),
    Fault("hang_after_collective", "sleep optimizer 1 4", status="hang", stacks=2, steps=3, sets=HANGS,
          reason=r"^rank 1 after step 3 is in .*saboteur.*; rank 0 waits in .*measure.timeout_s"),
    Fault("hang_after_window", "sleep memory 1 0", status="hang", steps=8, sets=HANGS, check=_measured_all,
          reason=r"^rank 1 after step 8 is in .*saboteur.*measure.timeout_s"),
    Fault("rank_stopped", "stop forward 1 4", status="hang", stacks=1, steps=3, sets=HANGS,
          reason=r"^rank 1 after step 3 is stopped by a signal; rank 0 waits in .*measure.timeout_s"),
    Fault("rank_late", "late init 1 0", status="ok", exit_code=0, steps=8),
    Fault("rank_never_starts", "sleep init 1 0", status="hang", stacks=2, sets=("measure.start_timeout_s=12",),
          reason=r"^rank 1 in phase device is in .*saboteur.*; rank 0 waits in .*measure.start_timeout_s"),
    Fault("ctrl_c", "interrupt forward 0 4", status="interrupted", exit_code=130, steps=3,
          reason="^interrupted after step 3"),
    Fault("ctrl_c_twice", "interrupt_twice forward 0 4", status="interrupted", exit_code=130, steps=3,
          reason="^interrupted after step 3"),
    Fault("sigterm", "terminate forward 0 4", status="interrupted", exit_code=130, steps=3,
          reason="^interrupted after step 3"),
    Fault("file_size_limit", "no_more_files forward 1 4", steps=3,
          reason="^rank 1 after step 3 could not write to the run folder"),
    Fault("disk_full", status="crashed", sets=LONG, steps=10, wrap=_small_disk, unless=_no_mount,
          reason="^rank .* after step .*(could not write to the run folder|disk of the run folder is full)"),
    Fault("read_only_run_folder", status=None, exit_code=2, prepare=_unwritable, engines=BEFORE_ANY_ENGINE,
          reason="cannot create the folder .*: Not a directory"),
    Fault("config_raises", status=None, exit_code=2, prepare=_raising_config, engines=BEFORE_ANY_ENGINE,
          reason="config_CPUx1x1.py cannot be imported: RuntimeError: a config with a bug"),
    Fault("corrupt_tokens", prepare=_corrupt_data,
          reason=r"^rank 0 before the first step: .*tokens.bin is corrupt"),
    Fault("short_data", status="ok", exit_code=0, steps=8, prepare=_short_data, check=_four_epochs,
          sets=("measure.steps=30", "local_batch_size=4", "gradient_accumulation_steps=1")),
    Fault("clock_jumps", "jump forward 1 4", status="ok", exit_code=0, steps=8, check=_in_order),
    Fault("slow_data_on_one_rank", "slow_data - 1 0", status="ok", exit_code=0, steps=8, check=_names_straggler),
    Fault("torchrun_rank_killed", "kill forward 1 4", reason=r"^rank 1 after step 3 ended without a word", steps=3,
          wrap=_torchrun),
    Fault("torchrun_agent_killed", "kill_agent forward 1 4", exit_code=-9, steps=3, wrap=_torchrun,
          reason=r"^rank [01] in step 4: the process that started it .* is gone$"),
    Fault("torchrun_raise", "raise optimizer 1 4", steps=3, wrap=_torchrun,
          reason=r"^rank 1 in step 4: ValueError: the plugin has a bug$"),
    Fault("torchrun_hang", "sleep forward 0 4", status="hang", steps=3, sets=HANGS, stacks=2, wrap=_torchrun,
          reason=r"^rank 0 after step 3 is in .*saboteur.*; rank 1 waits in .*measure.timeout_s"),
    Fault("torchrun_rank_never_starts", "sleep init 1 0", status="hang", stacks=2, wrap=_torchrun,
          sets=("measure.start_timeout_s=12",),
          reason=r"^rank 1 in phase device is in .*saboteur.*; rank 0 waits in .*measure.start_timeout_s"),
    Fault("torchrun_terminated", "terminate_agent forward 0 4", status="interrupted", exit_code=None, steps=3,
          wrap=_torchrun, reason=r"^rank [01] in step 4: ended by SIGTERM"),
    Fault("torchrun_ctrl_c", "interrupt_agent forward 0 4", status="interrupted", exit_code=None, steps=3,
          wrap=_torchrun, reason=r"^rank [01] in step 4: (interrupted \(KeyboardInterrupt\)|ended by SIGINT)"),
)  # fmt: skip
