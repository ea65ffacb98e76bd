"""Llama2-70B pretraining on pile wikipedia: 80 layers, grouped-query attention, split over many chips."""

from schemas.base import Text
from schemas.case import Case, DataSpec, TokenizerSpec
from schemas.hyperparameters import HyperParameters
from schemas.model import DecoderSpec

CASE = Case(
    name="llama2_70b",
    task=Text(zh="自然语言理解", en="Natural language understanding"),
    model=DecoderSpec(
        factory="core.models.llama:Llama2",
        nominal_parameters=70_000_000_000,
        hidden_size=8192,
        intermediate_size=28672,
        num_layers=80,
        num_heads=64,
        num_kv_heads=8,
        vocab_size=32000,
        max_positions=4096,
        position="rope",
        norm_eps=1e-5,
    ),
    tokenizer=TokenizerSpec(
        vocab_size=32000,
        add_bos=True,
        add_eos=True,
        source="tokenizer.model of the released Llama-2-70b checkpoint (SentencePiece)",
    ),
    data=DataSpec(
        name="pile wikipedia",
        description=Text(zh="训练100步", en="100 steps are trained"),
        source="The Wikipedia part of The Pile (EleutherAI), text or JSONL",
    ),
    hyper_parameters=HyperParameters(
        precision="amp",
        local_batch_size=1,
        sequence_length=4096,
        gradient_accumulation_steps=44,
        sequence_parallel=True,
        zero_stage=1,  # Megatron's distributed optimizer
        learning_rate=1.5e-4,
        min_learning_rate=1e-5,
        schedule="cosine",
        schedule_steps=100,  # of the published alignment run
        lr_warmup_steps=1,  # a hundredth of them
        weight_decay=0.01,
        adam_beta1=0.9,
        adam_beta2=0.95,
        adam_eps=1e-8,
        clip_grad_norm=1.0,
    ),
    reference="FlagPerf, training case llama2_70B",
)
