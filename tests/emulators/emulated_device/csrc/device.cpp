// Device guard, streams and events, generators, and the hooks that torch asks.
#include "device.h"
#include "memory.h"

#include <ATen/CPUGeneratorImpl.h>
#include <ATen/detail/PrivateUse1HooksInterface.h>
#include <c10/core/impl/DeviceGuardImplInterface.h>

#include <chrono>

namespace emulated {
static thread_local DeviceIndex t_current = 0;

Settings& settings() {
  static auto* kept = new Settings();
  return *kept;
}
std::string device_name() {
  return c10::get_privateuse1_backend();
}
c10::DeviceIndex current_device() {
  return t_current;
}
DeviceIndex checked(int64_t index) {
  TORCH_CHECK(
      index >= 0 && index < settings().device_count, device_name(), ": invalid device ordinal ", index);
  return static_cast<DeviceIndex>(index);
}
static DeviceIndex index_of(Device device) {
  return device.has_index() ? device.index() : t_current;
}

// ------------------------------------------------------------------------------------------------- memory
c10::DataPtr allocate(size_t bytes, DeviceIndex index) {
  return Memory::get().allocate_on(bytes, index);
}
c10::Allocator* allocator() {
  return &Memory::get();
}
void resize_storage(const c10::Storage& storage, size_t bytes) {
  auto* impl = storage.unsafeGetStorageImpl();
  auto data = allocate(bytes, impl->device().index());
  const auto kept = std::min(bytes, impl->nbytes());
  if (kept != 0 && impl->data() != nullptr)
    std::memcpy(data.get(), impl->data(), kept);
  impl->set_data_ptr_noswap(std::move(data));
  impl->set_nbytes(bytes);
}

// --------------------------------------------------------------------------- guard, streams, events
// Everything is done when a call returns, so a stream is a number, and an event the time of its recording.
struct Guard final : public c10::impl::DeviceGuardImplInterface {
  using Clock = std::chrono::steady_clock;
  static inline thread_local std::array<c10::StreamId, kMaxDevices> t_streams{};

  c10::DeviceType type() const override {
    return kDevice;
  }
  Device exchangeDevice(Device device) const override {
    auto before = getDevice();
    setDevice(device);
    return before;
  }
  Device getDevice() const override {
    return Device(kDevice, t_current);
  }
  void setDevice(Device device) const override {
    t_current = checked(index_of(device));
  }
  void uncheckedSetDevice(Device device) const noexcept override {
    t_current = index_of(device);
  }
  DeviceIndex deviceCount() const noexcept override {
    return static_cast<DeviceIndex>(settings().device_count);
  }
  c10::Stream stream(DeviceIndex index, c10::StreamId id) const {
    return c10::Stream(c10::Stream::UNSAFE, Device(kDevice, index), id);
  }
  c10::Stream getStream(Device device) const override {
    return stream(index_of(device), t_streams[index_of(device)]);
  }
  c10::Stream getDefaultStream(Device device) const override {
    return stream(index_of(device), 0);
  }
  c10::Stream getNewStream(Device device, int) const override {
    static std::atomic<c10::StreamId> next{1};
    return stream(index_of(device), next++);
  }
  c10::Stream getStreamFromGlobalPool(Device device, bool) const override {
    return getNewStream(device, 0);
  }
  c10::Stream exchangeStream(c10::Stream to) const override {
    auto before = getStream(to.device());
    t_streams[to.device_index()] = to.id();
    return before;
  }
  bool queryStream(const c10::Stream&) const override {
    return true;
  }
  void synchronizeStream(const c10::Stream&) const override {}
  void synchronizeDevice(DeviceIndex) const override {}
  void record(void** event, const c10::Stream&, DeviceIndex, c10::EventFlag) const override {
    if (*event == nullptr)
      *event = new Clock::time_point();
    *static_cast<Clock::time_point*>(*event) = Clock::now();
  }
  void block(void*, const c10::Stream&) const override {}
  bool queryEvent(void*) const override {
    return true;
  }
  void synchronizeEvent(void*) const override {}
  void destroyEvent(void* event, DeviceIndex) const noexcept override {
    delete static_cast<Clock::time_point*>(event);
  }
  double elapsedTime(void* from, void* to, DeviceIndex) const override {
    TORCH_CHECK(from != nullptr && to != nullptr, "both events must be recorded before their time is asked for");
    return std::chrono::duration<double, std::milli>(
               *static_cast<Clock::time_point*>(to) - *static_cast<Clock::time_point*>(from))
        .count();
  }
};
C10_REGISTER_GUARD_IMPL(PrivateUse1, Guard)

// -------------------------------------------------------------------------------------------- generators
// The host's Mersenne twister, one a device: a seed gives what it gives on the CPU.
struct Generator final : public c10::GeneratorImpl {
  explicit Generator(DeviceIndex index, at::Generator host = at::detail::createCPUGenerator())
      : GeneratorImpl(Device(kDevice, index), c10::DispatchKeySet(c10::DispatchKey::PrivateUse1)),
        host(std::move(host)) {}
  at::Generator host;
  void set_current_seed(uint64_t seed) override {
    host.set_current_seed(seed);
  }
  void set_offset(uint64_t offset) override {
    host.set_offset(offset);
  }
  uint64_t get_offset() const override {
    return host.get_offset();
  }
  uint64_t current_seed() const override {
    return host.current_seed();
  }
  uint64_t seed() override {
    return host.seed();
  }
  void set_state(const c10::TensorImpl& state) override {
    host.unsafeGetGeneratorImpl()->set_state(state);
  }
  c10::intrusive_ptr<c10::TensorImpl> get_state() const override {
    return host.unsafeGetGeneratorImpl()->get_state();
  }
  Generator* clone_impl() const override {
    return new Generator(device_.index(), host.clone());
  }
};
at::Generator& default_generator(DeviceIndex index) {
  static auto* generators = [] {
    auto* made = new std::vector<at::Generator>();
    for (int i = 0; i < settings().device_count; ++i)
      made->push_back(at::make_generator<Generator>(static_cast<DeviceIndex>(i)));
    return made;
  }();
  return generators->at(index < 0 ? t_current : index);
}
at::Generator& host_generator(const at::Generator& of_device) {
  return static_cast<Generator*>(of_device.unsafeGetGeneratorImpl())->host;
}

// -------------------------------------------------------------------------------------------------- hooks
struct Hooks final : public at::PrivateUse1HooksInterface {
  bool isBuilt() const override {
    return true;
  }
  bool isAvailable() const override {
    return settings().device_count > 0;
  }
  bool hasPrimaryContext(DeviceIndex) const override {
    return true;
  }
  DeviceIndex deviceCount() const override {
    return static_cast<DeviceIndex>(settings().device_count);
  }
  void setCurrentDevice(DeviceIndex index) const override {
    t_current = checked(index);
  }
  DeviceIndex getCurrentDevice() const override {
    return t_current;
  }
  DeviceIndex exchangeDevice(DeviceIndex index) const override {
    const auto before = t_current;
    if (index >= 0)
      setCurrentDevice(index);
    return before;
  }
  DeviceIndex maybeExchangeDevice(DeviceIndex index) const override {
    return exchangeDevice(index);
  }
  const at::Generator& getDefaultGenerator(DeviceIndex index) const override {
    return default_generator(index);
  }
  at::Generator getNewGenerator(DeviceIndex index) const override {
    return at::make_generator<Generator>(index < 0 ? t_current : index);
  }
  bool isPinnedPtr(const void* pointer) const override {
    return Pinned::get().holds(pointer);
  }
  at::Allocator* getPinnedMemoryAllocator() const override {
    return &Pinned::get();
  }
  void resizePrivateUse1Bytes(const c10::Storage& storage, size_t bytes) const override {
    resize_storage(storage, bytes);
  }
};

void register_device() {
  c10::SetAllocator(kDevice, &Memory::get());
  at::setHostAllocator(kDevice, &Pinned::get(), 10);
  at::RegisterPrivateUse1HooksInterface(new Hooks());
}

}  // namespace emulated
