"""Initial weights: random ones that depend on seed and name only, and those of a checkpoint."""

from __future__ import annotations

import json

import pytest

torch = pytest.importorskip("torch")
safetensors_torch = pytest.importorskip("safetensors.torch")

from core.errors import UsageError
from core.models.initialise import (
    count_parameters,
    initialise_random,
    load_safetensors,
    parameter_seed,
    place_dtensor,
    place_plain,
)

pytestmark = pytest.mark.timeout(120)
INDEX = "model.safetensors.index.json"
EMBEDDING = "model.embed_tokens.weight"


def _random_state(model, seed=7, **options):
    initialise_random(model.named_parameters(), model.spec, seed, place_plain, **options)
    return {name: value.clone() for name, value in model.state_dict().items()}


@pytest.fixture
def mesh():
    """A device mesh of one rank, without a network."""
    import torch.distributed as dist

    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield dist.device_mesh.init_device_mesh("cpu", (1,))
    dist.destroy_process_group()


def test_norms_are_one_and_the_rest_is_normal(make_model):
    state = _random_state(make_model(spec={"initializer_range": 0.05}))
    for name, value in state.items():
        if "norm" in name:
            assert torch.equal(value, torch.ones_like(value)), name
        else:
            assert value.std().item() == pytest.approx(0.05, rel=0.1), name
            assert abs(value.mean().item()) < 0.005, name


def test_values_depend_on_seed_and_name_only(make_model):
    model = make_model()
    state = _random_state(model)
    reverse = make_model()
    shapes = {name: parameter.shape for name, parameter in model.named_parameters()}
    initialise_random(reversed(list(reverse.named_parameters())), model.spec, 7, place_plain, shapes=shapes)
    for name, value in reverse.state_dict().items():
        assert torch.equal(value, state[name]), name
    assert not torch.equal(state[EMBEDDING], state["lm_head.weight"])
    assert not torch.equal(state[EMBEDDING], _random_state(model, seed=8)[EMBEDDING])


def test_a_parameters_seed_is_the_same_in_every_process():
    """Python's own hash() of a string is not."""
    assert parameter_seed(7, EMBEDDING) == 992505588200907821
    assert parameter_seed(71, EMBEDDING) != parameter_seed(7, EMBEDDING)


def test_half_precision_is_the_rounded_fp32(make_model):
    state = _random_state(make_model())
    for name, value in _random_state(make_model().to(torch.bfloat16)).items():
        assert torch.equal(value, state[name].to(torch.bfloat16)), name


def test_a_parameter_that_hides_its_shape_gets_the_one_given(make_model):
    """As under ZeRO stage 3, where a parameter between two uses is empty."""
    model = make_model()
    state = _random_state(model)
    seen = {}
    initialise_random(
        [(EMBEDDING, torch.nn.Parameter(torch.empty(0)))],
        model.spec,
        7,
        lambda parameter, full: seen.update({EMBEDDING: full}),
        shapes={EMBEDDING: state[EMBEDDING].shape},
        device=torch.device("cpu"),
    )
    assert torch.equal(seen[EMBEDDING], state[EMBEDDING])


# Each rank in a world of its own size: DTensor remembers a mesh's layout by its shape for the process.
@pytest.mark.parametrize(("rank", "world"), [(0, 2), (1, 3), (2, 4), (6, 7)])
@pytest.mark.parametrize("dimension", [0, 1])
def test_place_dtensor_copies_this_ranks_part(rank, world, dimension):
    """With a process group that cannot communicate; neither 97 nor 6 divides evenly, rank 6 can be empty."""
    import torch.distributed as dist
    from torch.distributed.tensor import DTensor, Shard
    from torch.testing._internal.distributed.fake_pg import FakeStore

    full = torch.arange(97 * 6, dtype=torch.float32).reshape(97, 6)
    expected = full.chunk(world, dim=dimension)
    part = expected[rank] if rank < len(expected) else full.narrow(dimension, 0, 0)
    local = torch.full_like(part, -1.0, dtype=torch.bfloat16)
    dist.init_process_group("fake", store=FakeStore(), rank=rank, world_size=world)
    try:
        mesh = dist.device_mesh.init_device_mesh("cpu", (world,))
        layout = {"shape": full.shape, "stride": full.stride(), "run_check": False}
        sharded = DTensor.from_local(local, mesh, [Shard(dimension)], **layout)
        place_dtensor(torch.nn.Parameter(sharded), full)
    finally:
        dist.destroy_process_group()
    assert torch.equal(local, part.to(torch.bfloat16))


def test_a_sharded_model_gets_the_values_of_a_plain_one(make_model, mesh, batch):
    from torch.distributed.fsdp import fully_shard

    plain = make_model()
    state = _random_state(plain)
    with torch.device("meta"):
        sharded = type(plain)(plain.spec, plain.hp)
    for block in sharded.blocks:
        fully_shard(block, mesh=mesh)
    fully_shard(sharded, mesh=mesh)
    sharded.to_empty(device="cpu")
    initialise_random(sharded.named_parameters(), plain.spec, 7, place_dtensor)
    for name, parameter in sharded.named_parameters():
        assert torch.equal(parameter.full_tensor(), state[name]), name
    assert torch.equal(sharded(*batch)[0], plain(*batch)[0])


def test_counts(make_model):
    model = make_model()
    assert count_parameters(model).embedding == 2 * 97 * 48
    assert count_parameters(model).total == sum(parameter.numel() for parameter in model.parameters())
    assert count_parameters(model).trainable == count_parameters(model).total
    model.model.embed_tokens.weight.requires_grad_(False)
    assert count_parameters(model).trainable == count_parameters(model).total - 97 * 48


def _write(folder, state, *, parts=1):
    """A checkpoint as they are released: one file, or several with an index."""
    if parts == 1:
        safetensors_torch.save_file(state, folder / "model.safetensors")
        return
    weight_map = {name: f"model-{number % parts}.safetensors" for number, name in enumerate(state)}
    for file in set(weight_map.values()):
        part = {name: state[name] for name in state if weight_map[name] == file}
        safetensors_torch.save_file(part, folder / file)
    (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))


def _load(model, folder):
    load_safetensors(model.named_parameters(), folder, place_plain)


@pytest.mark.parametrize("parts", [1, 3])
@pytest.mark.parametrize("model", ["llama", "baichuan2"])
def test_safetensors_round_trip(make_model, tmp_path, parts, model):
    state = _random_state(make_model(model))
    buffers = {"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(4)}
    _write(tmp_path, state | buffers, parts=parts)
    loaded = make_model(model)
    _load(loaded, tmp_path)
    for name, value in loaded.state_dict().items():
        assert torch.equal(value, state[name]), name


def _without(state):
    del state[EMBEDDING]


def _with_another(state):
    state["model.layers.9.mlp.up_proj.weight"] = torch.ones(2)


def _wrong_shape(state):
    state[EMBEDDING] = state[EMBEDDING][1:].clone()


def _quantised(state):
    state[EMBEDDING] = state[EMBEDDING].to(torch.int8)


@pytest.mark.parametrize("parts", [1, 3])
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_without, "lacks tensor model.embed_tokens.weight"),
        (_with_another, "holds an unexpected tensor model.layers.9.mlp.up_proj.weight"),
        (_wrong_shape, r"safetensors: tensor model.embed_tokens.weight has shape \[96, 48\].* needs \[97, 48\]"),
        (_quantised, "safetensors: tensor model.embed_tokens.weight is of type I8"),
    ],
)
def test_a_checkpoint_of_another_model_is_refused_untouched(make_model, tmp_path, parts, change, message):
    model = make_model()
    state = _random_state(model)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    change(state)
    _write(tmp_path, state, parts=parts)
    with pytest.raises(UsageError, match=message) as raised:
        _load(model, tmp_path)
    assert str(tmp_path) in raised.value.what
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_several_missing_tensors_are_counted(make_model, tmp_path):
    _write(tmp_path, {EMBEDDING: torch.ones(97, 48)})
    with pytest.raises(UsageError, match=r"lacks tensor lm_head.weight and 28 more"):
        _load(make_model(), tmp_path)


def test_a_folder_without_weights_is_refused(make_model, tmp_path):
    with pytest.raises(UsageError, match=r"holds 0 \*.safetensors files and no model.safetensors.index.json"):
        _load(make_model(), tmp_path)


def test_a_damaged_file_is_refused(make_model, tmp_path):
    (tmp_path / "model.safetensors").write_bytes(b"\x80\x02not a tensor")
    with pytest.raises(UsageError, match=r"model.safetensors cannot be read as safetensors"):
        _load(make_model(), tmp_path)


def test_a_missing_part_is_refused(make_model, tmp_path):
    _write(tmp_path, _random_state(make_model()), parts=3)
    (tmp_path / "model-1.safetensors").unlink()
    with pytest.raises(UsageError, match=r"model-1.safetensors cannot be read as safetensors"):
        _load(make_model(), tmp_path)


@pytest.mark.parametrize("text", ["{", "[]", '{"weight_map": []}', '{"weight_map": {"a": 1}}', "{}"])
def test_a_damaged_index_is_refused(make_model, tmp_path, text):
    (tmp_path / INDEX).write_text(text)
    with pytest.raises(UsageError, match="is no safetensors index"):
        _load(make_model(), tmp_path)


def test_an_index_that_names_the_wrong_file_is_refused(make_model, tmp_path):
    _write(tmp_path, _random_state(make_model()), parts=3)
    index = json.loads((tmp_path / INDEX).read_text())
    index["weight_map"][EMBEDDING] = "model-1.safetensors"
    (tmp_path / INDEX).write_text(json.dumps(index))
    with pytest.raises(UsageError, match=r"model-1.safetensors lacks tensor model.embed_tokens.weight"):
        _load(make_model(), tmp_path)


def test_an_index_cannot_reach_out_of_its_folder(make_model, tmp_path):
    inside = tmp_path / "inside"
    inside.mkdir()
    _write(tmp_path, _random_state(make_model()))
    weight_map = dict.fromkeys(make_model().state_dict(), "../model.safetensors")
    (inside / INDEX).write_text(json.dumps({"weight_map": weight_map}))
    with pytest.raises(UsageError, match=r"inside/model.safetensors cannot be read"):
        _load(make_model(), inside)


def test_tensors_that_other_ranks_read_must_be_there_too(tmp_path, make_model):
    model = make_model()
    safetensors_torch.save_file(model.state_dict(), tmp_path / "model.safetensors")
    (first, parameter), *rest = model.named_parameters()
    others = [name for name, _ in rest]
    load_safetensors([(first, parameter)], tmp_path, place_plain, elsewhere=others)
    with pytest.raises(UsageError, match="holds an unexpected tensor"):
        load_safetensors([(first, parameter)], tmp_path, place_plain, elsewhere=others[1:])
    with pytest.raises(UsageError, match="lacks tensor nowhere"):
        load_safetensors([(first, parameter)], tmp_path, place_plain, elsewhere=[*others, "nowhere"])
