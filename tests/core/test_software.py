"""Versions of vendors' software: too old, known to fail, known to work, never heard of."""

from __future__ import annotations

import warnings

import pytest

from core.errors import DeviceError
from core.notices import RecordWarning
from core.software import KnownVersions, installed_version, numbers

KNOWN = KnownVersions(
    software="torch_acme",
    lowest="2.7",
    needed_for="is the first for torch 2.6",
    working=("2.7", "2.11"),
    broken={"2.7.3": "its collectives hang"},
)


@pytest.mark.parametrize(
    ("version", "release"),
    [
        ("2.7.1", (2, 7, 1)),
        ("v2.7.1rc2", (2, 7, 1)),
        ("1.29.2+torch2.7.1", (1, 29, 2)),
        ("2.7.0+git8614ba1", (2, 7, 0)),
        ("nightly", ()),
    ],
)
def test_the_release_of_a_version(version: str, release: tuple[int, ...]) -> None:
    assert numbers(version) == release


@pytest.mark.parametrize("version", ["2.7", "2.7.1", "2.11.0+build5"])
def test_a_series_that_works_is_passed_in_silence(version: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        KNOWN.check(version)


@pytest.mark.parametrize("version", ["2.6.9", "1.3"])
def test_a_version_that_is_too_old_is_refused_with_the_reason(version: str) -> None:
    with pytest.raises(DeviceError) as error:
        KNOWN.check(version)
    assert error.value.what == f"torch_acme {version} is older than 2.7, which is the first for torch 2.6"
    assert error.value.fix == "install one of the series 2.7, 2.11"


def test_a_version_that_is_known_to_fail_is_refused_with_the_reason() -> None:
    with pytest.raises(DeviceError, match=r"torch_acme 2\.7\.3\.1 does not work here: its collectives hang"):
        KNOWN.check("2.7.3.1")


@pytest.mark.parametrize("version", ["2.9.0", "2.70.0", "3"])
def test_a_version_that_nobody_has_tried_runs_and_the_record_says_so(version: str) -> None:
    with pytest.warns(RecordWarning, match=rf"{version}: nobody has reported .* \(known: 2\.7, 2\.11\)"):
        KNOWN.check(version)


def test_the_version_of_the_first_name_that_is_installed() -> None:
    import pydantic

    assert installed_version("no-such-thing", "pydantic") == pydantic.VERSION
    assert installed_version("no-such-thing") is None
