from __future__ import annotations

import re
from collections.abc import Callable

import pytest

from core.errors import UsageError
from core.report.measured import measured_report
from core.report.render import render_report
from schemas.chip import ChipSpec
from schemas.plan import Plan
from schemas.record import Mfu, Record
from schemas.report import Language, PerformanceTable, has_chinese

MakePlan = Callable[..., Plan]
MakeRecord = Callable[..., Record]


def sheet(*records: Record, language: Language = "zh") -> str:
    return render_report(measured_report(records), {record.id: record for record in records}, language)


def row_of(text: str, run: str) -> list[str]:
    """The cells of the run's row in the performance table."""
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines() if line.startswith("|")]
    return next(row for row in rows if len(row) == 11 and row[1] == run)


@pytest.fixture
def base(make_record: MakeRecord) -> Record:
    return make_record()


@pytest.fixture
def tuned(make_plan: MakePlan, make_record: MakeRecord) -> Record:
    changes = {"zero_stage": 3, "gradient_accumulation_steps": 8}
    plan = make_plan(
        {**changes, "compile": True, "attention": "flex", "optimizer_state": "8bit", "offload": "optimizer"},
        run="tuned", fix_hp=changes, remark="GBS=262144 tokens", engine="deepspeed", global_batch_size=64,
    )  # fmt: skip
    return make_record(plan, weights="pretrained", data="openwebtext")


def test_the_layout_is_that_of_the_published_sheets(base: Record) -> None:
    lines = sheet(base).splitlines()
    titles = [line for line in lines if line.startswith(("#", "- #", "* "))]
    assert titles == [
        "### acme X1x1x4 配置与运行信息参考", "#### 环境配置", "- ##### 硬件环境", "- ##### 软件环境",
        "- ##### 并行策略", "- ##### 优化策略", "### 运行情况", "* 输入批尺寸",
        "* 通用指标", "* 性能指标", "* 测量细节",
    ]  # fmt: skip


def test_one_row_a_record_with_the_difference_as_fix_hp(base: Record, tuned: Record) -> None:
    text = sheet(base, tuned, language="en")
    config, stamp = "X1, 1 node, 4 chips (1x4)", "7.31 (random weights, generated data)"
    assert row_of(text, "base") == [
        config, "base", "bf16", "TP1PP1DP4", "/", "12432", stamp, "68.2/79.7", "52.8%", "59.1%", "ok",
    ]  # fmt: skip
    assert row_of(text, "tuned")[4:7] == ["zero_stage=3, GAS=8(GBS=262144 tokens)", "12432", "7.31"]


def test_a_remark_is_left_out_where_set_may_have_made_it_untrue(
    make_plan: MakePlan, make_record: MakeRecord
) -> None:
    plan = make_plan(run="r", fix_hp={"gradient_accumulation_steps": 2}, remark="GBS=1 (2)", official=False)
    assert row_of(sheet(make_record(plan)), "r")[4] == "GAS=2"
    assert row_of(sheet(make_record(plan, official=True)), "r")[4] == "GAS=2(GBS=1 [2])"


def test_failed_and_unofficial_runs_show_why(base: Record, make_plan: MakePlan, make_record: MakeRecord) -> None:
    lost = make_record(make_plan(run="lost"), status="crashed", reason="rank 1 | exit\ncode *9*")
    small = make_record(
        make_plan(run="small", scaled_down=True, official=False),
        unofficial_reason="--set changed model.num_layers",
        emulated=True,
    )
    lines = sheet(base, lost, small, language="en").splitlines()
    failed = next(line for line in lines if line.startswith("|") and " lost " in line)
    assert re.search(r"\| / +\| crashed( +\| /){4} +\| crashed +\|$", failed)
    assert r"    - Failed: crashed: rank 1 \| exit code \*9\*" in lines
    marked = row_of("\n".join(lines), "small")
    assert marked[-1] == "ok (scaled-down model, emulated device, unofficial, not ranked)"
    assert "    - Unofficial because: --set changed model.num_layers" in lines


def test_strategies_are_said_from_the_plans(base: Record, tuned: Record) -> None:
    text = sheet(base, tuned, language="en")
    for line in (
        "Technique: data parallel (base); sharded data parallel (tuned)",
        "Implemented by: torch (base); deepspeed (tuned)",
        "Details: ZeRO stage 0, DP_SIZE=4 (base); ZeRO stage 3, DP_SIZE=4 (tuned)",
        "Attention: scaled dot product attention (base); FlexAttention (tuned)",
        "torch.compile: off (base); on (tuned)",
        "Optimizer state: fp32 (base); 8 bit, kept in host memory (tuned)",
        "Precision: bf16",
    ):
        assert f"  - {line}\n" in text


def test_mixed_parallelism_names_every_size(make_plan: MakePlan, make_record: MakeRecord) -> None:
    plan = make_plan({"precision": "amp"}, topology="X1x4x8", parallel="TP4PP4DP2")
    english, chinese = (sheet(make_record(plan), language=language) for language in ("en", "zh"))
    assert "Technique: tensor, pipeline and data parallel" in english
    assert "Details: ZeRO stage 0, TP_SIZE=4, PP_SIZE=4, DP_SIZE=2" in english
    more = {"sequence_parallel": True, "virtual_pipeline_stages": 2, "pipeline_layers": "1-2-3-4-4-3-2-1"}
    split = make_plan({"precision": "amp", **more}, topology="X1x4x8", parallel="TP4PP4DP2")
    details = "TP_SIZE=4, sequence parallel, PP_SIZE=4, VPP_SIZE=2, layers 1-2-3-4-4-3-2-1, DP_SIZE=2"
    assert f"Details: ZeRO stage 0, {details}" in sheet(make_record(split), language="en")
    assert "Precision: amp (autocast to bf16)" in english
    assert "并行技术：张量、流水、数据混合并行" in chinese
    alone = make_plan(topology="X1x1x1", parallel="TP1PP1DP1")
    assert "并行技术：无" in sheet(make_record(alone))


def test_batch_values_say_which_layer_set_them(base: Record, tuned: Record) -> None:
    text = sheet(tuned, base)
    assert (
        "local_batch_size，简写为LBS，即实际进入模型的张量批尺寸，为config_X1x1x4.py中所写，在本case中默认为2"
        in text
    )
    assert (
        "sequence_length，简写为MPE，即实际进入模型的序列长度，为case toy_7b中所写，在本case中默认为4096" in text
    )
    assert "梯度累加步数，为AccelMark默认值中所写，在本case中默认为1\n" in text
    assert "简写为GBS，为64（tuned）；8（base）" in text


def test_details_hold_what_the_table_has_no_room_for(base: Record) -> None:
    text = sheet(base, language="en")
    for line in (
        "Record: X1x1x4_base",
        "Measured window: 31.24 s, 48 steps, after 5 warm-up steps that do not count",
        "Step time: median 0.6502 s, p5 0.6498 s, p95 0.6604 s",
        "HFU, MFU(causal): 55.4%, 55.4%",
        "Peak and source: 989 TFLOP/s bf16; datasheet 1.2",
        "Memory peaks: allocated 61.03 GiB, reserved 66.5 GiB, whole device 68.21 GiB",
        "Power per chip: mean 612.4 W, largest 689 W",
        "Energy per token: 0.04926 J/token",
    ):
        assert f"    - {line}\n" in text


def test_the_time_until_the_window_is_told_by_part(base: Record) -> None:
    record = base.model_copy(update={"startup_seconds": {"launch": 1.25, "first_step": 20.0}})
    assert "启动至测量窗口：21.2 s: 启动进程 1.2 s, 首步（含编译） 20.0 s" in sheet(record)
    assert "From the command to the window: 21.2 s: launch 1.2 s, first step" in sheet(record, language="en")
    assert "启动至测量窗口" not in sheet(base)


def test_a_run_that_went_on_from_a_checkpoint_says_so(base: Record) -> None:
    went_on = base.model_copy(update={"loss": base.loss.model_copy(update={"first_step": 46})})
    assert "    - 续训：从第 45 步的检查点继续训练\n" in sheet(went_on)
    assert "    - Continued: goes on from a checkpoint of step 45\n" in sheet(went_on, language="en")
    assert "续训" not in sheet(base)


def test_unknown_values_are_slashes_and_a_missing_mfu_has_its_reason(make_record: MakeRecord) -> None:
    text = sheet(make_record(telemetry={}, mfu=Mfu(missing="no bf16 peak")), language="en")
    assert "Power per chip: mean /, largest /" in text
    assert "Energy per token: /" in text
    assert "Why there is no MFU: no bf16 peak" in text
    assert row_of(text, "base")[8:10] == ["/", "/"]


def test_the_environment_is_merged_over_the_records(make_plan: MakePlan, make_record: MakeRecord) -> None:
    first = make_record(environment={"cpu": "A", "torch": "2.12", "device": "X1 80G"})
    second = make_record(make_plan(run="second"), environment={"cpu": "A", "torch": "2.13"})
    text = sheet(first, second, language="en")
    assert "  - CPU: A\n" in text
    assert "  - torch: 2.12, 2.13\n" in text
    assert "  - Accelerator: X1 80G\n" in text
    bare = sheet(make_record(environment={}, math_mode={}), language="en")
    assert "  - Accelerator: X1\n" in bare
    assert "  - not recorded\n" in bare


def test_english_holds_no_chinese(
    base: Record, tuned: Record, make_plan: MakePlan, make_record: MakeRecord
) -> None:
    failed = make_record(make_plan(run="f"), status="oom", reason="r", official=False, warnings=("careful",))
    assert not has_chinese(sheet(base, tuned, failed, language="en"))


def test_the_peak_source_of_a_chip_is_kept_safe(make_plan: MakePlan, make_record: MakeRecord) -> None:
    chip = ChipSpec(name="X1", vendor="acme", memory_gb=None, memory_source="s", peaks=())
    record = make_record(make_plan(chip=chip), mfu=Mfu(peak_tflops=1234.5, peak_source="a|b"))
    assert r"Peak and source: 1234 TFLOP/s; a\|b" in sheet(record, language="en")


def test_the_sheet_is_a_report_like_any_other(base: Record) -> None:
    report = measured_report([base])
    assert report.id == "measured_acme_X1x1x4"
    assert type(report).model_validate_json(report.model_dump_json()) == report
    assert sum(isinstance(block, PerformanceTable) for block in report.blocks) == 1


def test_what_cannot_be_one_sheet_is_refused(base: Record, make_record: MakeRecord) -> None:
    with pytest.raises(UsageError, match="without a record"):
        measured_report([])
    with pytest.raises(UsageError, match="differ in vendor: acme, other"):
        measured_report([base, make_record(vendor="other")])
    with pytest.raises(UsageError, match="has no plan"):
        measured_report([base.model_copy(update={"plan": None})])
