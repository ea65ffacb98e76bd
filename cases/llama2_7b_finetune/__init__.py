"""Llama2-7B with LoRA on samsum: dialogues to be summarised, then MMLU."""

from schemas.base import Text
from schemas.case import Case, DataSpec, TokenizerSpec
from schemas.evaluation import EvaluationSpec
from schemas.hyperparameters import HyperParameters, LoraSpec, Measure
from schemas.model import DecoderSpec
from schemas.units import ModuleNames

CASE = Case(
    name="llama2_7b_finetune",
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
        name="samsum",
        format="dialogues",
        description=Text(
            zh="训练集的对话及其摘要；只训练摘要",
            en="Dialogues of the training split with their summaries; only the summaries are trained",
        ),
        source="SAMSum by Gliwa et al. (arXiv 1911.12237): train.json, JSON lines or the hub's parquet",
    ),
    hyper_parameters=HyperParameters(
        precision="tf32",
        local_batch_size=2,
        sequence_length=512,
        packing="concat",
        gradient_accumulation_steps=1,
        learning_rate=1e-4,
        schedule="epoch",
        epoch_factor=0.85,
        weight_decay=0.0,
        adam_beta1=0.9,
        adam_beta2=0.999,
        adam_eps=1e-8,
        clip_grad_norm=0.0,
        seed=42,
    ),
    measure=Measure(epochs=3),
    lora=LoraSpec(r=8, alpha=32, dropout=0.05, target_modules=ModuleNames.parse("q_proj+v_proj")),
    evaluation=EvaluationSpec(benchmark="MMLU", shots=5),
    reference="FlagPerf, training case llama2_7b_finetune; llama-recipes",
)
