// Operators: each runs on the host, in the memory of the device's tensors. And autocast, as on CUDA.
#include "device.h"

#include <ATen/EmptyTensor.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/native/transformers/attention.h>
#include <ATen/native/transformers/sdp_utils_cpp.h>
#include <ATen/ops/_local_scalar_dense.h>
#include <ATen/ops/as_strided_native.h>
#include <ATen/ops/convolution.h>
#include <ATen/ops/convolution_backward.h>
#include <ATen/ops/set_native.h>
#include <ATen/ops/view_native.h>
#include <c10/core/DeviceGuard.h>
#include <torch/library.h>

#include <mutex>

namespace emulated {
using at::Tensor;
using c10::Device;
using c10::IValue;
using torch::jit::Stack;

// ----------------------------------------------------------------------------------------------- tensors
static const c10::DispatchKeySet kKeys(c10::DispatchKey::PrivateUse1);

static Tensor empty_strided(
    at::IntArrayRef size, at::IntArrayRef stride, std::optional<at::ScalarType> dtype, std::optional<at::Layout>,
    std::optional<Device> device, std::optional<bool>) {
  c10::DeviceGuard guard(device.value_or(Device(kDevice)));
  auto type = dtype.value_or(c10::get_default_dtype_as_scalartype());
  return at::detail::empty_strided_generic(size, stride, allocator(), kKeys, type);
}
static Tensor empty(
    at::IntArrayRef size, std::optional<at::ScalarType> dtype, std::optional<at::Layout>,
    std::optional<Device> device, std::optional<bool>, std::optional<at::MemoryFormat> format) {
  c10::DeviceGuard guard(device.value_or(Device(kDevice)));
  auto type = dtype.value_or(c10::get_default_dtype_as_scalartype());
  return at::detail::empty_generic(size, allocator(), kKeys, type, format);
}
// Another view of `storage`, of the shape of `like`.
static Tensor view_of(c10::Storage storage, c10::DispatchKey key, const Tensor& like) {
  auto made = at::detail::make_tensor<c10::TensorImpl>(std::move(storage), c10::DispatchKeySet(key), like.dtype());
  auto* impl = made.unsafeGetTensorImpl();
  impl->set_storage_offset(like.storage_offset());
  impl->set_sizes_and_strides(like.sizes(), like.strides());
  return made;
}
Tensor as_cpu(const Tensor& tensor) {
  if (!on_device(tensor))
    return tensor;
  auto* kept = new c10::Storage(tensor.storage());
  c10::DataPtr data(
      kept->mutable_data(), kept, [](void* storage) { delete static_cast<c10::Storage*>(storage); },
      Device(c10::DeviceType::CPU));
  auto impl = c10::make_intrusive<c10::StorageImpl>(
      c10::StorageImpl::use_byte_size_t(), kept->nbytes(), std::move(data), c10::GetAllocator(c10::DeviceType::CPU),
      /*resizable=*/true);
  auto made = view_of(c10::Storage(std::move(impl)), c10::DispatchKey::CPU, tensor);
  if (tensor.is_conj())
    made._set_conj(true);
  if (tensor.is_neg())
    made._set_neg(true);
  return made;
}
static Tensor to_device(const Tensor& host, Device device) {
  auto made = empty_strided(host.sizes(), host.strides(), host.scalar_type(), {}, device, {});
  as_cpu(made).copy_(host);
  return made;
}

// -------------------------------------------------------------------------- operators that are the device's own
static const Tensor& resize_(const Tensor& self, at::IntArrayRef size, std::optional<at::MemoryFormat> format) {
  auto* impl = self.unsafeGetTensorImpl();
  impl->set_sizes_contiguous(size);
  const size_t needed = (impl->numel() + impl->storage_offset()) * impl->itemsize();
  if (impl->numel() != 0 && needed > self.storage().nbytes())
    resize_storage(self.storage(), needed);
  if (format.has_value() && *format != at::MemoryFormat::Preserve)
    impl->empty_tensor_restride(*format);
  return self;
}
static Tensor copy_from(const Tensor& self, const Tensor& to, bool) {
  as_cpu(to).copy_(as_cpu(self));
  return to;
}
static Tensor copy_from_and_resize(const Tensor& self, const Tensor& to) {
  to.resize_(self.sizes());
  return copy_from(self, to, false);
}
static at::Scalar local_scalar(const Tensor& self) {
  return at::_local_scalar_dense(as_cpu(self));
}
static Tensor& set_storage_offset(
    Tensor& self, at::Storage source, int64_t offset, at::IntArrayRef size, at::IntArrayRef stride) {
  return at::native::set_storage_cpu_(self, std::move(source), offset, size, stride);
}
static Tensor& set_storage(Tensor& self, at::Storage source) {
  const auto count = static_cast<int64_t>(source.nbytes() / self.dtype().itemsize());
  return set_storage_offset(self, std::move(source), 0, {count}, {});
}
static Tensor& set_nothing(Tensor& self) {
  return at::native::set_tensor_(self, empty({0}, self.scalar_type(), {}, self.device(), {}, {}));
}
// torch leaves convolutions to a device's own library.
static Tensor convolution(
    const Tensor& input, const Tensor& weight, const std::optional<Tensor>& bias, at::IntArrayRef stride,
    at::IntArrayRef padding, at::IntArrayRef dilation, bool transposed, at::IntArrayRef output_padding,
    int64_t groups) {
  auto host_bias = bias.has_value() ? std::optional<Tensor>(as_cpu(*bias)) : std::nullopt;
  auto result = at::convolution(
      as_cpu(input), as_cpu(weight), host_bias, stride, padding, dilation, transposed, output_padding, groups);
  return to_device(result, input.device());
}
static std::tuple<Tensor, Tensor, Tensor> convolution_backward(
    const Tensor& gradient, const Tensor& input, const Tensor& weight, at::IntArrayRef stride,
    at::IntArrayRef padding, at::IntArrayRef dilation, bool transposed, at::IntArrayRef output_padding,
    int64_t groups, std::array<bool, 3> wanted) {
  const std::vector<int64_t> bias_size{gradient.size(1)};
  auto [of_input, of_weight, of_bias] = at::convolution_backward(
      as_cpu(gradient), as_cpu(input), as_cpu(weight), at::OptionalIntArrayRef(bias_size), stride, padding, dilation,
      transposed, output_padding, groups, wanted);
  auto back = [&](const Tensor& made) { return made.defined() ? to_device(made, input.device()) : made; };
  return {back(of_input), back(of_weight), back(of_bias)};
}
static void record_stream(Tensor&, c10::Stream) {}
static int64_t attention_kernel(
    const Tensor&, const Tensor&, const Tensor&, const std::optional<Tensor>&, double, bool, std::optional<double>,
    bool) {
  return static_cast<int64_t>(sdp::SDPBackend::math);
}

// --------------------------------------------------------------------------------------- all other operators
// One call of an operator: its tensors' host views in the place of the tensors, and what came out of it back.
class Call {
 public:
  Call(const c10::OperatorHandle& operation, Stack* stack)
      : operation_(operation), schema_(operation.schema()), stack_(stack) {}

  void run() {
    const auto count = schema_.arguments().size();
    const auto first = stack_->size() - count;
    for (size_t i = 0; i < count; ++i)
      move_to_host((*stack_)[first + i], schema_.arguments()[i]);
    const bool indexes = schema_.name().find("index") != std::string::npos;  // takes indices from the host, too
    TORCH_CHECK(
        host_tensors_ == 0 || arguments_.empty() || indexes,
        "Expected all tensors to be on the same device, but found at least two devices, ", *device_, " and cpu! (",
        schema_.name(), ")");
    operation_.redispatchBoxed(c10::DispatchKeySet(c10::DispatchKey::CPU), stack_);
    for (auto& argument : arguments_)
      if (argument.written)
        keep_resized(argument);
    if (!device_)
      return;
    const auto results = schema_.returns().size();
    for (size_t i = stack_->size() - results; i < stack_->size(); ++i)
      map_tensors((*stack_)[i], [this](const Tensor& result) { return back(result); });
  }

 private:
  struct Argument {
    Tensor device, host;
    bool written;
  };
  const c10::OperatorHandle& operation_;
  const c10::FunctionSchema& schema_;
  Stack* stack_;
  std::vector<Argument> arguments_;
  std::optional<Device> device_;
  int host_tensors_ = 0;

  template <class F>
  static void map_tensors(IValue& value, F change) {
    if (value.isTensor()) {
      value = change(value.toTensor());
    } else if (value.isTensorList()) {
      auto tensors = value.toTensorVector();
      for (auto& tensor : tensors)
        tensor = change(tensor);
      value = c10::List<Tensor>(tensors);
    } else if (value.isOptionalTensorList()) {
      c10::List<std::optional<Tensor>> changed;
      for (const std::optional<Tensor> tensor : value.toOptionalTensorList())
        changed.push_back(tensor ? std::optional<Tensor>(change(*tensor)) : std::nullopt);
      value = changed;
    }
  }
  void move_to_host(IValue& value, const c10::Argument& argument) {
    const auto* alias = argument.alias_info();
    const bool written = alias != nullptr && alias->isWrite();
    if (value.isDevice() && value.toDevice().type() == kDevice) {
      take(value.toDevice());
      value = Device(c10::DeviceType::CPU);
    } else if (value.isGenerator() && value.toGenerator().device().type() == kDevice) {
      value = host_generator(value.toGenerator());
    } else if (value.isNone() && argument.type()->str() == "Generator?") {
      value = host_generator(default_generator(device_ ? device_->index() : -1));
    } else {
      map_tensors(value, [&](const Tensor& tensor) { return host_view(tensor, written); });
    }
  }
  void take(Device device) {
    if (!device.has_index())
      device = Device(kDevice, current_device());
    TORCH_CHECK(
        !device_ || *device_ == device,
        "Expected all tensors to be on the same device, but found at least two devices, ", *device_, " and ", device,
        "! (", schema_.name(), ")");
    device_ = device;
  }
  Tensor host_view(const Tensor& tensor, bool written) {
    if (!on_device(tensor)) {
      host_tensors_ += tensor.defined() && tensor.device().is_cpu() && tensor.dim() > 0;
      return tensor;
    }
    take(tensor.device());
    for (auto& argument : arguments_) {
      if (argument.device.is_same(tensor)) {
        argument.written |= written;
        return argument.host;
      }
    }
    arguments_.push_back({tensor, as_cpu(tensor), written});
    return arguments_.back().host;
  }
  // An operator may give a tensor that it writes another shape, and new memory for it.
  static void keep_resized(Argument& argument) {
    const auto &host = argument.host.storage(), &device = argument.device.storage();
    if (host.data() != device.data()) {
      if (host.nbytes() > device.nbytes())
        resize_storage(device, host.nbytes());
      if (host.nbytes() != 0)
        std::memcpy(device.mutable_data(), host.data(), host.nbytes());
    }
    auto* impl = argument.device.unsafeGetTensorImpl();
    if (argument.host.sizes() != argument.device.sizes() || argument.host.strides() != argument.device.strides()) {
      impl->set_storage_offset(argument.host.storage_offset());
      impl->set_sizes_and_strides(argument.host.sizes(), argument.host.strides());
    }
  }
  Tensor back(const Tensor& result) const {
    if (!result.defined() || !result.device().is_cpu())
      return result;
    for (const auto& argument : arguments_)
      if (argument.host.is_same(result))
        return argument.device;
    for (const auto& argument : arguments_)
      if (result.has_storage() && result.storage().is_alias_of(argument.host.storage()))
        return view_of(argument.device.storage(), c10::DispatchKey::PrivateUse1, result);
    return to_device(result, *device_);
  }
};

static void run_on_host(const c10::OperatorHandle& operation, c10::DispatchKeySet, Stack* stack) {
  const auto& missing = settings().missing_operators;
  const auto& name = operation.schema().name();
  if (!missing.empty() && missing.count(name) != 0) {
    const auto& warning = settings().fallback_warning;
    TORCH_CHECK_NOT_IMPLEMENTED(
        !warning.empty(), "Could not run '", c10::toString(operation.operator_name()), "' with arguments from the '",
        device_name(), "' backend. This could be because the operator doesn't exist for this backend.");
    static std::mutex mutex;
    static std::set<std::string> told;
    std::unique_lock<std::mutex> lock(mutex);
    if (told.insert(name).second) {
      lock.unlock();
      TORCH_WARN("The operator '", name, "' ", warning);
    }
  }
  Call(operation, stack).run();
}

TORCH_LIBRARY_IMPL(_, PrivateUse1, m) {
  m.fallback(torch::CppFunction::makeFromBoxedFunction<&run_on_host>());
}
TORCH_LIBRARY_IMPL(aten, PrivateUse1, m) {
  m.impl("empty.memory_format", &empty);
  m.impl("empty_strided", &empty_strided);
  m.impl("as_strided", &at::native::as_strided_tensorimpl);
  m.impl("view", &at::native::view);
  m.impl("resize_", &resize_);
  m.impl("_copy_from", &copy_from);
  m.impl("_copy_from_and_resize", &copy_from_and_resize);
  m.impl("_local_scalar_dense", &local_scalar);
  m.impl("set_.source_Storage_storage_offset", &set_storage_offset);
  m.impl("set_.source_Storage", &set_storage);
  m.impl("set_.source_Tensor", &at::native::set_tensor_);
  m.impl("set_", &set_nothing);
  m.impl("convolution_overrideable", &convolution);
  m.impl("convolution_backward_overrideable", &convolution_backward);
  m.impl("record_stream", &record_stream);
  m.impl("_fused_sdp_choice", &attention_kernel);
}
}  // namespace emulated

namespace at::native {
REGISTER_PRIVATEUSE1_DISPATCH(_fused_sdp_choice_stub, &emulated::attention_kernel)
}
