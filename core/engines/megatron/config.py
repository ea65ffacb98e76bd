"""Megatron's arguments, derived from the plan and written nowhere else. Imports neither torch nor Megatron."""

from __future__ import annotations

from typing import Any

from core.layout import stage_layers
from schemas.hyperparameters import HyperParameters
from schemas.model import DecoderSpec
from schemas.units import Parallel

HALF_PRECISIONS = ("bf16", "amp")
"""Precisions that keep bf16 parameters beside fp32 main weights; the others keep fp32 parameters alone."""


def megatron_config(hp: HyperParameters, model: DecoderSpec, parallel: Parallel) -> dict[str, Any]:
    """What ``TransformerConfig``, ``DistributedDataParallelConfig`` and ``OptimizerConfig`` are made of."""
    # With one replica there is nothing to shard, and nothing to overlap.
    sharded = hp.zero_stage == 1 and parallel.dp > 1
    half = hp.precision in HALF_PRECISIONS
    return {
        "transformer": _shape(hp, model) | _parallel(hp, model) | _kernels(hp) | {"bf16": half},
        "data_parallel": {
            "grad_reduce_in_fp32": True,
            "use_distributed_optimizer": sharded,
            "overlap_grad_reduce": parallel.dp > 1,
            "overlap_param_gather": sharded,
        },
        "optimizer": {
            "optimizer": "adam",
            "lr": hp.learning_rate,
            "weight_decay": hp.weight_decay,
            "adam_beta1": hp.adam_beta1,
            "adam_beta2": hp.adam_beta2,
            "adam_eps": hp.adam_eps,
            "bf16": half,
            "use_distributed_optimizer": sharded,
            "overlap_param_gather": sharded,
        },
    }


def _shape(hp: HyperParameters, model: DecoderSpec) -> dict[str, Any]:
    return {
        "num_layers": model.num_layers,
        "hidden_size": model.hidden_size,
        "ffn_hidden_size": model.intermediate_size,
        "num_attention_heads": model.num_heads,
        "num_query_groups": model.num_kv_heads,
        "kv_channels": model.head_size,
        "layernorm_epsilon": model.norm_eps,
        "normalization": "RMSNorm",
        "gated_linear_unit": True,
        "add_bias_linear": False,
        "hidden_dropout": 0.0,
        "attention_dropout": 0.0,
    }


def _parallel(hp: HyperParameters, model: DecoderSpec) -> dict[str, Any]:
    interleaved = hp.virtual_pipeline_stages > 1
    found: dict[str, Any] = {
        "tensor_model_parallel_size": hp.tensor_parallel,
        "sequence_parallel": hp.sequence_parallel,
        "pipeline_model_parallel_size": hp.pipeline_parallel,
        "virtual_pipeline_model_parallel_size": hp.virtual_pipeline_stages if interleaved else None,
        # Interleaved with batched messages, two ranks that are each other's neighbours on both sides mistake one
        # direction for the other, and train on without an error.
        "overlap_p2p_comm": interleaved,
        "batch_p2p_comm": not interleaved,
        # A wait for the device after every message: for a defect of old versions of torch.
        "batch_p2p_sync": False,
    }
    if hp.pipeline_parallel > 1:
        found["pipeline_model_parallel_layout"] = _layer_layout(hp, model.num_layers)
    return found


def _layer_layout(hp: HyperParameters, num_layers: int) -> str:
    """Megatron's notation, one stage between bars: ``Et*20|t*20|t*20|t*20L``."""
    stages = [f"t*{len(layers)}" for layers in stage_layers(hp, num_layers)]
    return "E" + "|".join(stages) + "L"


def _kernels(hp: HyperParameters) -> dict[str, Any]:
    """Only kernels that torch alone can make: those that Megatron would take from elsewhere are off."""
    return {
        "bias_activation_fusion": hp.compile,
        # Its gradients are rounded to bf16 whatever the logits are.
        "cross_entropy_loss_fusion": hp.compile and hp.precision in HALF_PRECISIONS,
        "bias_dropout_fusion": False,
        "masked_softmax_fusion": False,
        "apply_rope_fusion": False,
        "persist_layer_norm": False,
        "gradient_accumulation_fusion": False,
    }
