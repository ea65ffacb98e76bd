"""``python -m core.testing.session FOLDER``: runs checks in a process that may crash or hang without harm."""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import sys
import time
from collections.abc import Callable, Iterable
from datetime import timedelta
from pathlib import Path
from typing import Any

from core import plugins
from core.errors import AccelMarkError
from core.testing.catalog import check_called
from core.testing.check import Check, DeviceScene, FailedError, NotDeclaredError, NotRunError
from schemas.base import Schema
from schemas.conformance import Verdict
from schemas.plan import Plan

SESSION_FILE = "session.json"
MEETING_FILE = "meeting"
FACTS_FILE = "facts.json"
PATIENCE = timedelta(seconds=120)


class Session(Schema):
    """What one process (or each of several ranks) is to check."""

    vendor: str
    distribution: str
    checks: tuple[str, ...]
    plan: Plan | None
    """None on the launcher's side."""
    ranks: int = 1


class Outcome(Schema):
    """How one check ended; ``verdict`` None says that it has begun."""

    check: str
    verdict: Verdict | None = None
    reason: str | None = None
    detail: str | None = None
    duration_s: float | None = None


def results_file(folder: Path, rank: int) -> Path:
    """Where a rank appends its outcomes, one JSON line each."""
    return folder / f"results{rank}.jsonl"


def attempt(check: Check, argument: Any) -> Outcome:
    """Call the check; whatever it raises becomes its outcome."""
    began = time.perf_counter()
    verdict: Verdict = "passed"
    reason = detail = None
    try:
        detail = function(check)(argument)
    except NotRunError as error:
        verdict, reason = "not run", str(error)
    except NotDeclaredError as error:
        verdict, reason = "not declared", str(error)
    except FailedError as error:
        verdict, reason = "failed", str(error)
    except (Exception, SystemExit) as error:  # a plugin may do anything
        text = error.what if isinstance(error, AccelMarkError) else f"{type(error).__name__}: {error}"
        verdict, reason = "failed", " ".join(text.split())[:500]
    duration_s = time.perf_counter() - began
    return Outcome(check=check.id, verdict=verdict, reason=reason, detail=detail, duration_s=duration_s)


def function(check: Check) -> Callable[[Any], str]:
    """What the check calls."""
    module, _, name = check.call.partition(":")
    called: Callable[[Any], str] = getattr(importlib.import_module(module), name)
    return called


def blocker(check: Check, verdicts: dict[str, Verdict]) -> str | None:
    """Which of the check's needs does not hold; a hook that is left out is core's own, which does."""
    return next((need for need in check.needs if verdicts.get(need) in ("failed", "not run")), None)


def run_in_order(checks: Iterable[Check], argument: Any, tell: Callable[[Outcome], None]) -> None:
    """Attempt each check that no earlier one blocks; ``tell`` hears when it begins and how it ends."""
    verdicts: dict[str, Verdict] = {}
    for check in checks:
        if blocker(check, verdicts):
            verdicts[check.id] = "not run"
            continue
        tell(Outcome(check=check.id))
        outcome = attempt(check, argument)
        assert outcome.verdict is not None
        verdicts[check.id] = outcome.verdict
        tell(outcome)


def main(folder: Path) -> None:
    """Do this rank's checks."""
    session = Session.model_validate_json((folder / SESSION_FILE).read_text(encoding="utf-8"))
    rank = int(os.environ.get("RANK", "0"))
    argument = _argument(session, folder, rank)
    with results_file(folder, rank).open("a", encoding="utf-8") as out:

        def tell(outcome: Outcome) -> None:
            print(outcome.model_dump_json(), file=out, flush=True)
            print(f"{outcome.check}: {outcome.verdict or 'begins'} {outcome.reason or ''}", flush=True)

        run_in_order(map(check_called, session.checks), argument, tell)
    if isinstance(argument, DeviceScene) and session.ranks == 1:
        _leave_facts(folder, argument)


def _argument(session: Session, folder: Path, rank: int) -> object:
    """What the checks of this place take."""
    if session.plan is None:
        return plugins.load_alone(session.vendor, session.distribution)
    from core import defaults
    from core.testing.training_checks import write_weights

    scene = DeviceScene(
        plugins.load_alone(session.vendor, session.distribution, defaults), session.plan, local_rank=rank
    )
    if session.ranks > 1:
        import torch.distributed as dist

        from core.process_group import join

        store = dist.FileStore(str(folder / MEETING_FILE), session.ranks)  # type: ignore[attr-defined]
        join(scene.device, PATIENCE, store, rank, session.ranks)
    elif session.plan.hyper_parameters.precision == "fp32":
        write_weights(folder.parent / "weights", session.plan)
    return scene


def _leave_facts(folder: Path, scene: DeviceScene) -> None:
    """What the report says of the device and its software; nothing where it was not taken."""
    with contextlib.suppress(Exception):
        described = scene.vendor.describe_environment(scene.device)
        facts = {"device": scene.device.name, "emulated": scene.device.emulated, "environment": described}
        (folder.parent / FACTS_FILE).write_text(json.dumps(facts), encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
    sys.stdout.flush()
    os._exit(0)  # as workers leave: native threads have been seen to abort an orderly shutdown
