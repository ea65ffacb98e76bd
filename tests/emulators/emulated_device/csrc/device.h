// What the parts of the emulated device know of each other. See ../../README.md.
#pragma once

#include <ATen/core/Generator.h>
#include <ATen/core/Tensor.h>

#include <set>
#include <string>

namespace emulated {

constexpr c10::DeviceType kDevice = c10::DeviceType::PrivateUse1;

// What the package that loads this says of itself, once, before anything else is used.
struct Settings {
  int device_count = 1;
  int64_t capacity_bytes = 0;
  int64_t held_by_others_bytes = 0;
  std::set<std::string> missing_operators;
  // What is said, once an operator, when a missing one is computed on the host; empty: it is an error.
  std::string fallback_warning;
};
Settings& settings();

std::string device_name();  // "musa"
c10::DeviceIndex current_device();
void register_device();  // allocators, hooks; the guard registers itself

c10::DataPtr allocate(size_t bytes, c10::DeviceIndex device);
c10::Allocator* allocator();
void resize_storage(const c10::Storage& storage, size_t bytes);
at::Generator& default_generator(c10::DeviceIndex device);  // -1: the current device's
at::Generator& host_generator(const at::Generator& of_device);

// A host tensor in the memory of a tensor of this device; what already is on the host stays.
at::Tensor as_cpu(const at::Tensor& tensor);
inline bool on_device(const at::Tensor& tensor) {
  return tensor.defined() && tensor.device().type() == kDevice;
}

}  // namespace emulated
