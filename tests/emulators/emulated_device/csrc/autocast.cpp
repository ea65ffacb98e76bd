// Autocast as CUDA-shaped devices have it: which operators run in the low precision, and which in fp32.
//
// The templates of ATen/autocast_mode.h would do it, too; they take longer to compile than all the rest.
#include "device.h"

#include <ATen/core/dispatch/Dispatcher.h>
#include <torch/library.h>

namespace at::autocast {  // as ATen/autocast_mode.h declares them
TORCH_API ScalarType get_autocast_dtype(DeviceType device);
TORCH_API Tensor cached_cast(ScalarType to, const Tensor& tensor, DeviceType device);
}  // namespace at::autocast

namespace emulated {
using c10::IValue;
using torch::jit::Stack;

enum class To { low, fp32, widest };

static at::ScalarType widest(const Stack& stack, size_t first) {
  for (size_t i = first; i < stack.size(); ++i)
    if (stack[i].isTensor() && stack[i].toTensor().defined() && stack[i].toTensor().scalar_type() == at::kFloat)
      return at::kFloat;
  return at::autocast::get_autocast_dtype(kDevice);
}

template <To to>
static void cast(const c10::OperatorHandle& operation, c10::DispatchKeySet keys, Stack* stack) {
  c10::impl::ExcludeDispatchKeyGuard without(c10::DispatchKey::AutocastPrivateUse1);
  const auto& arguments = operation.schema().arguments();
  const auto first = stack->size() - arguments.size();
  auto type = at::kFloat;
  if (to == To::low)
    type = at::autocast::get_autocast_dtype(kDevice);
  else if (to == To::widest)
    type = widest(*stack, first);
  for (size_t i = 0; i < arguments.size(); ++i) {
    auto& value = (*stack)[first + i];
    if (value.isTensor()) {
      value = at::autocast::cached_cast(type, value.toTensor(), kDevice);
    } else if (value.isTensorList()) {
      auto tensors = value.toTensorVector();
      for (auto& tensor : tensors)
        tensor = at::autocast::cached_cast(type, tensor, kDevice);
      value = c10::List<at::Tensor>(tensors);
    }
  }
  operation.callBoxed(stack);
}

static const char* const kLow[] = {
    "_convolution", "conv1d", "conv2d", "conv3d", "conv_tbc", "convolution", "prelu", "addmm", "addmv", "addr",
    "matmul", "einsum", "mm", "mv", "linear", "addbmm", "baddbmm", "bmm", "chain_matmul",
    "scaled_dot_product_attention"};
static const char* const kFp32[] = {
    "acos", "asin", "cosh", "erfinv", "exp", "expm1", "log", "log10", "log2", "log1p", "reciprocal", "rsqrt",
    "sinh", "tan", "pow.Tensor_Scalar", "pow.Tensor_Tensor", "pow.Scalar", "softplus", "layer_norm",
    "native_layer_norm", "rms_norm", "group_norm", "cosine_similarity", "nll_loss", "kl_div", "l1_loss",
    "smooth_l1_loss", "huber_loss", "mse_loss", "binary_cross_entropy_with_logits", "logsumexp", "prod", "softmax.int",
    "log_softmax.int", "cumprod", "cumsum", "linalg_vector_norm", "sum", "sum.dim_IntList"};
static const char* const kWidest[] = {
    "addcdiv", "addcmul", "atan2", "bilinear", "cross", "dot", "vdot", "index_put", "tensordot", "scatter_add"};

TORCH_LIBRARY_IMPL(_, AutocastPrivateUse1, m) {
  m.fallback(torch::CppFunction::makeFallthrough());
}
TORCH_LIBRARY_IMPL(aten, AutocastPrivateUse1, m) {
  for (const auto* name : kLow)
    m.impl(name, torch::CppFunction::makeFromBoxedFunction<&cast<To::low>>());
  for (const auto* name : kFp32)
    m.impl(name, torch::CppFunction::makeFromBoxedFunction<&cast<To::fp32>>());
  for (const auto* name : kWidest)
    m.impl(name, torch::CppFunction::makeFromBoxedFunction<&cast<To::widest>>());
}
}  // namespace emulated
