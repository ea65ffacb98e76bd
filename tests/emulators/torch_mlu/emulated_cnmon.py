"""What stands in for ``cnmon`` and ``cnmon info -j``: the emulated devices by name; nothing else can be known."""

import json
import os
import sys
from pathlib import Path

NAME = "MLU590-M9"
HEAD = "| CNMON v0.0.0                                              Driver vemulated |"
ROWS = """\
| {index:<5} /   {name}    v0.0.0 |         0000:00:00.0 | N/A                 0 |
| N/A   N/AC        N/A W/ N/A W |   N/A MiB/   N/A MiB | FULL          Default |"""


def main() -> None:
    """Print the table, or write the JSON into the working folder."""
    count = int(os.environ.get("EMULATED_DEVICES", "8"))
    if "info" in sys.argv[1:]:
        cards = [{"CardNum": index, "ProductName": NAME} for index in range(count)]
        Path("cnmon_info.json").write_text(json.dumps({"CnmonInfo": cards}), encoding="utf-8")
        return
    print(HEAD, *(ROWS.format(index=index, name=NAME) for index in range(count)), sep="\n")
