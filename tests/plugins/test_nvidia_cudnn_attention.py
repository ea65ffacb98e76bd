"""cuDNN's attention with ALiBi: what the plugin asks cuDNN's frontend for, and its numbers on a real GPU."""

import math
import sys
from types import SimpleNamespace

import pytest

from core.errors import DeviceError, UsageError
from core.plugins import load_alone

torch = pytest.importorskip("torch")

from core.models.attention import alibi_slopes
from plugins.nvidia import cudnn_attention
from tests.core.models.conftest import tiny_hp, tiny_model, tiny_spec


@pytest.fixture
def vendor():
    from core import defaults

    return load_alone("nvidia", "accelmark", defaults)


@pytest.fixture
def make_alibi_plan():
    """What ``build_model`` reads of a plan."""

    def make(precision="bf16", attention="vendor", spec=None):
        hp = tiny_hp(precision=precision, attention=attention)
        model = tiny_spec("baichuan2", **spec or {})
        return SimpleNamespace(model=model, hyper_parameters=hp, engine="torch", vision=None, lora=None)

    return make


def build(vendor, plan):
    return vendor.build_model(SimpleNamespace(), plan, SimpleNamespace(), 0)


def test_the_model_of_such_a_plan_attends_by_cudnn(vendor, make_alibi_plan):
    model = build(vendor, make_alibi_plan())
    assert model.model.contexts.kernel is cudnn_attention.attend
    other = build(vendor, make_alibi_plan(attention="flex"))
    assert other.model.contexts.kernel is None


@pytest.fixture
def absent(monkeypatch):
    monkeypatch.setattr("plugins.nvidia.find_spec", lambda name: None)


@pytest.mark.parametrize(
    ("changes", "what", "kind"),
    [
        ({"spec": {"position": "rope"}}, "is not for a model without it", "sdpa"),
        ({"precision": "tf32"}, "is for 16 bits, not tf32", "flex"),
        ({"spec": {"hidden_size": 72}}, "takes heads of up to 128 channels, a multiple of 8, not 12", "flex"),
        ({"spec": {"hidden_size": 6 * 192}}, "a multiple of 8, not 192", "flex"),
    ],
)  # fmt: skip
@pytest.mark.usefixtures("absent")
def test_what_cudnn_cannot_do_is_told(vendor, make_alibi_plan, changes, what, kind):
    with pytest.raises(UsageError, match=what) as raised:
        vendor.prepare_engine(make_alibi_plan(**changes), SimpleNamespace())
    assert raised.value.fix == f"use attention '{kind}'"


@pytest.mark.usefixtures("absent")
def test_a_missing_frontend_is_told(vendor, make_alibi_plan, monkeypatch):
    with pytest.raises(DeviceError, match="its frontend is not installed") as raised:
        vendor.prepare_engine(make_alibi_plan(), SimpleNamespace())
    assert raised.value.fix == "pip install nvidia-cudnn-frontend, or use attention 'flex'"
    vendor.prepare_engine(make_alibi_plan(attention="flex"), SimpleNamespace())
    monkeypatch.setattr("plugins.nvidia.find_spec", lambda name: object())
    vendor.prepare_engine(make_alibi_plan(), SimpleNamespace())


def states(batch=2, heads=6, length=20, size=8, **kind):
    """Query, key and value as products leave them: parts of one tensor, heads inside."""
    packed = torch.randn(batch, length, 3, heads, size, **kind)
    return [part.transpose(1, 2) for part in packed.unbind(2)]


def test_results_lie_as_the_next_product_takes_them():
    given = [part.requires_grad_() for part in states(device="meta", dtype=torch.bfloat16)]
    out, statistics = torch.ops.accelmark.cudnn_alibi(*given)
    assert out.shape == (2, 6, 20, 8)
    assert out.transpose(1, 2).is_contiguous()
    assert (statistics.shape, statistics.dtype) == ((2, 6, 20, 1), torch.float32)
    gradients = torch.autograd.grad(out.sum(), given)
    assert all(gradient.transpose(1, 2).is_contiguous() for gradient in gradients)


class Tensor:
    """cudnn-frontend's, a chain of setters."""

    def __init__(self, **known):
        vars(self).update(known)

    def __getattr__(self, name):
        def told(value):
            setattr(self, name.removeprefix("set_"), value)
            return self

        return told


class Graph:
    """cudnn-frontend's graph as far as it is called."""

    made: list["Graph"] = []

    def __init__(self, **options):
        self.options, self.asked, self.outputs, self.executed = options, {}, [], []
        Graph.made.append(self)

    def tensor(self, dim, stride, data_type):
        return Tensor(dim=dim, stride=stride, data_type=data_type)

    def sdpa(self, **asked):
        return self._found(asked, 2)

    def sdpa_backward(self, **asked):
        return self._found(asked, 3)

    def _found(self, asked, count):
        self.asked, self.outputs = asked, [Tensor() for _ in range(count)]
        return self.outputs

    def build(self, modes):
        self.modes = modes

    def get_workspace_size(self):
        return 64

    def execute(self, given, workspace, handle):
        self.executed.append((list(given.values()), workspace.numel(), handle))


@pytest.fixture
def frontend(monkeypatch):
    """A frontend that notes what is asked of it, and a CPU in the place of a GPU."""
    streams: list[tuple[str, int]] = []
    frontend = SimpleNamespace(
        pygraph=Graph,
        data_type=SimpleNamespace(BFLOAT16="bf16", HALF="fp16", FLOAT="fp32"),
        heur_mode=SimpleNamespace(A="A", FALLBACK="fallback"),
        create_handle=lambda: "a handle",
        set_stream=lambda handle, stream: streams.append((handle, stream)),
        streams=streams,
    )
    monkeypatch.setitem(sys.modules, "cudnn", frontend)
    monkeypatch.setattr(torch.cuda, "device", lambda index: torch.device("cpu"))
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: SimpleNamespace(cuda_stream=7))
    caches = (cudnn_attention._handle, cudnn_attention._plan_forward, cudnn_attention._plan_backward)
    for cache in caches:
        cache.cache_clear()
    Graph.made = []
    yield frontend
    for cache in caches:
        cache.cache_clear()


def test_cudnn_is_asked_for_causal_attention_with_alibi(frontend):
    query, key, value = states(size=64, dtype=torch.bfloat16)
    out, statistics = cudnn_attention.forward._init_fn(query, key, value)
    (graph,) = Graph.made
    assert graph.options["handle"] == "a handle"
    assert (graph.options["io_data_type"], graph.options["compute_data_type"]) == ("bf16", "fp32")
    asked = graph.asked["q"]
    assert (asked.dim, asked.stride, asked.data_type) == ([2, 6, 20, 64], list(query.stride()), "bf16")
    assert (graph.asked["attn_scale"], graph.asked["generate_stats"]) == (1 / 8, True)
    assert graph.asked["use_causal_mask"]
    assert graph.asked["use_alibi_mask"]
    assert [output.data_type for output in graph.outputs] == ["bf16", "fp32"]
    assert graph.outputs[0].stride == list(out.stride())
    ((given, workspace_bytes, handle),) = graph.executed
    assert all(one is other for one, other in zip(given, (query, key, value, out, statistics), strict=True))
    assert (workspace_bytes, handle) == (64, "a handle")
    assert frontend.streams == [("a handle", 7)]


def test_a_shape_is_planned_once(frontend):
    for length in (20, 20, 24, 20):
        query, key, value = states(length=length, dtype=torch.float16)
        out, statistics = cudnn_attention.forward._init_fn(query, key, value)
        cudnn_attention.backward._init_fn([query, key, value, out, statistics, out])
    assert [list(graph.asked)[:3] for graph in Graph.made] == [["q", "k", "v"]] * 4
    assert [len(graph.executed) for graph in Graph.made] == [3, 3, 1, 1]


def test_gradients_are_asked_for_in_cudnns_order(frontend):
    query, key, value = states(dtype=torch.bfloat16)
    out, statistics = cudnn_attention._results(query)
    gradients = cudnn_attention.backward._init_fn([query, key, value, out, statistics, out])
    (graph,) = Graph.made
    assert graph.asked["stats"].data_type == "fp32"
    assert graph.asked["dO"].stride == list(out.stride())
    assert graph.asked["use_alibi_mask"]
    ((given, _, _),) = graph.executed
    assert all(one is other for one, other in zip(given[-3:], gradients, strict=True))


def test_a_gradient_that_was_broadcast_gets_rows_to_read(frontend):
    query, key, value = states(dtype=torch.bfloat16)
    out, statistics = cudnn_attention._results(query)
    given = SimpleNamespace(saved_tensors=(query, key, value, out, statistics))
    asked = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cudnn_attention, "backward", asked.append)
        cudnn_attention._differentiate(given, torch.ones((), dtype=out.dtype).expand(out.shape), None)
    assert asked[0][-1].stride() == out.stride()
    assert asked[0][-1].eq(1).all()


@pytest.fixture
def gpu():
    if not torch.cuda.is_available():
        pytest.skip("needs an NVIDIA GPU")
    pytest.importorskip("cudnn", reason="needs nvidia-cudnn-frontend")
    return torch.device("cuda")


def exact(query, key, value):
    """In fp32, with scores written out."""
    heads, length = query.shape[1:3]
    position = torch.arange(length, device=query.device, dtype=torch.float32)
    bias = torch.tensor(alibi_slopes(heads), device=query.device)[:, None, None] * (position - position[:, None])
    bias = bias.masked_fill(position > position[:, None], -math.inf)
    scores = query.float() @ key.float().transpose(-2, -1) / math.sqrt(query.shape[-1]) + bias
    return torch.softmax(scores, dim=-1) @ value.float()


@pytest.mark.gpu
@pytest.mark.parametrize(("heads", "length", "size"), [(6, 300, 64), (8, 128, 16), (40, 2048, 128)])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_cudnn_computes_alibi_as_the_paper_has_it(gpu, heads, length, size, dtype):
    torch.manual_seed(3)
    given = [part.detach().requires_grad_() for part in states(2, heads, length, size, device=gpu, dtype=dtype)]
    out, expected = cudnn_attention.attend(*given, None), exact(*given)
    gradient = torch.randn_like(expected)
    found = torch.autograd.grad(out, given, gradient.to(dtype))
    wanted = torch.autograd.grad(expected, given, gradient)
    for one, other in zip((out, *found), (expected, *wanted), strict=True):
        assert (one.float() - other.float()).norm() / other.float().norm() < 1e-2


@pytest.mark.gpu
@pytest.mark.parametrize("checkpointing", ["none", "selective", "full"])
def test_compiled_blocks_attend_by_cudnn(gpu, checkpointing):
    spec = {"num_heads": 6, "hidden_size": 384}
    batch = torch.randint(0, 97, (2, 2, 60), generator=torch.Generator().manual_seed(3)).to(gpu)
    gradients = {}
    for attention in ("vendor", "eager"):
        hp = {"attention": attention, "compile": attention == "vendor", "activation_checkpointing": checkpointing}
        model = tiny_model("baichuan2", spec=spec, deviation=0.05, **hp).to(gpu, torch.bfloat16)
        if attention == "vendor":
            model.use_attention(cudnn_attention.attend, torch.ops.accelmark.cudnn_alibi.default)
        objective, _ = model(*batch)
        objective.backward()
        gradients[attention] = {name: parameter.grad.float() for name, parameter in model.named_parameters()}
    for name, expected in gradients["eager"].items():
        assert (gradients["vendor"][name] - expected).norm() / expected.norm() < 5e-2, name
