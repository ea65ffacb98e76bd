"""``pip install tests/emulators/torch_mlu``; its version names the torch of constraints.txt."""

import re
from pathlib import Path

from setuptools import setup

CONSTRAINTS = Path(__file__).parents[3] / "constraints.txt"
TORCH = re.search(r"^torch==([\d.]+)", CONSTRAINTS.read_text(encoding="utf-8"), re.MULTILINE)[1]

setup(
    name="torch_mlu",
    version=f"1.33.0+torch{TORCH}.emulated",
    description="An emulated stand-in for Cambricon's torch_mlu; not the vendor's package",
    packages=["torch_mlu", "torch_mlu.mlu", "torch_mlu.emulated_device"],
    package_dir={"torch_mlu.emulated_device": "../emulated_device"},
    package_data={"torch_mlu.emulated_device": ["csrc/*"]},
    py_modules=["emulated_cnmon"],
    install_requires=["torch"],
    entry_points={"console_scripts": ["cnmon = emulated_cnmon:main"]},
)
