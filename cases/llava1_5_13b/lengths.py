"""How long LLaVA-1.5's samples are, by stage; LENGTHS.md says what of it is known."""

import json
from pathlib import Path

from core.data.lengths import LengthHistogram

LENGTHS = {
    stage: LengthHistogram.model_validate(one)
    for stage, one in json.loads(Path(__file__).with_name("lengths.json").read_text(encoding="utf-8")).items()
}
