// Host memory that stands for a device's, with real accounting; and pinned memory. Included by device.cpp alone.
#pragma once

#include "device.h"

#include <ATen/core/CachingHostAllocator.h>
#include <c10/core/CachingDeviceAllocator.h>

#include <cstdlib>
#include <map>
#include <mutex>
#include <vector>

namespace emulated {
using c10::Device;
using c10::DeviceIndex;
constexpr int kMaxDevices = 16;

DeviceIndex checked(int64_t index);

// ------------------------------------------------------------------------------------------- device memory
// Caching by rounded size; blocks are not split, so what is reserved can exceed what a vendor's would.
class Memory final : public c10::DeviceAllocator {
 public:
  static Memory& get() {
    static auto* kept = new Memory();
    return *kept;
  }
  c10::DataPtr allocate(size_t bytes) override {
    return allocate_on(bytes, current_device());
  }
  c10::DataPtr allocate_on(size_t bytes, DeviceIndex index) {
    Device device(kDevice, checked(index));
    if (bytes == 0)
      return {nullptr, nullptr, &Memory::release, device};
    std::lock_guard<std::mutex> lock(mutex_);
    auto& pool = pools_[index];
    const auto requested = static_cast<int64_t>(bytes);
    const int64_t unit = requested <= (1 << 20) ? 512 : 2 << 20;
    const int64_t size = (requested + unit - 1) / unit * unit;
    auto& free_blocks = pool.free_blocks[size];
    void* pointer = nullptr;
    if (free_blocks.empty()) {
      pointer = reserve(pool, size, requested, index);
    } else {
      pointer = free_blocks.back();
      free_blocks.pop_back();
    }
    count(pool.stats, size, requested, [](auto& stat, int64_t by) { stat.increase(by); });
    auto* block = new Block{pointer, size, requested, index};
    return {pointer, block, &Memory::release, device};
  }
  c10::DeleterFnPtr raw_deleter() const override {
    return &Memory::release;
  }
  void copy_data(void* to, const void* from, size_t bytes) const override {
    std::memcpy(to, from, bytes);
  }
  bool initialized() override {
    return true;
  }
  void emptyCache(c10::MempoolId_t) override {
    std::lock_guard<std::mutex> lock(mutex_);
    for (auto& pool : pools_)
      give_back(pool);
  }
  void recordStream(const c10::DataPtr&, c10::Stream) override {}
  c10::CachingDeviceAllocator::DeviceStats getDeviceStats(DeviceIndex index) override {
    std::lock_guard<std::mutex> lock(mutex_);
    return pools_[checked(index)].stats;
  }
  void resetAccumulatedStats(DeviceIndex index) override {
    std::lock_guard<std::mutex> lock(mutex_);
    auto& stats = pools_[checked(index)].stats;
    each(stats, [](auto& stat) { stat.reset_accumulated(); });
    stats.num_alloc_retries = stats.num_ooms = 0;
  }
  void resetPeakStats(DeviceIndex index) override {
    std::lock_guard<std::mutex> lock(mutex_);
    each(pools_[checked(index)].stats, [](auto& stat) { stat.reset_peak(); });
  }
  std::pair<size_t, size_t> getMemoryInfo(DeviceIndex index) override {
    std::lock_guard<std::mutex> lock(mutex_);
    return {free_bytes(pools_[checked(index)]), settings().capacity_bytes};
  }

 private:
  using Stats = c10::CachingDeviceAllocator::DeviceStats;
  struct Block {
    void* pointer;
    int64_t size;
    int64_t requested;
    DeviceIndex index;
  };
  struct Pool {
    Stats stats;
    std::map<int64_t, std::vector<void*>> free_blocks;  // by size
  };
  std::mutex mutex_;
  std::array<Pool, kMaxDevices> pools_;

  static int64_t free_bytes(const Pool& pool) {
    const auto& of = settings();
    return std::max<int64_t>(0, of.capacity_bytes - of.held_by_others_bytes - pool.stats.reserved_bytes[0].current);
  }
  template <class F>
  static void each(Stats& stats, F change) {
    for (auto* stat :
         {&stats.allocation, &stats.segment, &stats.active, &stats.allocated_bytes, &stats.reserved_bytes,
          &stats.active_bytes, &stats.requested_bytes})
      change((*stat)[0]);
  }
  template <class F>
  static void count(Stats& stats, int64_t size, int64_t requested, F change) {
    change(stats.allocation[0], 1);
    change(stats.active[0], 1);
    change(stats.allocated_bytes[0], size);
    change(stats.active_bytes[0], size);
    change(stats.requested_bytes[0], requested);
  }
  static void give_back(Pool& pool) {
    for (auto& [size, pointers] : pool.free_blocks) {
      for (void* pointer : pointers) {
        std::free(pointer);
        pool.stats.reserved_bytes[0].decrease(size);
        pool.stats.segment[0].decrease(1);
      }
      pointers.clear();
    }
  }
  static void* reserve(Pool& pool, int64_t size, int64_t requested, DeviceIndex index) {
    void* pointer = nullptr;
    if (size > free_bytes(pool)) {
      pool.stats.num_alloc_retries++;
      give_back(pool);
    }
    if (size > free_bytes(pool) || posix_memalign(&pointer, 64, size) != 0) {
      pool.stats.num_ooms++;
      fail(pool, requested, index);
    }
    pool.stats.reserved_bytes[0].increase(size);
    pool.stats.segment[0].increase(1);
    return pointer;
  }
  [[noreturn]] static void fail(const Pool& pool, int64_t requested, DeviceIndex index) {
    auto gib = [](int64_t bytes) {
      char text[32];
      std::snprintf(text, sizeof text, "%.4f GiB", static_cast<double>(bytes) / (1 << 30));
      return std::string(text);
    };
    auto vendor = device_name();
    std::transform(vendor.begin(), vendor.end(), vendor.begin(), ::toupper);
    TORCH_CHECK_WITH(
        OutOfMemoryError, false, vendor, " out of memory. Tried to allocate ", gib(requested), ". Device ",
        int(index), " has a total capacity of ", gib(settings().capacity_bytes), " of which ",
        gib(free_bytes(pool)), " is free.");
    std::abort();  // not reached
  }
  static void release(void* context) {
    auto* block = static_cast<Block*>(context);
    if (block == nullptr)
      return;
    auto& memory = get();
    std::lock_guard<std::mutex> lock(memory.mutex_);
    auto& pool = memory.pools_[block->index];
    count(pool.stats, block->size, block->requested, [](auto& stat, int64_t by) { stat.decrease(by); });
    pool.free_blocks[block->size].push_back(block->pointer);
    delete block;
  }
};

// --------------------------------------------------------------------------------------------- pinned memory
class Pinned final : public at::HostAllocator {
 public:
  static Pinned& get() {
    static auto* kept = new Pinned();
    return *kept;
  }
  c10::DataPtr allocate(size_t bytes) override {
    void* pointer = nullptr;
    TORCH_CHECK(bytes == 0 || posix_memalign(&pointer, 64, bytes) == 0, "out of memory for pinned pages");
    std::lock_guard<std::mutex> lock(mutex_);
    if (pointer != nullptr)
      live_[pointer] = bytes;
    return {pointer, pointer, &Pinned::release, Device(c10::DeviceType::CPU)};
  }
  c10::DeleterFnPtr raw_deleter() const override {
    return &Pinned::release;
  }
  void copy_data(void* to, const void* from, size_t bytes) const override {
    std::memcpy(to, from, bytes);
  }
  bool record_event(void*, void*, c10::Stream) override {
    return true;
  }
  void empty_cache() override {}
  at::HostStats get_stats() override {
    return {};
  }
  void reset_accumulated_stats() override {}
  void reset_peak_stats() override {}
  bool holds(const void* pointer) {
    std::lock_guard<std::mutex> lock(mutex_);
    auto next = live_.upper_bound(pointer);
    if (next == live_.begin())
      return false;
    --next;
    return pointer < static_cast<const char*>(next->first) + next->second;
  }

 private:
  std::mutex mutex_;
  std::map<const void*, size_t> live_;
  static void release(void* pointer) {
    auto& pinned = get();
    {
      std::lock_guard<std::mutex> lock(pinned.mutex_);
      pinned.live_.erase(pointer);
    }
    std::free(pointer);
  }
};

}  // namespace emulated
