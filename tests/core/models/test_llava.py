"""LLaVA against transformers' LlavaForConditionalGeneration, and the names of its released checkpoints."""

from __future__ import annotations

import functools

import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from safetensors.torch import load_file, save_file

from core.errors import UsageError
from core.models.initialise import initialise_random, load_safetensors, place_plain
from core.models.llava import Llava
from schemas.model import VisionSpec

pytestmark = pytest.mark.timeout(120)

VISION = VisionSpec(hidden_size=32, intermediate_size=64, num_layers=4, num_heads=4, image_size=28, patch_size=14)
IMAGE_TOKEN, PATCHES = 96, 4


@pytest.fixture
def model(make_spec, make_hp):
    return _llava(make_spec(), make_hp(stage="finetune"))


def _llava(spec, hp):
    built = Llava(spec, hp, VISION)
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for name, parameter in built.named_parameters():
            parameter.normal_(1.0 if "norm" in name else 0.0, 0.2, generator=generator)
    return built


def _reference(model):
    spec, vision = model.spec, model.vision
    config = transformers.LlavaConfig(
        text_config=transformers.LlamaConfig(
            hidden_size=spec.hidden_size,
            intermediate_size=spec.intermediate_size,
            num_hidden_layers=spec.num_layers,
            num_attention_heads=spec.num_heads,
            num_key_value_heads=spec.num_kv_heads,
            vocab_size=spec.vocab_size,
            rms_norm_eps=spec.norm_eps,
        ),
        vision_config=transformers.CLIPVisionConfig(
            hidden_size=vision.hidden_size,
            intermediate_size=vision.intermediate_size,
            num_hidden_layers=vision.num_layers,
            num_attention_heads=vision.num_heads,
            image_size=vision.image_size,
            patch_size=vision.patch_size,
        ),
        image_token_id=IMAGE_TOKEN,
    )
    reference = transformers.LlavaForConditionalGeneration(config).eval()
    with torch.no_grad():
        theirs = dict(reference.named_parameters())
        for name, parameter in model.named_parameters():
            theirs[_theirs(name)].copy_(parameter)
    return reference


def _theirs(name):
    """What the newest transformers calls a parameter of ours, in memory."""
    if name == "lm_head.weight":
        return name
    return f"model.language_model.{name.removeprefix('model.')}" if name.startswith("model.") else f"model.{name}"


def _batch():
    """Two sequences of 14 tokens, the first with an image after two of them; prompts have no labels."""
    generator = torch.Generator().manual_seed(11)
    input_ids = torch.randint(0, IMAGE_TOKEN, (2, 14), generator=generator)
    input_ids[0, 2 : 2 + PATCHES] = IMAGE_TOKEN
    labels = torch.randint(0, IMAGE_TOKEN, (2, 14), generator=generator)
    labels[:, :8] = -100
    pixels = torch.randn(1, 3, 28, 28, generator=generator)
    return {
        "input_ids": input_ids,
        "labels": labels,
        "pixel_values": pixels,
        "image_positions": torch.arange(2, 2 + PATCHES),
    }


def _reference_loss(reference, batch):
    out = reference(
        input_ids=batch["input_ids"],
        pixel_values=batch["pixel_values"],
        attention_mask=torch.ones_like(batch["input_ids"]),
    )
    return torch.nn.functional.cross_entropy(out.logits.flatten(0, 1), batch["labels"].flatten(), reduction="sum")


def test_loss_and_gradients_equal_transformers(model):
    reference, batch = _reference(model), _batch()
    reference.model.vision_tower.requires_grad_(False)
    loss, _ = model(**batch)
    expected = _reference_loss(reference, batch)
    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=1e-5)
    loss.backward()
    expected.backward()
    theirs = dict(reference.named_parameters())
    for name, parameter in model.named_parameters():
        if name.startswith("vision_tower."):
            assert parameter.grad is None
        else:
            torch.testing.assert_close(parameter.grad, theirs[_theirs(name)].grad, rtol=1e-4, atol=1e-5)


def test_an_image_in_another_place_gives_another_loss(model):
    batch = _batch()
    moved = batch | {"image_positions": batch["image_positions"] + 1}
    assert not torch.allclose(model(**batch)[0], model(**moved)[0])


def test_pretraining_trains_the_projector_alone(make_spec, make_hp):
    model = _llava(make_spec(), make_hp(stage="pretrain"))
    trainable = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    assert {name.split(".")[0] for name in trainable} == {"multi_modal_projector"}
    model(**_batch())[0].backward()
    assert all(parameter.grad.abs().sum() > 0 for parameter in model.multi_modal_projector.parameters())


def test_a_batch_of_text_leaves_the_projector_a_gradient_of_zero(model):
    batch = _batch() | {"image_positions": torch.empty(0, dtype=torch.int64)}
    model(**batch)[0].backward()
    assert all(parameter.grad.abs().sum() == 0 for parameter in model.multi_modal_projector.parameters())


@pytest.mark.slow
def test_compiled_and_checkpointed_it_gives_the_same(make_spec, make_hp, compiler):
    plain = _llava(make_spec(), make_hp(stage="finetune"))
    other = _llava(make_spec(), make_hp(stage="finetune", compile=True, activation_checkpointing="full"))
    other.apply_activation_checkpointing()
    other.compile_blocks()
    for model in (plain, other):
        model(**_batch())[0].backward()
    theirs = dict(other.named_parameters())
    for name, parameter in plain.named_parameters():
        if parameter.requires_grad:
            torch.testing.assert_close(parameter.grad, theirs[name].grad, rtol=1e-4, atol=1e-5)


def _lengths_batch(lengths, seed=3):
    """Rows of these lengths, each with an image, padded behind; and the positions that are not padding."""
    generator = torch.Generator().manual_seed(seed)
    length = max(lengths)
    input_ids = torch.randint(0, IMAGE_TOKEN, (len(lengths), length), generator=generator)
    labels = torch.randint(0, IMAGE_TOKEN, (len(lengths), length), generator=generator)
    real = torch.arange(length) < torch.tensor(lengths).unsqueeze(1)
    labels[~real] = -100
    starts = torch.arange(len(lengths)).unsqueeze(1) * length + 1
    batch = {
        "input_ids": input_ids,
        "labels": labels,
        "pixel_values": torch.randn(len(lengths), 3, 28, 28, generator=generator),
        "image_positions": (starts + torch.arange(PATCHES)).flatten(),
    }
    return batch, real.flatten().nonzero().squeeze(1)


@pytest.mark.parametrize("options", [{}, {"attention": "eager"}, {"activation_checkpointing": "selective"}])
def test_dropped_padding_changes_neither_loss_nor_gradients(options, make_spec, make_hp):
    padded, dropped = (_llava(make_spec(), make_hp(stage="finetune", **options)) for _ in range(2))
    dropped.apply_activation_checkpointing()
    batch, kept = _lengths_batch([7, 14, 9])
    losses = padded(**batch)[0], dropped(**batch, kept=kept)[0]
    torch.testing.assert_close(losses[0], losses[1], rtol=1e-5, atol=1e-5)
    for loss in losses:
        loss.backward()
    for name, parameter in padded.named_parameters():
        if parameter.requires_grad:
            other = dropped.get_parameter(name).grad
            torch.testing.assert_close(parameter.grad, other, rtol=1e-4, atol=1e-5)


def test_dropped_padding_compiles_for_lengths_that_vary(make_spec, make_hp, monkeypatch):
    # Graphs are what counts: without the code generator this takes a second, and no compiler.
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="eager"))
    torch._dynamo.reset()
    plain, compiled = (_llava(make_spec(), make_hp(stage="finetune", compile=on)) for on in (False, True))
    compiled.compile_blocks()
    counter = torch._dynamo.utils.counters
    counter.clear()
    for seed, lengths in enumerate(([7, 14, 9], [12, 5, 13], [8, 6, 11], [10, 10, 4], [3 + PATCHES, 9, 9])):
        batch, kept = _lengths_batch(lengths, seed)
        loss = compiled(**batch, kept=kept)[0]
        torch.testing.assert_close(loss, plain(**batch)[0], rtol=1e-5, atol=1e-5)
        loss.backward()
        if seed == 2:
            settled = counter["stats"]["unique_graphs"]
    assert counter["stats"]["unique_graphs"] == settled


def _as_llava_hf(tensors):
    """As llava-hf/llava-1.5-13b-hf: ``vision_model`` in the tower's names, and words for images and padding."""
    longer = {
        name: torch.cat((tensor, torch.full((3, tensor.shape[1]), 7.0)))
        if "embed_tokens" in name or "lm_head" in name
        else tensor
        for name, tensor in tensors.items()
    }
    return {name.replace("vision_tower.", "vision_tower.vision_model."): tensor for name, tensor in longer.items()}


def _as_liuhaotian(tensors):
    """As liuhaotian/llava-v1.5-13b."""
    forms = {
        "language_model.model.": "model.",
        "language_model.lm_head.": "lm_head.",
        "multi_modal_projector.linear_1.": "model.mm_projector.0.",
        "multi_modal_projector.linear_2.": "model.mm_projector.2.",
        "vision_tower.": "model.vision_tower.vision_tower.vision_model.",
    }
    return {
        theirs + name.removeprefix(ours): tensor
        for name, tensor in tensors.items()
        for ours, theirs in forms.items()
        if name.startswith(ours)
    }


@pytest.mark.parametrize("form", [dict, _as_llava_hf, _as_liuhaotian])
def test_a_released_checkpoint_loads(form, model, make_spec, make_hp, tmp_path):
    reference = _reference(model)
    reference.save_pretrained(tmp_path)
    file = tmp_path / "model.safetensors"
    saved = load_file(file)
    assert "language_model.model.embed_tokens.weight" in saved
    save_file(form(saved), file)
    loaded = Llava(make_spec(), make_hp(stage="finetune"), VISION)
    load_safetensors(loaded.named_parameters(), tmp_path, place_plain, naming=loaded.naming)
    batch = _batch()
    torch.testing.assert_close(loaded(**batch)[0], _reference_loss(reference, batch), rtol=1e-5, atol=1e-5)


def test_a_checkpoint_of_another_tower_is_refused(model, make_spec, make_hp, tmp_path):
    _reference(model).save_pretrained(tmp_path)
    other = Llava(make_spec(), make_hp(stage="finetune"), VISION.model_copy(update={"num_layers": 6}))
    with pytest.raises(UsageError, match=r"lacks tensor vision_tower\.encoder\.layers\.4"):
        load_safetensors(other.named_parameters(), tmp_path, place_plain, naming=other.naming)


def test_random_biases_are_zero_and_norms_one(model, make_spec):
    initialise_random(model.named_parameters(), make_spec(), 1, place_plain)
    values = dict(model.named_parameters())
    assert values["vision_tower.pre_layrnorm.bias"].abs().sum() == 0
    assert (values["vision_tower.pre_layrnorm.weight"] == 1).all()
    assert values["multi_modal_projector.linear_1.bias"].abs().sum() == 0
    assert values["vision_tower.embeddings.class_embedding"].std() > 0


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_heads": 5}, "hidden_size 32 is not a multiple of num_heads 5"),
        ({"image_size": 30}, "image_size 30 is not a multiple of patch_size 14"),
        ({"feature_layer": -5}, "feature_layer -5 lies before the 4 layers"),
    ],
)
def test_a_tower_that_cannot_be(changes, message):
    with pytest.raises(ValueError, match=message):
        VisionSpec(**VISION.model_dump() | changes)
