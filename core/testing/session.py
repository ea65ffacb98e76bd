"""``python -m core.testing.session FOLDER``: runs checks in a process that may crash or hang without harm."""

from __future__ import annotations

import importlib
import json
import os
import sys
import time
from collections.abc import Callable
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


def main(folder: Path) -> None:
    """Do this rank's checks, in order; one that needs what has failed here is left to the caller."""
    session = Session.model_validate_json((folder / SESSION_FILE).read_text(encoding="utf-8"))
    rank = int(os.environ.get("RANK", "0"))
    argument = _argument(session, folder, rank)
    verdicts: dict[str, Verdict] = {}
    with results_file(folder, rank).open("a", encoding="utf-8") as out:
        for check in map(check_called, session.checks):
            if blocker(check, verdicts):
                verdicts[check.id] = "not run"
                continue
            print(Outcome(check=check.id).model_dump_json(), file=out, flush=True)
            outcome = attempt(check, argument)
            assert outcome.verdict is not None
            verdicts[check.id] = outcome.verdict
            print(outcome.model_dump_json(), file=out, flush=True)
            print(f"{check.id}: {outcome.verdict} {outcome.reason or outcome.detail}", flush=True)
            if check.id == "init_device.takes_device" and outcome.verdict == "passed":
                _leave_facts(folder, argument)


def _argument(session: Session, folder: Path, rank: int) -> object:
    """What the checks of this place take."""
    if session.plan is None:
        return plugins.select(f"{session.vendor}@{session.distribution}")
    from core import defaults
    from core.testing.training_checks import write_weights

    scene = DeviceScene(
        plugins.load_in_worker(session.vendor, session.distribution, defaults), session.plan, local_rank=rank
    )
    if session.ranks > 1:
        import torch.distributed as dist

        from core.process_group import join

        store = dist.FileStore(str(folder / MEETING_FILE), session.ranks)  # type: ignore[attr-defined]
        join(scene.device, PATIENCE, store, rank, session.ranks)
    elif session.plan.hyper_parameters.precision == "fp32":
        write_weights(folder.parent / "weights", session.plan)
    return scene


def _leave_facts(folder: Path, scene: object) -> None:
    """The device's name, and whether it is an emulated one, for the report."""
    assert isinstance(scene, DeviceScene)
    facts = {"device": scene.device.name, "emulated": scene.device.emulated}
    (folder.parent / FACTS_FILE).write_text(json.dumps(facts), encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
    sys.stdout.flush()
    os._exit(0)  # as workers leave: native threads have been seen to abort an orderly shutdown
