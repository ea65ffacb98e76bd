"""What training a decoder on engine ``torch`` will need of a device's memory, before any of it is allocated.

Sums of what is known to be there at the two moments that can hold the most: between forward and backward, with
all activations, and at the end of the backward pass, with all gradients. It is no model of an allocator; tests
hold it to the peaks of the committed records.
"""

from __future__ import annotations

from core.layout import count_embeddings, count_parameters
from schemas.hyperparameters import HyperParameters
from schemas.model import DecoderSpec

GIB = 2**30
LOSS_CHUNK_TOKENS = 4096
"""As ``core.models.cross_entropy`` cuts them."""


def peak_allocated_gib(hp: HyperParameters, model: DecoderSpec, data_parallel: int) -> float:
    """GiB on one rank; chunked loss, compiled blocks and fused attention are assumed."""
    tokens = hp.local_batch_size * hp.sequence_length
    number = number_bytes(hp, model, data_parallel)
    gathered = _gathered_parameters(hp, model, data_parallel, hp.gathered_layers) * weight_bytes(hp)
    # Layers that stayed gathered are given back one by one.
    gathered_last = _gathered_parameters(hp, model, data_parallel, 0) * weight_bytes(hp)
    kept = number if hp.gradient_accumulation_steps > 1 or _is_replicated(hp, data_parallel) else 0
    activations = tokens * _activation_bytes(hp, model) + _head_bytes(hp, model, tokens)
    before_backward = 3 * number + kept + gathered + activations
    after_backward = 4 * number + gathered_last + _reduced_bytes(hp, model, data_parallel)
    return max(before_backward, after_backward) / GIB


def keeps_main_weights(hp: HyperParameters) -> bool:
    """Whether fp32 weights stand behind those of 16 bits."""
    return weight_bytes(hp) == 2 and hp.optimizer_state == "fp32"


def weight_bytes(hp: HyperParameters) -> int:
    """Of a weight as it is gathered; autocast makes 16 bits of it later, and a product in fp8 8."""
    return 2 if hp.precision in ("bf16", "fp16", "fp8") else 4


def computed_bytes(hp: HyperParameters) -> int:
    """Of a number that a block computes."""
    return 4 if hp.precision in ("fp32", "tf32") else 2


def number_bytes(hp: HyperParameters, model: DecoderSpec, data_parallel: int) -> float:
    """A number for each of this rank's parameters: it keeps weight, gradient and two moments."""
    shards = data_parallel if hp.zero_stage > 0 else 1
    return (2 if hp.optimizer_state == "bf16_stochastic" else 4) * count_parameters(model) / shards


def is_sharded(hp: HyperParameters, data_parallel: int) -> bool:
    """As the engine: FSDP2 also keeps main weights that there is nobody to share with."""
    return keeps_main_weights(hp) or (hp.zero_stage > 0 and data_parallel > 1)


def is_stage2_among_peers(hp: HyperParameters) -> bool:
    """Whether shards of a whole model of text go without FSDP2: ``core.engines.peer_stage2`` moves 16 bits."""
    return hp.zero_stage == 2 and hp.collectives == "peer_copies" and weight_bytes(hp) == 2


def _is_replicated(hp: HyperParameters, data_parallel: int) -> bool:
    """By DDP, whose buckets hold the gradients from one step to the next."""
    return data_parallel > 1 and not is_sharded(hp, data_parallel)


def _gathered_parameters(hp: HyperParameters, model: DecoderSpec, data_parallel: int, staying: int) -> float:
    """Whole weights beside the shards: all of them, or in stage 3 those of embedding, head, the layers that are
    staying gathered and two more."""
    if not is_sharded(hp, data_parallel):
        return 0.0
    everything = count_parameters(model)
    if hp.zero_stage < 3:
        return everything
    ends = count_embeddings(model)
    layers = min(staying + 2, model.num_layers)
    return ends + layers * (everything - ends) / model.num_layers


def _reduced_bytes(hp: HyperParameters, model: DecoderSpec, data_parallel: int) -> float:
    """Whole gradients of the embedding on their way to be reduced in fp32."""
    if not is_sharded(hp, data_parallel):
        return 0.0
    return (weight_bytes(hp) + 4.0) * model.vocab_size * model.hidden_size


def _activation_bytes(hp: HyperParameters, model: DecoderSpec) -> float:
    """Of one token: what the backward pass of compiled blocks reads.

    That is a block's input, queries, keys, values, attention's output with its two statistics a head, the sum
    before the MLP and its norm, gate, up and their product; with full checkpointing the inputs, and one block's
    rest. Norm and gated product are computed anew with selective checkpointing, which keeps a term of the sum
    rather than the sum, and where products in 8 bits round them anew.
    """
    hidden, kv_size = model.hidden_size, model.num_kv_heads * model.head_size
    width, statistics = computed_bytes(hp), 2 * 4 * model.num_heads
    rest = width * (3 * hidden + 2 * kv_size + 2 * model.intermediate_size) + statistics
    if hp.precision != "fp8" and hp.activation_checkpointing != "selective":
        rest += width * (hidden + model.intermediate_size)
    kept_by = 1 if hp.activation_checkpointing == "full" else model.num_layers
    return model.num_layers * width * hidden + kept_by * rest


def _head_bytes(hp: HyperParameters, model: DecoderSpec, tokens: int) -> float:
    """The head's weight, its gradient in fp32, one chunk of logits, and the last states with their gradient."""
    width = computed_bytes(hp)
    weight = model.vocab_size * model.hidden_size
    logits = width * min(tokens, LOSS_CHUNK_TOKENS) * model.vocab_size
    return (2 * width + 4) * weight + logits + 3 * width * tokens * model.hidden_size
