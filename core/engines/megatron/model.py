"""One pipeline stage of a Llama2 or Baichuan2 as Megatron's ``GPTModel``, without TransformerEngine.

Attention, with its rotary positions or ALiBi bias, is core's own (eager, SDPA or FlexAttention); products and the
embedding are Megatron's, split over the tensor parallel ranks. Where TransformerEngine is installed, its linear
layers and norms take their place.
"""

from __future__ import annotations

from functools import partial

import torch
import torch.nn.functional as F
from megatron.core import parallel_state
from megatron.core.extensions import transformer_engine as te
from megatron.core.models.gpt.gpt_layer_specs import get_gpt_layer_local_spec
from megatron.core.models.gpt.gpt_model import GPTModel
from megatron.core.transformer.spec_utils import ModuleSpec
from megatron.core.transformer.transformer_block import TransformerBlockSubmodules
from megatron.core.transformer.transformer_config import TransformerConfig
from torch import Tensor

from core.engines.megatron.config import HALF_PRECISIONS, megatron_config
from core.engines.megatron.parts import CheckpointedLayer, CoreAttention, Norm, NormalisedOutput
from core.errors import UsageError
from core.layout import stage_layers
from core.models.attention import ContextCache
from core.models.baichuan2 import NormHead, PackedAttention
from core.models.decoder import Decoder, Head
from core.models.factory import build_decoder
from core.models.llama import LlamaAttention
from schemas.plan import Plan


def build_stage(plan: Plan, stage: int) -> GPTModel:
    """Stage ``stage`` of PP × virtual stages, on this rank's device, its parameters not filled yet.

    Megatron's parallel state must be initialised. UsageError for a model whose parts have no counterpart here.
    """
    decoder = build_decoder(plan)
    require_known_parts(decoder)
    stages = stage_layers(plan.hyper_parameters, plan.model.num_layers)
    config = transformer_config(plan)
    layer, norm = _layer(plan, config)
    last = stage == len(stages) - 1
    interleaved = config.virtual_pipeline_model_parallel_size is not None
    model = GPTModel(
        config,
        TransformerBlockSubmodules(layer_specs=[layer] * len(stages[stage]), layer_norm=norm),
        vocab_size=plan.model.vocab_size,
        max_sequence_length=plan.hyper_parameters.sequence_length,
        pre_process=stage == 0,
        post_process=last,
        share_embeddings_and_output_weights=False,
        position_embedding_type="none",
        vp_stage=stage // config.pipeline_model_parallel_size if interleaved else None,
    )
    if last and type(decoder).head_type is NormHead:
        model.output_layer = NormalisedOutput(
            config.hidden_size, plan.model.vocab_size, config=config, init_method=_leave_unset, bias=False
        )
    return model


def require_known_parts(decoder: Decoder) -> None:
    """UsageError unless ``decoder`` is made of parts that a stage can be built of."""
    kind = type(decoder)
    if kind.attention_type in (LlamaAttention, PackedAttention) and kind.head_type in (Head, NormHead):
        return
    raise UsageError(
        f"engine megatron knows no counterpart of {kind.attention_type.__name__} and {kind.head_type.__name__} "
        f"of model {kind.__name__}",
        "train it with engine torch or deepspeed",
    )


def transformer_config(plan: Plan) -> TransformerConfig:
    """The derived arguments, with those that are no plain values."""
    arguments = megatron_config(plan.hyper_parameters, plan.model, plan.parallel)["transformer"]
    dtype = torch.bfloat16 if plan.hyper_parameters.precision in HALF_PRECISIONS else torch.float32
    return TransformerConfig(
        **arguments,
        params_dtype=dtype,
        pipeline_dtype=dtype,
        activation_func=F.silu,
        # Values come later, by the names of the released checkpoint. These calls also mark split parameters.
        init_method=_leave_unset,
        output_layer_init_method=_leave_unset,
        embedding_init_method=_leave_unset,
        # Interleaved, gloo may still be sending a stage's output, which other backends order by streams.
        deallocate_pipeline_outputs=not arguments["overlap_p2p_comm"] or torch.distributed.get_backend() != "gloo",
    )


def _leave_unset(_: Tensor) -> None:
    pass


def _layer(plan: Plan, config: TransformerConfig) -> tuple[ModuleSpec, ModuleSpec]:
    """The specs of a layer, and of the norm that follows the last of them."""
    hp = plan.hyper_parameters
    parts = get_gpt_layer_local_spec(normalization="RMSNorm").submodules
    attention, mlp = parts.self_attention.submodules, parts.mlp.submodules
    norm = ModuleSpec(module=Norm, params={"compiled": hp.compile})
    if te.HAVE_TE:
        norm = ModuleSpec(module=te.TENorm)
        attention.linear_qkv, attention.linear_proj = te.TEColumnParallelLinear, te.TERowParallelLinear
        mlp.linear_fc1, mlp.linear_fc2 = te.TEColumnParallelLinear, te.TERowParallelLinear
    parts.input_layernorm = parts.pre_mlp_layernorm = norm
    heads = plan.model.num_heads // config.tensor_model_parallel_size
    first = parallel_state.get_tensor_model_parallel_rank() * heads
    contexts = ContextCache(plan.model, hp.attention, slice(first, first + heads))
    attention.core_attention = partial(CoreAttention, contexts=contexts, compiled=hp.compile)
    checkpointing = {"checkpointing": hp.activation_checkpointing}
    return ModuleSpec(module=CheckpointedLayer, params=checkpointing, submodules=parts), norm
