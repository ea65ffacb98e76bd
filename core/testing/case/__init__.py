"""A two-layer decoder on the generated corpus: small enough for a CPU, and its loss falls."""

from schemas.base import Text
from schemas.case import Case, DataSpec, TokenizerSpec
from schemas.hyperparameters import HyperParameters, Measure
from schemas.model import DecoderSpec

CASE = Case(
    name="conformance",
    task=Text(zh="插件一致性检查", en="Plugin conformance"),
    model=DecoderSpec(
        factory="core.models.llama:Llama2",
        nominal_parameters=167_000,
        hidden_size=64,
        intermediate_size=176,
        num_layers=2,
        num_heads=4,
        num_kv_heads=4,
        vocab_size=512,
        max_positions=64,
        norm_eps=1e-5,
    ),
    tokenizer=TokenizerSpec(vocab_size=512, add_bos=True, add_eos=True, source="trained on the generated corpus"),
    data=DataSpec(
        name="generated",
        description=Text(zh="随机种子生成的语料", en="A corpus generated from a seed"),
        source="core.data.corpus",
        generated_sequences=128,
    ),
    hyper_parameters=HyperParameters(
        precision="fp32",
        local_batch_size=2,
        sequence_length=64,
        gradient_accumulation_steps=2,
        learning_rate=4e-3,
        weight_decay=0.1,
    ),
    measure=Measure(warmup_steps=2, steps=6, min_window_s=0, setup_timeout_s=300, timeout_s=120),
    reference="AccelMark",
)
