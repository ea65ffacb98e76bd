"""LoRA: what is trained, where it starts, that peft reads it, and dropout replayed and compiled."""

from __future__ import annotations

import math

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("peft")

from core.errors import UsageError
from core.models import adapters
from core.models.initialise import place_plain
from schemas.hyperparameters import LoraSpec

pytestmark = pytest.mark.timeout(120)


def lora(targets="q_proj+v_proj", dropout=0.0):
    return LoraSpec(r=4, alpha=8, dropout=dropout, target_modules=targets)


@pytest.fixture
def adapted(make_model):
    def make(dropout=0.0, **options):
        model = make_model(**options)
        adapters.add_adapters(model, lora(dropout=dropout))
        own = [pair for pair in model.named_parameters() if adapters.is_adapter(pair[0])]
        adapters.initialise_adapters(own, 1, place_plain)
        return model

    return make


def trained(model):
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


def spoil_b(model):
    """As after training: B is zero at first, and would hide whatever is wrong with A."""
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for name, parameter in trained(model).items():
            if ".lora_B." in name:
                parameter.normal_(0.0, 0.1, generator=generator)
    return model


def test_only_the_targets_adapters_are_trained_and_the_model_begins_unchanged(make_model, adapted, batch):
    model, plain = adapted(), make_model()
    own = trained(model)
    assert len(own) == 3 * 2 * 2  # blocks, targets, A and B
    assert all(name.split(".")[4] in ("q_proj", "v_proj") for name in own)
    assert sum(parameter.numel() for parameter in own.values()) == 3 * 2 * (4 * 48 + 48 * 4)
    assert torch.equal(model(batch[0]), plain(batch[0]))
    frozen = {adapters.released_name(name) for name, _ in model.named_parameters() if name not in own}
    assert frozen == {name for name, _ in plain.named_parameters()}


def test_a_starts_as_pefts_does_and_each_parameter_has_its_own_numbers(adapted):
    found = [parameter for name, parameter in trained(adapted()).items() if ".lora_A." in name]
    for parameter in found:
        assert parameter.abs().max() <= 1 / math.sqrt(48)
        assert parameter.std().item() == pytest.approx(1 / math.sqrt(3 * 48), rel=0.2)
    assert not torch.equal(found[0], found[1])


def test_a_target_that_the_model_lacks_is_refused_with_those_it_has(make_model):
    with pytest.raises(UsageError) as error:
        adapters.add_adapters(make_model(), lora("q_proj+W_pack"))
    assert error.value.what == "lora.target_modules names 'W_pack', which Llama2 does not have"
    assert "q_proj" in error.value.fix


def test_peft_loads_what_is_kept_into_transformers_llama(adapted, batch, tmp_path):
    transformers = pytest.importorskip("transformers")
    from peft import PeftModel

    model = spoil_b(adapted())
    adapters.save_adapters(trained(model), lora(), "meta-llama/Llama-2-7b-hf", tmp_path)
    spec = model.spec
    config = transformers.LlamaConfig(
        vocab_size=spec.vocab_size, hidden_size=spec.hidden_size, intermediate_size=spec.intermediate_size,
        num_hidden_layers=spec.num_layers, num_attention_heads=spec.num_heads, rms_norm_eps=spec.norm_eps,
        num_key_value_heads=spec.num_kv_heads, max_position_embeddings=64,
    )  # fmt: skip
    theirs = transformers.LlamaForCausalLM(config)
    base = {adapters.released_name(n): p for n, p in model.named_parameters() if not adapters.is_adapter(n)}
    theirs.load_state_dict(base)
    loaded = PeftModel.from_pretrained(theirs, str(tmp_path)).eval()
    assert loaded.peft_config["default"].r == 4
    assert loaded.peft_config["default"].target_modules == {"q_proj", "v_proj"}
    assert loaded.peft_config["default"].base_model_name_or_path == "meta-llama/Llama-2-7b-hf"
    torch.testing.assert_close(loaded(batch[0]).logits, model(batch[0]), rtol=1e-4, atol=1e-4)


def test_what_is_kept_is_loaded_and_what_does_not_fit_is_refused(adapted, make_model, tmp_path):
    model, other = spoil_b(adapted()), adapted()
    adapters.save_adapters(trained(model), lora(), None, tmp_path)
    adapters.load_adapters(other, tmp_path)
    for name, parameter in trained(model).items():
        assert torch.equal(trained(other)[name], parameter)
    deeper = make_model(spec={"num_layers": 4})
    adapters.add_adapters(deeper, lora())
    with pytest.raises(UsageError, match=r"tensor base_model\.model\.model\.layers\.3\..* does not fit the model"):
        adapters.load_adapters(deeper, tmp_path)
    (tmp_path / "adapter_model.safetensors").write_bytes(b"cut off")
    with pytest.raises(UsageError, match="cannot be read as safetensors"):
        adapters.load_adapters(other, tmp_path)


@pytest.mark.parametrize("checkpointing", ["full", "selective"])
def test_dropout_is_replayed_where_a_block_is_computed_again(adapted, batch, checkpointing):
    gradients = []
    for kind in ("none", checkpointing):
        model = spoil_b(adapted(dropout=0.5, activation_checkpointing=kind))
        torch.manual_seed(7)
        model(*batch)[0].backward()
        gradients.append({name: parameter.grad for name, parameter in trained(model).items()})
    plain, replayed = gradients
    for name, gradient in plain.items():
        torch.testing.assert_close(replayed[name], gradient, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_a_block_with_adapters_compiles_as_one_graph(adapted, batch, compiler):
    gradients = []
    for compiled in (False, True):
        model = spoil_b(adapted(compile=compiled))
        model(*batch)[0].backward()
        gradients.append({name: parameter.grad for name, parameter in trained(model).items()})
    plain, found = gradients
    for name, gradient in plain.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-3, atol=1e-4)
