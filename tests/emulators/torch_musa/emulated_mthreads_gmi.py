"""What stands in for ``mthreads-gmi -q -j``: the emulated cards by name; nothing else of them can be known."""

import json
import os


def main() -> None:
    """Print the cards."""
    count = int(os.environ.get("EMULATED_DEVICES", "8"))
    cards = [{"Index": str(index), "Product Name": "MTT S4000"} for index in range(count)]
    print(json.dumps({"Driver Version": "emulated", "GPU": cards}))
