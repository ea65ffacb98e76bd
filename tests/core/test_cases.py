"""Cases as a user names them, and what is said of one that is wrong."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from core import cases
from core.cases import LoadedCase, resolve
from core.errors import UsageError
from core.plugins import Found, Vendor
from schemas.case import Case, HardwareConfig, Run

ROOT = Path(__file__).parents[2]
CASE = """
from schemas.base import Text
from schemas.case import Case, DataSpec, TokenizerSpec
from schemas.hyperparameters import HyperParameters
from schemas.model import DecoderSpec

CASE = Case(
    name="mine",
    task=Text(zh="我的", en="Mine"),
    model=DecoderSpec(
        factory="m:f", nominal_parameters=7, hidden_size=8, intermediate_size=16, num_layers=2,
        num_heads=2, num_kv_heads=2, vocab_size=32, max_positions=128, norm_eps=1e-5,
    ),
    tokenizer=TokenizerSpec(vocab_size=32, add_bos=True, add_eos=False, source="mine"),
    data=DataSpec(name="texts", description=Text(zh="文", en="texts"), source="mine"),
    hyper_parameters=HyperParameters(
        precision="bf16", local_batch_size=2, sequence_length=64, learning_rate=1e-5
    ),
    reference="none",
)
"""
CONFIG = """
from schemas.case import HardwareConfig, Run

CONFIG = HardwareConfig(vendor="acme", topology="X1x1x8", engine="torch", runs=(Run(id="base"), Run(id="big")))
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A good case outside of the repository."""
    made = tmp_path / "mine"
    made.mkdir()
    (made / "__init__.py").write_text(CASE, encoding="utf-8")
    (made / "config_X1x1x8.py").write_text(CONFIG, encoding="utf-8")
    return made


@pytest.fixture
def install(installed_here: Path) -> Iterator[Callable[..., Path]]:
    """Lays out a distribution that provides a case; the folder of its module."""
    modules: list[str] = []

    def make(distribution: str, name: str = "mine", source: str = CASE) -> Path:
        module = f"{distribution.replace('-', '_')}_case"
        modules.append(module)
        package, info = installed_here / module, installed_here / f"{module}-1.0.dist-info"
        package.mkdir()
        info.mkdir()
        (package / "__init__.py").write_text(source, encoding="utf-8")
        (package / "config_X1x1x8.py").write_text(CONFIG, encoding="utf-8")
        metadata = f"Metadata-Version: 2.1\nName: {distribution}\nVersion: 1.0\n"
        (info / "METADATA").write_text(metadata, encoding="utf-8")
        (info / "entry_points.txt").write_text(f"[accelmark.cases]\n{name} = {module}\n", encoding="utf-8")
        return package

    yield make
    for loaded in [m for m in sys.modules if m.partition(".")[0] in modules]:
        del sys.modules[loaded]


def refusal(argument: object) -> UsageError:
    with pytest.raises(UsageError) as error:
        resolve(str(argument))
    return error.value


def names(loaded: LoadedCase) -> list[str]:
    return [config.value.name for config in loaded.configs]


@pytest.mark.parametrize("name", ["llama2_7b", "baichuan2_13b"])
@pytest.mark.parametrize("how", ["{name}", "cases/{name}", "cases/{name}/", "{root}/cases/{name}"])
def test_an_installed_case_by_name_or_folder(name: str, how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    loaded = resolve(how.format(name=name, root=ROOT))
    assert (loaded.case.name, loaded.location, loaded.folder) == (name, name, ROOT / "cases" / name)
    assert {"CPUx1x2", "H200x1x1", "H200x1x4", "H800x2x8", "S4000x1x8"} <= set(names(loaded))
    assert names(loaded) == sorted(names(loaded))
    assert loaded.config("H800x2x8").source == "config_H800x2x8.py"


@pytest.mark.parametrize("argument", ["llama2_7b", "cases/llama2_7b"])
def test_an_installed_case_from_another_folder(
    argument: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert resolve(argument).location == "llama2_7b"


def test_a_case_in_a_folder_of_the_users_own(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder.parent)
    loaded = resolve("mine")
    assert (loaded.case.name, loaded.folder, names(loaded)) == ("mine", folder, ["X1x1x8"])
    monkeypatch.chdir(ROOT)
    assert resolve(loaded.location).case is loaded.case
    assert "mine" not in sys.modules


def test_the_topology_in_a_file_name_may_hold_a_dot(folder: Path) -> None:
    (folder / "common.py").write_text("ENGINE = 'deepspeed'\n", encoding="utf-8")
    text = CONFIG.replace("X1x1x8", "X1.5x1x8").replace('"torch"', "ENGINE")
    (folder / "config_X1.5x1x8.py").write_text("from .common import ENGINE\n" + text, encoding="utf-8")
    loaded = resolve(str(folder))
    assert names(loaded) == ["X1.5x1x8", "X1x1x8"]
    assert loaded.config("X1.5x1x8").value.engine == "deepspeed"


def test_an_unknown_case_is_told_with_the_known_ones() -> None:
    error = refusal("llama3_8b")
    assert error.what == "no case 'llama3_8b'"
    assert error.fix.startswith("give a case folder, or one of: ")
    assert {"baichuan2_13b", "llama2_7b"} <= set(error.fix.partition(": ")[2].split(", "))


def test_an_unknown_config_or_run_is_told_with_the_known_ones(folder: Path) -> None:
    loaded = resolve(str(folder))
    with pytest.raises(UsageError) as error:
        loaded.config("H100x1x8")
    assert str(error.value) == "case 'mine' has no config 'H100x1x8'\n  fix: use one of: X1x1x8"
    with pytest.raises(UsageError) as error:
        loaded.config("X1x1x8").run("small")
    assert str(error.value) == "config X1x1x8 has no run 'small'\n  fix: use one of: base, big"


@pytest.mark.parametrize(
    ("file", "text", "what", "fix"),
    [
        ("__init__.py", "import nowhere\n",
         "{folder}/__init__.py cannot be imported: ModuleNotFoundError: No module named 'nowhere'",
         "repair {folder}/__init__.py"),
        ("__init__.py", "raise SystemExit(3)\n", "{folder}/__init__.py cannot be imported: SystemExit: 3",
         "repair {folder}/__init__.py"),
        ("__init__.py", "case = 1\n", "{folder}/__init__.py: CASE is missing",
         "define CASE = Case(...)"),
        ("__init__.py", CASE.replace("sequence_length=64", "sequence_length=-64"),
         "{folder}/__init__.py: sequence_length: Input should be greater than 0 (got -64)",
         "correct the field in {folder}/__init__.py"),
        ("config_X1x1x8.py", "CONFIG = {}\n", "{folder}/config_X1x1x8.py: CONFIG is dict, not a HardwareConfig",
         "define CONFIG = HardwareConfig(...)"),
        ("config_X1x1x8.py", "import nowhere\n",
         "{folder}/config_X1x1x8.py cannot be imported: ModuleNotFoundError: No module named 'nowhere'",
         "repair {folder}/config_X1x1x8.py"),
        ("config_X1x1x8.py", CONFIG.replace("engine", "engin"),
         "{folder}/config_X1x1x8.py: engine: this field is missing\n"
         "{folder}/config_X1x1x8.py: engin: unknown field (value 'torch'); remove it or correct its spelling",
         "correct the field in {folder}/config_X1x1x8.py"),
        ("config_X1x1x8.py", CONFIG.replace("X1x1x8", "X1x8"),
         "{folder}/config_X1x1x8.py: topology: 'X1x8' is not a Topology; write it like 'H800x2x8' (got 'X1x8')",
         "correct the field in {folder}/config_X1x1x8.py"),
        ("config_X1x1x4.py", CONFIG, "{folder}/config_X1x1x4.py: its topology is X1x1x8",
         "rename the file to config_X1x1x8.py or correct it"),
    ],
)  # fmt: skip
def test_a_mistake_in_a_file_is_told_by_file_field_and_value(
    folder: Path, file: str, text: str, what: str, fix: str
) -> None:
    (folder / file).write_text(text, encoding="utf-8")
    error = refusal(folder)
    assert error.what == what.format(folder=folder)
    assert error.fix == fix.format(folder=folder)


def test_a_repaired_case_can_be_loaded_in_the_same_process(folder: Path) -> None:
    broken = folder / "config_X1x1x8.py"
    broken.write_text("import nowhere\n", encoding="utf-8")
    refusal(folder)
    broken.write_text(CONFIG, encoding="utf-8")
    assert names(resolve(str(folder))) == ["X1x1x8"]


def with_vendor(monkeypatch: pytest.MonkeyPatch, vendor: Vendor) -> None:
    monkeypatch.setattr(cases, "discover", lambda: (Found(vendor.name, vendor.distribution, vendor, None),))


def config_of(vendor: str, topology: str) -> HardwareConfig:
    return HardwareConfig(vendor=vendor, topology=topology, engine="torch", runs=(Run(id="base"),))


def test_a_plugin_adds_configs(
    folder: Path, make_vendor: Callable[..., Vendor], monkeypatch: pytest.MonkeyPatch
) -> None:
    def configs(case: Case) -> list[HardwareConfig] | None:
        return [config_of("acme", "X2x1x8")] if case.name == "mine" else None

    with_vendor(monkeypatch, make_vendor(hardware_configs=configs))
    loaded = resolve(str(folder))
    assert names(loaded) == ["X1x1x8", "X2x1x8"]
    assert loaded.config("X2x1x8").source == "plugin acme"


def test_a_config_that_is_there_twice_is_told_with_both_places(
    folder: Path, make_vendor: Callable[..., Vendor], monkeypatch: pytest.MonkeyPatch
) -> None:
    with_vendor(monkeypatch, make_vendor(hardware_configs=lambda case: [config_of("acme", "X1x1x8")]))
    assert str(refusal(folder)) == (
        "case 'mine' has config X1x1x8 twice: from config_X1x1x8.py and from plugin acme\n"
        "  fix: remove or rename one of them"
    )


@pytest.mark.parametrize(("answer", "why"), [("raise", "KeyError: 'llama'"), ("wrong", "hook hardware_configs")])
def test_a_plugin_whose_hook_fails_hurts_no_case(
    folder: Path, make_vendor: Callable[..., Vendor], monkeypatch: pytest.MonkeyPatch, answer: str, why: str
) -> None:
    def configs(case: Case) -> list[str]:
        return [{}["llama"]] if answer == "raise" else ["X1x1x8"]

    with_vendor(monkeypatch, make_vendor(hardware_configs=configs))
    loaded = resolve(str(folder))
    assert names(loaded) == ["X1x1x8"]
    assert why in loaded.unasked["acme"]
    with pytest.raises(UsageError) as error:
        loaded.config("X2x1x8")
    assert error.value.fix.startswith("use one of: X1x1x8; vendor acme gave none: ")


def test_a_case_of_another_distribution_is_found_by_name(install: Callable[..., Path]) -> None:
    package = install("acme-cases")
    loaded = resolve("mine")
    assert (loaded.location, loaded.folder, names(loaded)) == ("mine", package, ["X1x1x8"])
    assert resolve(str(package)).location == "mine"
    assert ("mine", "acme-cases", None) in [(name, dist, why) for name, dist, _, why in cases.installed()]


def test_a_name_of_two_distributions_is_refused_until_a_folder_chooses(install: Callable[..., Path]) -> None:
    install("acme-cases")
    other = install("zeta-cases")
    assert str(refusal("mine")) == (
        "case 'mine' is provided by more than one distribution: acme-cases and zeta-cases\n"
        "  fix: give the folder of the one you mean, or uninstall the other"
    )
    chosen = resolve(str(other))
    assert chosen.folder == other
    assert resolve(chosen.location).folder == other  # as a worker finds it again


@pytest.mark.parametrize(
    ("source", "why"),
    [
        ("import nowhere\n", "No module named 'nowhere'"),
        ("raise SystemExit\n", "SystemExit"),
        ("", "CASE is missing"),
    ],
)
def test_a_broken_case_is_listed_with_the_reason_and_hurts_no_other(
    install: Callable[..., Path], folder: Path, source: str, why: str
) -> None:
    install("acme-cases", "broken", source)
    found = {name: (loaded, reason) for name, _, loaded, reason in cases.installed()}
    loaded, reason = found["broken"]
    assert loaded is None
    assert why in str(reason)
    assert found["llama2_7b"][0] is not None
    assert resolve(str(folder)).case.name == "mine"


def test_an_entry_point_to_nowhere_hurts_no_other(install: Callable[..., Path], folder: Path) -> None:
    info = install("acme-cases").parent / "acme_cases_case-1.0.dist-info"
    text = "[accelmark.cases]\nlost = nowhere.at.all\n"
    (info / "entry_points.txt").write_text(text, encoding="utf-8")
    reasons = {name: reason for name, _, _, reason in cases.installed()}
    assert "No module named 'nowhere'" in str(reasons["lost"])
    assert resolve(str(folder)).case.name == "mine"
    assert resolve(str(ROOT / "cases/llama2_7b")).location == "llama2_7b"


def test_a_broken_vendor_plugin_hurts_no_case(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    monkeypatch.setattr(cases, "discover", lambda: (Found("acme", "acme-plugin", None, "boom"),))
    assert resolve(str(folder)).unasked == {}
