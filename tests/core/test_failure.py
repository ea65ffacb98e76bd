"""Statuses and reasons of errors: where a missing operator was needed, and what the device says of its memory."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")

from torch import nn

from core import failure
from core.errors import UsageError
from core.failure import Context
from core.loop import NonFiniteError
from schemas.chip import MemoryReading

NO_KERNEL = "Could not run 'aten::silu.out' with arguments from the 'musa' backend. This could be because ..."


class Fails(nn.Module):
    """Raises in its forward pass, once it is armed."""

    def __init__(self, error: Exception, after: int = 0) -> None:
        super().__init__()
        self.error, self.calls, self.after = error, 0, after

    def forward(self, x):
        self.calls += 1
        if self.calls > self.after:
            raise self.error
        return x * x


class FailsBackward(torch.autograd.Function):
    """As an operator whose backward has no kernel."""

    @staticmethod
    def forward(ctx, x):
        return x * 1

    @staticmethod
    def backward(ctx, gradient):
        raise NotImplementedError(NO_KERNEL)


class Layer(nn.Module):
    def __init__(self, part: nn.Module, *, checkpointed: bool) -> None:
        super().__init__()
        self.part, self.checkpointed = part, checkpointed

    def forward(self, x):
        if self.checkpointed:
            return torch.utils.checkpoint.checkpoint(self.part, x, use_reentrant=False)
        return self.part(x)


def model_with(part: nn.Module, *, checkpointed: bool = False) -> nn.Sequential:
    return nn.Sequential(nn.Linear(2, 2), Layer(part, checkpointed=checkpointed))


def context(*models: nn.Module) -> Context:
    """Of a rank that holds ``models``."""
    made = Context("acme")
    for model in models:
        made.add(model)
    return made


def caught(model: nn.Module) -> BaseException:
    with pytest.raises((RuntimeError, KeyError)) as error:
        model(torch.ones(1, 2)).sum().backward()
    return error.value


def test_a_missing_operator_is_told_with_vendor_operator_and_module():
    model = model_with(Fails(NotImplementedError(NO_KERNEL)))
    assert failure.classify(caught(model), context(model, nn.Linear(1, 1))) == (
        "crashed",
        f"vendor acme has no operator aten::silu.out, needed in module 1.part: NotImplementedError: {NO_KERNEL}",
    )


def test_so_is_one_that_a_checkpointed_block_misses_when_it_is_computed_again():
    model = model_with(Fails(NotImplementedError(NO_KERNEL), after=1), checkpointed=True)
    assert "needed in module 1.part:" in failure.classify(caught(model), context(model))[1]


def test_a_compiled_block_is_one_piece():
    @torch.library.custom_op("accelmark_test::lacking", mutates_args=())
    def lacking(x: torch.Tensor) -> torch.Tensor:
        raise NotImplementedError(NO_KERNEL)

    lacking.register_fake(torch.empty_like)

    class Calls(nn.Module):
        def forward(self, x):
            return lacking(x) + 1

    model = model_with(Calls())
    model[1].compile(backend="eager")
    assert "needed in module 1:" in failure.classify(caught(model), context(model))[1]


def test_of_a_backward_pass_only_that_can_be_told():
    class Backward(nn.Module):
        def forward(self, x):
            return FailsBackward.apply(x)

    model = model_with(Backward())
    assert "needed in the backward pass:" in failure.classify(caught(model), context(model))[1]


def test_outside_of_the_model_that_is_told():
    error = NotImplementedError("The operator 'aten::eye.m_out' is not currently implemented for the MUSA device")
    assert failure.classify(error, context())[1].startswith(
        "vendor acme has no operator aten::eye.m_out, needed in no module of the model: "
    )


def test_an_operator_that_torch_leaves_to_the_device_can_be_missing():
    error = NotImplementedError("convolution_overrideable not implemented. You are likely ...")
    assert failure.missing_operator(error) == "operator convolution_overrideable"


def test_an_operator_can_be_missing_for_a_type():
    with pytest.raises(NotImplementedError) as error:
        torch.ones(2, dtype=torch.float8_e4m3fn) + 1
    assert failure.missing_operator(error.value) == "operator add_stub for Float8_e4m3fn"


def test_other_errors_name_no_operator():
    model = model_with(Fails(KeyError("Could not run 'aten::x' with arguments from the")))
    assert failure.missing_operator(caught(model)) is None
    assert failure.classify(RuntimeError("shapes differ"), context()) == (
        "crashed",
        "RuntimeError: shapes differ",
    )


@pytest.mark.parametrize(
    ("error", "status", "reason"),
    [
        (MemoryError(), "oom", "MemoryError: "),
        (torch.OutOfMemoryError("MUSA out of memory.\nmore"), "oom", "OutOfMemoryError: MUSA out of memory."),
        (RuntimeError("[enforce fail] can't allocate memory"), "oom", "RuntimeError: [enforce fail] can't alloc"),
        (KeyboardInterrupt(), "interrupted", "interrupted (KeyboardInterrupt)"),
        (NonFiniteError(3, float("nan"), 1.0), "nan", "loss is nan and gradient norm 1"),
        (UsageError("no such folder", "name another"), "crashed", "no such folder (fix: name another)"),
        (ValueError("x" * 900), "crashed", "ValueError: " + "x" * 480),
    ],
)
def test_statuses(error, status, reason):
    told = failure.classify(error, context())
    assert told[0] == status
    assert told[1].startswith(reason)
    assert len(told[1]) <= failure.LONGEST_REASON
    assert told[1].endswith(" …") == (len(str(error)) > failure.LONGEST_REASON)


def test_the_device_s_numbers_are_told_as_far_as_it_has_them():
    reading = MemoryReading(
        peak_allocated_gib=1.0, peak_reserved_gib=2.5, peak_device_gib=None, capacity_gib=48.0, oom_count=1
    )
    assert failure.told(reading) == "peak GiB: allocated 1.00, reserved 2.50, of 48.00"
    assert failure.told(reading.model_copy(update={"capacity_gib": None})) == (
        "peak GiB: allocated 1.00, reserved 2.50"
    )


def test_memory_is_read_where_there_is_a_device_that_answers():
    def fails():
        raise RuntimeError("the device is gone")

    reading = MemoryReading(peak_allocated_gib=1, peak_reserved_gib=1, peak_device_gib=1, capacity_gib=2)
    answers = context()
    assert answers.memory() is None
    answers.read_memory = lambda: reading
    assert answers.memory() == reading
    answers.read_memory = fails
    assert answers.memory() is None


def test_no_model_is_kept_alive():
    held = context(nn.Linear(1, 1))
    assert held.models == []
