"""Where reference curves are found, and what a run must have to become one."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from pydantic import ValidationError

from core.align.references import find_reference, make_reference, write_reference
from core.errors import UsageError
from core.report.load import load_references
from schemas.record import Loss, Record
from schemas.reference import ReferenceCurve
from tests.core.align.conftest import LOSSES, NORMS, STEPS

MakeRecord = Callable[..., Record]
KEPT = sorted((Path(__file__).parents[3] / "cases").glob("*/references/*.json"))


def test_a_reference_lives_with_its_case(
    make_record: MakeRecord, reference: ReferenceCurve, tmp_path: Path
) -> None:
    file = write_reference(reference, make_record())
    assert file == tmp_path / "toy" / "references" / "curve.json"
    assert find_reference("curve", make_record()) == reference
    assert find_reference(str(file), make_record()) == reference
    assert load_references(file.parent) == (reference,)


def test_a_record_of_another_machine_finds_the_case_by_name(make_record: MakeRecord) -> None:
    plan = make_record().plan
    assert plan is not None
    moved = plan.model_copy(update={"case_location": "/no/such/folder"})
    record = make_record(moved, case="llama2_7b")
    assert find_reference("cpu_fp32", record).plan.case == "llama2_7b"


def test_an_unknown_name_lists_the_known_ones(make_record: MakeRecord, reference: ReferenceCurve) -> None:
    with pytest.raises(UsageError, match="it has none"):
        find_reference("curve", make_record())
    write_reference(reference, make_record())
    with pytest.raises(UsageError, match="is called 'curvy'") as error:
        find_reference("curvy", make_record())
    assert error.value.fix == "give a file, or one of the case's references: curve"


def test_a_file_that_is_no_reference(make_record: MakeRecord, reference: ReferenceCurve, tmp_path: Path) -> None:
    file = tmp_path / "curve.json"
    file.write_text(reference.model_dump_json().replace('"losses"', '"loses"'), encoding="utf-8")
    with pytest.raises(UsageError, match="losses: this field is missing"):
        find_reference(str(file), make_record())
    file.write_text(reference.model_copy(update={"id": "other"}).model_dump_json(), encoding="utf-8")
    with pytest.raises(UsageError, match="id: 'other' differs from the file's name"):
        find_reference(str(file), make_record())


def test_a_reference_is_not_overwritten(make_record: MakeRecord, reference: ReferenceCurve) -> None:
    write_reference(reference, make_record())
    with pytest.raises(UsageError, match="is there already") as error:
        write_reference(reference, make_record())
    assert error.value.fix == "choose another name, or remove it first"


def test_a_folder_that_cannot_be_written(
    make_record: MakeRecord, reference: ReferenceCurve, tmp_path: Path
) -> None:
    (tmp_path / "toy" / "references").write_text("a file", encoding="utf-8")
    with pytest.raises(UsageError, match="cannot be written"):
        write_reference(reference, make_record())


def test_it_keeps_the_planned_steps_and_what_must_be_shared(make_record: MakeRecord) -> None:
    record = make_record(
        None, (*LOSSES, 1.0), (*NORMS, 1.0), environment={"torch": "2"}, math_mode={"tf32": "off"}
    )
    made = make_reference(record, "curve")
    assert (made.losses, made.gradient_norms, made.steps) == (LOSSES, NORMS, STEPS)
    assert (made.data_manifest_sha256, made.weights_sha256) == (record.data_manifest_sha256, record.weights_sha256)
    assert (made.plan, made.record) == (record.plan, record.id)
    assert (made.environment, made.math_mode) == (record.environment, record.math_mode)


@pytest.mark.parametrize(
    ("losses", "changes", "reason"),
    [
        (LOSSES[:39], {}, "a reference of 39 steps is too short"),
        ((5.0,) * STEPS, {}, "falls by 0.0% only is flat"),
        ((*LOSSES[:9], 0.0, *LOSSES[10:]), {}, "step 10 of a reference has no loss"),
        (LOSSES, {"status": "crashed", "reason": "lost"}, "the run ended with status crashed"),
        (
            LOSSES,
            {"loss": Loss(curve=LOSSES, grad_norm_curve=NORMS, first_step=6)},
            "begin with step 6, after a ch",
        ),
        (LOSSES, {"weights_sha256": None}, "does not tell its data and initial weights"),
        (LOSSES, {"plan": None}, "holds no curves"),
    ],
)
def test_not_every_run_is_fit(
    losses: tuple[float, ...], changes: dict[str, object], reason: str, make_record: MakeRecord
) -> None:
    with pytest.raises(UsageError, match=reason) as error:
        make_reference(make_record(None, losses, NORMS[: len(losses)], **changes), "curve")
    assert error.value.what.startswith("toy-run cannot be made a reference: ")


def test_a_name_that_is_no_file_name(make_record: MakeRecord) -> None:
    with pytest.raises(UsageError, match=r"reference '\.\./curve' of toy-run: id: "):
        make_reference(make_record(), "../curve")


def test_both_curves_have_all_steps(reference: ReferenceCurve) -> None:
    values = reference.model_dump() | {"gradient_norms": NORMS[:-1]}
    with pytest.raises(ValidationError, match="60 losses and 59 gradient norms"):
        ReferenceCurve.model_validate(values)


def test_the_hash_is_of_the_curves_data_and_weights(reference: ReferenceCurve) -> None:
    for changes in ({"losses": LOSSES[::-1]}, {"data_manifest_sha256": "99" * 32}, {"weights_sha256": "99" * 32}):
        assert reference.model_copy(update=changes).sha256() != reference.sha256()
    assert reference.model_copy(update={"environment": {"torch": "3"}}).sha256() == reference.sha256()


@pytest.mark.parametrize("file", KEPT, ids=lambda file: f"{file.parent.parent.name}-{file.stem}")
def test_the_references_in_the_repository_are_what_their_config_says(file: Path) -> None:
    (kept,) = (one for one in load_references(file.parent) if one.id == file.stem)
    assert kept.plan.case == file.parent.parent.name
    # Unless it is that the run was too short to tell a speed, which a curve does not.
    assert kept.plan.official or str(kept.plan.unofficial_reason).startswith("a window of ")
    # The plainest kernels: where SDPA computes in fp32, it has no reduced precision to hide.
    assert kept.plan.engine == "torch"
    assert kept.plan.hyper_parameters.attention in ("eager", "sdpa")
    assert not kept.plan.hyper_parameters.compile
    assert kept.plan.compute_precision == "fp32"
    assert kept.steps == 60
