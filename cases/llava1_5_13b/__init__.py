"""LLaVA-1.5-13B: a CLIP tower, a projector and Vicuna-13B, aligned on captions, then tuned on instructions."""

from schemas.base import Text
from schemas.case import Case, DataSpec, TokenizerSpec
from schemas.evaluation import EvaluationSpec
from schemas.hyperparameters import HyperParameters
from schemas.model import DecoderSpec, VisionSpec

CASE = Case(
    name="llava1.5_13b",
    task=Text(zh="多模态大模型", en="Multimodal large model"),
    model=DecoderSpec(
        factory="core.models.llava:Llava",
        nominal_parameters=13_000_000_000,
        hidden_size=5120,
        intermediate_size=13824,
        num_layers=40,
        num_heads=40,
        num_kv_heads=40,
        vocab_size=32000,
        max_positions=4096,
        position="rope",
        norm_eps=1e-5,
    ),
    vision=VisionSpec(
        hidden_size=1024,
        intermediate_size=4096,
        num_layers=24,
        num_heads=16,
        image_size=336,
        patch_size=14,
        feature_layer=-2,
    ),
    tokenizer=TokenizerSpec(
        vocab_size=32000,
        add_bos=True,
        add_eos=True,
        source="tokenizer.model of the released vicuna-13b-v1.5 or llava-v1.5-13b checkpoint (SentencePiece)",
    ),
    data=DataSpec(
        name="LAION-CC-SBU + llava_v1_5_mix665k",
        format="conversations",
        description=Text(
            zh="pretrain阶段为558k图文对，finetune阶段为665k指令数据",
            en="558 thousand captions in stage pretrain, 665 thousand instructions in stage finetune",
        ),
        source="liuhaotian/LLaVA-Pretrain (blip_laion_cc_sbu_558k.json), liuhaotian/LLaVA-Instruct-150K "
        "(llava_v1_5_mix665k.json), and the images that they name",
        generated_lengths="cases.llava1_5_13b.lengths:LENGTHS",
    ),
    hyper_parameters=HyperParameters(
        stage="finetune",
        precision="bf16",
        local_batch_size=16,
        sequence_length=2048,
        gradient_accumulation_steps=1,
        zero_stage=3,
        learning_rate=2e-5,
        schedule="cosine",
        schedule_steps=5197,  # 665,298 samples, 128 a step
        lr_warmup_steps=156,  # 3%
        adam_beta1=0.9,
        adam_beta2=0.999,
        adam_eps=1e-8,
        clip_grad_norm=1.0,
    ),
    evaluation=EvaluationSpec(benchmark="MMMU", batch_size=4),
    reference="FlagPerf, training case llava1.5_13b; haotian-liu/LLaVA, scripts/v1_5",
)
