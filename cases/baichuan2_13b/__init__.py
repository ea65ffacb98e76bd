"""Baichuan2-13B pretraining on openwebtext: 40 layers, ALiBi, NormHead."""

from schemas.base import Text
from schemas.case import Case, DataSpec, TokenizerSpec
from schemas.hyperparameters import HyperParameters
from schemas.model import DecoderSpec

CASE = Case(
    name="baichuan2_13b",
    task=Text(zh="自然语言理解", en="Natural language understanding"),
    model=DecoderSpec(
        factory="core.models.baichuan2:Baichuan2",
        nominal_parameters=13_000_000_000,
        hidden_size=5120,
        intermediate_size=13696,
        num_layers=40,
        num_heads=40,
        num_kv_heads=40,
        vocab_size=125696,
        max_positions=4096,
        position="alibi",
        norm_eps=1e-6,
    ),
    tokenizer=TokenizerSpec(
        vocab_size=125696,
        add_bos=True,
        add_eos=True,
        source="tokenizer.model of the released Baichuan2-13B-Base checkpoint (SentencePiece)",
    ),
    data=DataSpec(
        name="openwebtext",
        description=Text(zh="如无特殊说明，训练前1亿个token", en="The first 100 million tokens unless stated"),
        source="OpenWebText by Gokaslan and Cohen, urlsf_subset*_data.xz archives or JSONL",
    ),
    hyper_parameters=HyperParameters(
        precision="bf16",
        local_batch_size=1,
        sequence_length=2048,
        gradient_accumulation_steps=8,
        learning_rate=1e-5,
        weight_decay=0.1,
        adam_beta1=0.9,
        adam_beta2=0.95,
        adam_eps=1e-5,
        clip_grad_norm=1.0,
    ),
    reference="FlagPerf, training case baichuan2_13b",
)
