"""Llama2-7B pretraining on openwebtext: 32 layers, rotary positions."""

from schemas.base import Text
from schemas.case import Case, DataSpec, TokenizerSpec
from schemas.hyperparameters import HyperParameters
from schemas.model import DecoderSpec

CASE = Case(
    name="llama2_7b",
    task=Text(zh="自然语言理解", en="Natural language understanding"),
    model=DecoderSpec(
        factory="core.models.llama:Llama2",
        nominal_parameters=7_000_000_000,
        hidden_size=4096,
        intermediate_size=11008,
        num_layers=32,
        num_heads=32,
        num_kv_heads=32,
        vocab_size=32000,
        max_positions=4096,
        position="rope",
        norm_eps=1e-5,
    ),
    tokenizer=TokenizerSpec(
        vocab_size=32000,
        add_bos=True,
        add_eos=True,
        source="tokenizer.model of the released Llama-2-7b checkpoint (SentencePiece)",
    ),
    data=DataSpec(
        name="openwebtext",
        description=Text(zh="如无特殊说明，训练前1亿个token", en="The first 100 million tokens unless stated"),
        source="OpenWebText by Gokaslan and Cohen, urlsf_subset*_data.xz archives or JSONL",
    ),
    hyper_parameters=HyperParameters(
        precision="amp",
        local_batch_size=3,
        sequence_length=4096,
        gradient_accumulation_steps=1,
        learning_rate=1e-5,
        weight_decay=0.1,
        adam_beta1=0.9,
        adam_beta2=0.95,
        adam_eps=1e-5,
        clip_grad_norm=1.0,
    ),
    reference="FlagPerf, training case llama2_7b",
)
