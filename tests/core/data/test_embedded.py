"""The generated data and its cache."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

pytest.importorskip("numpy")
pytest.importorskip("sentencepiece")

from core.data import embedded
from core.data.embedded import cache_dir, embedded_data
from core.data.manifest import TOKEN_FILE, Manifest
from core.data.prepare import prepare
from core.errors import UsageError

SMALL: dict[str, Any] = {"seed": 0, "sequences": 512, "sequence_length": 128, "model_vocab_size": 32000}


def test_holds_what_a_run_needs(tmp_path: Path) -> None:
    folder = embedded_data(tmp_path, **SMALL)
    manifest = Manifest.read(folder)
    manifest.verify(folder)
    assert (manifest.name, manifest.generated, manifest.vocab_size) == ("generated", True, 512)
    assert (manifest.bos_id, manifest.eos_id) == (1, 2)
    assert {path.name for path in folder.iterdir()} == {
        "corpus.jsonl",
        "manifest.json",
        "tokenizer.model",
        "tokenizer_config.json",
        "tokens.bin",
    }
    assert list(tmp_path.iterdir()) == [folder]


def test_is_what_prepare_makes_of_the_corpus(tmp_path: Path) -> None:
    folder = embedded_data(tmp_path, **SMALL)
    again = prepare([folder / "corpus.jsonl"], folder, tmp_path / "out", name="again", add_bos=True, add_eos=True)
    assert again.token_sha256 == Manifest.read(folder).token_sha256


def test_is_built_once_and_fast(tmp_path: Path) -> None:
    start = time.monotonic()
    folder = embedded_data(tmp_path, **SMALL)
    assert time.monotonic() - start < 3
    written = (folder / TOKEN_FILE).stat().st_mtime_ns
    assert embedded_data(tmp_path, **SMALL) == folder
    assert (folder / TOKEN_FILE).stat().st_mtime_ns == written


def test_another_cache_gets_the_same_bytes(tmp_path: Path) -> None:
    first, second = (embedded_data(tmp_path / name, **SMALL) for name in "ab")
    assert first.name == second.name
    assert Manifest.read(first).sha256() == Manifest.read(second).sha256()


@pytest.mark.parametrize("change", [{"seed": 1}, {"sequences": 1024}, {"model_vocab_size": 400}])
def test_other_parameters_are_another_data_set(tmp_path: Path, change: dict[str, int]) -> None:
    first, second = embedded_data(tmp_path, **SMALL), embedded_data(tmp_path, **{**SMALL, **change})
    assert first != second
    assert Manifest.read(first).token_sha256 != Manifest.read(second).token_sha256


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    seed=st.integers(0, 2**63),
    sequences=st.integers(1, 2000),
    sequence_length=st.integers(1, 300),
    model_vocab_size=st.integers(320, 600),
)
def test_always_enough_tokens(
    tmp_path: Path, seed: int, sequences: int, sequence_length: int, model_vocab_size: int
) -> None:
    folder = embedded_data(
        tmp_path,
        seed=seed,
        sequences=sequences,
        sequence_length=sequence_length,
        model_vocab_size=model_vocab_size,
    )
    manifest = Manifest.read(folder)
    assert manifest.tokens >= sequences * sequence_length + 1
    assert manifest.vocab_size == min(512, model_vocab_size)


def test_race_has_one_winner_and_no_loser(tmp_path: Path) -> None:
    with ThreadPoolExecutor(4) as pool:
        folders = list(pool.map(lambda _: embedded_data(tmp_path, **SMALL), range(4)))
    assert len(set(folders)) == 1
    Manifest.read(folders[0]).verify(folders[0])
    assert list(tmp_path.iterdir()) == [folders[0]]


def test_race_lost_at_the_last_moment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    build = embedded._build

    def slow(folder: Path, *parameters: int) -> None:
        monkeypatch.setattr(embedded, "_build", build)
        embedded_data(tmp_path, **SMALL)
        build(folder, *parameters)

    monkeypatch.setattr(embedded, "_build", slow)
    folder = embedded_data(tmp_path, **SMALL)
    Manifest.read(folder).verify(folder)
    assert list(tmp_path.iterdir()) == [folder]


def test_interrupted_build_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(embedded, "prepare", interrupted)
    monkeypatch.setattr(embedded, "train_sentencepiece", interrupted)
    with pytest.raises(KeyboardInterrupt):
        embedded_data(tmp_path, **SMALL)
    assert not list(tmp_path.iterdir())


def test_cache_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(UsageError, match=r"cannot be written to .*: Not a directory") as caught:
        embedded_data(tmp_path / "file", **SMALL)
    assert "ACCELMARK_CACHE" in caught.value.fix


def test_folder_in_the_way(tmp_path: Path) -> None:
    folder = embedded_data(tmp_path, **SMALL)
    (folder / "manifest.json").unlink()
    with pytest.raises(UsageError, match=f"cannot be written to {folder}: Directory not empty"):
        embedded_data(tmp_path, **SMALL)


def test_model_vocabulary_too_small(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="model vocabulary of 300 is too small") as caught:
        embedded_data(tmp_path, **{**SMALL, "model_vocab_size": 300})
    assert "320" in caught.value.fix


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({"ACCELMARK_CACHE": "/a", "XDG_CACHE_HOME": "/x"}, "/a"),
        ({"ACCELMARK_CACHE": "~/a"}, "/home/me/a"),
        ({"ACCELMARK_CACHE": "", "XDG_CACHE_HOME": "/x"}, "/x/accelmark"),
        ({"XDG_CACHE_HOME": "relative"}, "/home/me/.cache/accelmark"),
        ({}, "/home/me/.cache/accelmark"),
    ],
)
def test_cache_dir(monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], expected: str) -> None:
    for name in ("ACCELMARK_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", "/home/me")
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert cache_dir() == Path(expected)
