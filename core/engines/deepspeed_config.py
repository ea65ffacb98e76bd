"""DeepSpeed's JSON, derived from the plan; it is written nowhere else."""

from __future__ import annotations

from typing import Any

from schemas.hyperparameters import HyperParameters


def deepspeed_config(hp: HyperParameters) -> dict[str, Any]:
    """The configuration for ``deepspeed.initialize``.

    The global batch size is left to DeepSpeed (micro-batch × GAS × DP). Gradients are reduced in fp32 whatever the
    parameters are kept in, as the precision table promises.
    """
    config: dict[str, Any] = {
        "train_micro_batch_size_per_gpu": hp.local_batch_size,
        "gradient_accumulation_steps": hp.gradient_accumulation_steps,
        "gradient_clipping": hp.clip_grad_norm,
        "zero_optimization": _zero(hp),
        # The optimizer is AccelMark's or the vendor's, which DeepSpeed cannot have tested.
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "communication_data_type": "fp32",
        "steps_per_print": 1_000_000_000,
    }
    if hp.zero_stage >= 2:
        # Sharded accumulators are cheap. Below, every rank holds all of them: in fp32 they would cost 4 more bytes
        # a parameter (Baichuan2-13B did not fit one H200), so they keep the parameters' type, DeepSpeed's default.
        config["data_types"] = {"grad_accum_dtype": "fp32"}
    if hp.precision == "bf16":
        config["bf16"] = {"enabled": True}
    elif hp.precision == "fp16":
        config["fp16"] = {"enabled": True, "initial_scale_power": 16}
    elif hp.precision == "amp":
        dtype = {"bf16": "bfloat16", "fp16": "float16"}[hp.autocast_dtype]
        config["torch_autocast"] = {"enabled": True, "dtype": dtype}
    return config


def _zero(hp: HyperParameters) -> dict[str, Any]:
    zero: dict[str, Any] = {"stage": hp.zero_stage}
    if hp.zero_stage >= 1:
        zero["contiguous_gradients"] = True
        zero["overlap_comm"] = hp.zero_stage >= 2
    if hp.offload == "optimizer":
        zero["offload_optimizer"] = {"device": "cpu", "pin_memory": True}
    return zero
