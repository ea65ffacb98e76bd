"""What the tests know of vendors' tools says where it comes from."""

from pathlib import Path

SAMPLES = Path(__file__).parent / "samples"


def test_every_sample_has_an_origin_in_the_table():
    rows = [line.split("|") for line in (SAMPLES / "README.md").read_text(encoding="utf-8").splitlines()]
    origins = {row[1].strip(" `"): row[2].strip() for row in rows if len(row) == 4 and row[1].startswith(" `")}
    assert origins.keys() == {file.name for file in SAMPLES.iterdir()} - {"README.md"}
    assert all(origins.values())
