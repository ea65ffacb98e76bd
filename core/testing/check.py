"""What a check is, and how it ends other than well."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Literal

from core.errors import DeviceError

if TYPE_CHECKING:
    import torch

    from core.plugins import Vendor
    from schemas.chip import Device
    from schemas.plan import Plan

Place = Literal["launcher", "fp32", "tf32", "amp", "tuned", "ranks", "run"]
"""``launcher``: a process without torch. ``fp32``, ``tf32``, ``amp``: one worker with a plan of that precision.
``tuned``: one with that of a tuned run, where such runs compile. ``ranks``: two workers. ``run``: whole runs,
launched as a user's are."""


@dataclass(frozen=True)
class Check:
    """One promise that a plugin has to keep."""

    id: str
    hook: str
    place: Place
    proves: str
    call: str
    """``module:function``. It takes the ``Vendor`` (launcher), a ``DeviceScene`` (workers) or ``Runs`` (run), and
    returns what it measured, in a few words, or raises what is below."""
    needs: tuple[str, ...] = ()
    """Checks without which this one would prove nothing, or blame the wrong hook."""
    if_declared: bool = False
    """Whether there is nothing to check where the plugin leaves the hook out."""


class CheckEndedError(Exception):
    """A check did not pass; the text says why in one line."""


class FailedError(CheckEndedError):
    """The promise is not kept."""


class NotRunError(CheckEndedError):
    """This machine, or what is installed, does not let it be checked."""


class NotDeclaredError(CheckEndedError):
    """The plugin says that it makes no such promise."""


class DeviceScene:
    """One worker: the vendor, a plan, and the device that ``init_device`` sets up when it is first asked for."""

    def __init__(self, vendor: Vendor, plan: Plan, local_rank: int) -> None:
        self.vendor, self.plan, self.local_rank = vendor, plan, local_rank

    @cached_property
    def device(self) -> Device:
        """NotRunError where the device does not have the plan's precision; every device has fp32."""
        precision = self.plan.hyper_parameters.precision
        try:
            return self.vendor.init_device(self.plan, self.local_rank)
        except DeviceError as error:
            if precision == "fp32":
                raise
            raise NotRunError(f"init_device refuses {precision}: {error.what}") from error

    def prepare(self, plan: Plan) -> None:
        """Call ``prepare_engine`` for another plan on the device; NotRunError where it refuses that."""
        try:
            self.vendor.prepare_engine(plan, self.device)
        except DeviceError as error:
            raise NotRunError(f"prepare_engine refuses this: {error.what}") from error

    @property
    def torch_device(self) -> torch.device:
        """As torch has it."""
        import torch

        return torch.device(self.device.torch_device)
