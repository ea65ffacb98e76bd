"""``pip install tests/emulators/torch_musa``; its version is that of the torch of constraints.txt."""

import re
from pathlib import Path

from setuptools import setup

CONSTRAINTS = Path(__file__).parents[3] / "constraints.txt"
TORCH = re.search(r"^torch==([\d.]+)", CONSTRAINTS.read_text(encoding="utf-8"), re.MULTILINE)[1]

setup(
    name="torch_musa",
    version=f"{TORCH}+emulated",
    description="An emulated stand-in for Moore Threads' torch_musa; not the vendor's package",
    packages=["torch_musa", "torch_musa.emulated_device"],
    package_dir={"torch_musa.emulated_device": "../emulated_device"},
    package_data={"torch_musa.emulated_device": ["csrc/*"]},
    py_modules=["emulated_mthreads_gmi"],
    install_requires=["torch"],
    entry_points={
        "torch.backends": ["torch_musa = torch_musa:autoload"],
        "console_scripts": ["mthreads-gmi = emulated_mthreads_gmi:main"],
    },
)
