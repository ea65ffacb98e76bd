// A collective library under the vendor's name, over gloo; and the Python module.
#include "device.h"

#include <torch/csrc/distributed/c10d/Backend.hpp>
#include <torch/csrc/utils/pybind.h>

namespace emulated {
using Tensors = std::vector<at::Tensor>;
using TensorLists = std::vector<Tensors>;
using c10d::OpType;
using Work = c10::intrusive_ptr<c10d::Work>;

// What gloo does in the memory of `outputs`; `finish` is called once it is done.
class Waiting final : public c10d::Work {
 public:
  Waiting(::emulated::Work work, Tensors outputs, std::function<void()> finish, OpType type, int rank)
      : c10d::Work(rank, type), work_(std::move(work)), outputs_(std::move(outputs)), finish_(std::move(finish)),
        future_(c10::make_intrusive<c10::ivalue::Future>(c10::ListType::create(c10::TensorType::get()))) {}
  bool isCompleted() override {
    return work_->isCompleted();
  }
  bool isSuccess() const override {
    return work_->isSuccess();
  }
  bool wait(std::chrono::milliseconds timeout) override {
    const bool done = work_->wait(timeout);
    std::call_once(finished_, [this] {
      if (finish_)
        finish_();
      future_->markCompleted(c10::IValue(outputs_));
    });
    return done;
  }
  void synchronize() override {
    wait(kNoTimeout);
  }
  Tensors result() override {
    return outputs_;
  }
  c10::intrusive_ptr<c10::ivalue::Future> getFuture() override {
    wait(kNoTimeout);  // a device's future can be used at once, since its stream waits
    return future_;
  }

 private:
  ::emulated::Work work_;
  Tensors outputs_;
  std::function<void()> finish_;
  std::once_flag finished_;
  c10::intrusive_ptr<c10::ivalue::Future> future_;
};

class Library final : public c10d::Backend {
 public:
  Library(c10::intrusive_ptr<c10d::Backend> gloo, std::string name)
      : Backend(gloo->getRank(), gloo->getSize()), gloo_(std::move(gloo)), name_(std::move(name)) {}
  const std::string getBackendName() const override {
    return name_;
  }

  Work broadcast(Tensors& t, const c10d::BroadcastOptions& o) override {
    auto host = on_host(t);
    return waiting(gloo_->broadcast(host, o), t, OpType::BROADCAST);
  }
  Work allreduce(Tensors& t, const c10d::AllreduceOptions& o) override {
    auto host = on_host(t);
    auto summed = o;
    auto finish = mean_of_sum(summed.reduceOp, t);
    return waiting(gloo_->allreduce(host, summed), t, OpType::ALLREDUCE, finish);
  }
  Work allreduce_coalesced(Tensors& t, const c10d::AllreduceCoalescedOptions& o) override {
    auto host = on_host(t);
    auto summed = o;
    auto finish = mean_of_sum(summed.reduceOp, t);
    return waiting(gloo_->allreduce_coalesced(host, summed), t, OpType::ALLREDUCE_COALESCED, finish);
  }
  Work reduce(Tensors& t, const c10d::ReduceOptions& o) override {
    auto host = on_host(t);
    auto summed = o;
    auto finish = mean_of_sum(summed.reduceOp, t);
    return waiting(gloo_->reduce(host, summed), t, OpType::REDUCE, finish);
  }
  Work allgather(TensorLists& out, Tensors& in, const c10d::AllgatherOptions& o) override {
    auto host_out = on_host(out);
    auto host_in = on_host(in);
    return waiting(gloo_->allgather(host_out, host_in, o), flat(out), OpType::ALLGATHER);
  }
  Work _allgather_base(at::Tensor& out, at::Tensor& in, const c10d::AllgatherOptions& o) override {
    auto host_out = on_host(out), host_in = on_host(in);
    return waiting(gloo_->_allgather_base(host_out, host_in, o), {out}, OpType::_ALLGATHER_BASE);
  }
  Work allgather_into_tensor_coalesced(Tensors& out, Tensors& in, const c10d::AllgatherOptions& o) override {
    auto host_out = on_host(out), host_in = on_host(in);
    return waiting(gloo_->allgather_into_tensor_coalesced(host_out, host_in, o), out, OpType::COALESCED);
  }
  Work gather(TensorLists& out, Tensors& in, const c10d::GatherOptions& o) override {
    auto host_out = on_host(out);
    auto host_in = on_host(in);
    return waiting(gloo_->gather(host_out, host_in, o), flat(out), OpType::GATHER);
  }
  Work scatter(Tensors& out, TensorLists& in, const c10d::ScatterOptions& o) override {
    auto host_out = on_host(out);
    auto host_in = on_host(in);
    return waiting(gloo_->scatter(host_out, host_in, o), out, OpType::SCATTER);
  }
  Work reduce_scatter(Tensors& out, TensorLists& in, const c10d::ReduceScatterOptions& o) override {
    auto host_out = on_host(out);
    auto host_in = on_host(in);
    auto summed = o;
    auto finish = mean_of_sum(summed.reduceOp, out);
    return waiting(gloo_->reduce_scatter(host_out, host_in, summed), out, OpType::REDUCE_SCATTER, finish);
  }
  Work _reduce_scatter_base(at::Tensor& out, at::Tensor& in, const c10d::ReduceScatterOptions& o) override {
    auto host_out = on_host(out), host_in = on_host(in);
    auto summed = o;
    auto finish = mean_of_sum(summed.reduceOp, {out});
    return waiting(
        gloo_->_reduce_scatter_base(host_out, host_in, summed), {out}, OpType::_REDUCE_SCATTER_BASE, finish);
  }
  Work reduce_scatter_tensor_coalesced(Tensors& out, Tensors& in, const c10d::ReduceScatterOptions& o) override {
    auto host_out = on_host(out), host_in = on_host(in);
    auto summed = o;
    auto finish = mean_of_sum(summed.reduceOp, out);
    return waiting(
        gloo_->reduce_scatter_tensor_coalesced(host_out, host_in, summed), out, OpType::COALESCED, finish);
  }
  Work alltoall_base(
      at::Tensor& out, at::Tensor& in, std::vector<int64_t>& out_sizes, std::vector<int64_t>& in_sizes,
      const c10d::AllToAllOptions& o) override {
    auto host_out = on_host(out), host_in = on_host(in);
    return waiting(
        gloo_->alltoall_base(host_out, host_in, out_sizes, in_sizes, o), {out}, OpType::ALLTOALL_BASE);
  }
  Work send(Tensors& t, int to, int tag) override {
    auto host = on_host(t);
    return waiting(gloo_->send(host, to, tag), t, OpType::SEND);
  }
  Work recv(Tensors& t, int from, int tag) override {
    auto host = on_host(t);
    return waiting(gloo_->recv(host, from, tag), t, OpType::RECV);
  }
  Work recvAnysource(Tensors& t, int tag) override {
    auto host = on_host(t);
    return waiting(gloo_->recvAnysource(host, tag), t, OpType::RECVANYSOURCE);
  }
  Work barrier(const c10d::BarrierOptions& o) override {
    return waiting(gloo_->barrier(o), {}, OpType::BARRIER);
  }
  void setSequenceNumberForGroup() override {
    gloo_->setSequenceNumberForGroup();
  }
  uint64_t getSequenceNumberForGroup() override {
    return gloo_->getSequenceNumberForGroup();
  }

 private:
  c10::intrusive_ptr<c10d::Backend> gloo_;
  std::string name_;

  at::Tensor on_host(const at::Tensor& tensor) const {
    TORCH_CHECK(
        on_device(tensor), name_, " only takes ", device_name(), " tensors, got one on ", tensor.device());
    return as_cpu(tensor);
  }
  template <class T>
  std::vector<T> on_host(const std::vector<T>& list) const {
    std::vector<T> host;
    for (const auto& item : list)
      host.push_back(on_host(item));
    return host;
  }
  static Tensors flat(const TensorLists& lists) {
    Tensors all;
    for (const auto& list : lists)
      all.insert(all.end(), list.begin(), list.end());
    return all;
  }
  // gloo has no mean: it sums, and this divides.
  std::function<void()> mean_of_sum(c10d::ReduceOp& op, const Tensors& outputs) const {
    if (op != c10d::ReduceOp::AVG)
      return {};
    op = c10d::ReduceOp::SUM;
    return [outputs, ranks = size_] {
      at::NoGradGuard no_grad;
      for (const auto& output : outputs)
        as_cpu(output).div_(ranks);
    };
  }
  Work waiting(Work work, Tensors outputs, OpType type, std::function<void()> finish = {}) const {
    return c10::make_intrusive<Waiting>(std::move(work), std::move(outputs), std::move(finish), type, rank_);
  }
};

}  // namespace emulated

PYBIND11_MODULE(TORCH_EXTENSION_NAME, m) {
  using namespace emulated;
  m.def("register", [](int devices, int64_t capacity_bytes, int64_t held_by_others_bytes,
                       std::set<std::string> missing_operators, std::string fallback_warning) {
    settings() = {devices, capacity_bytes, held_by_others_bytes, std::move(missing_operators),
                  std::move(fallback_warning)};
    register_device();
  });
  m.def("current_device", [] { return static_cast<int>(current_device()); });
  m.def("exchange_device", [](int index) {
    return static_cast<int>(at::globalContext().getAcceleratorHooksInterface(kDevice).exchangeDevice(index));
  });
  m.def("default_generator", [](int index) { return default_generator(static_cast<c10::DeviceIndex>(index)); });
  m.def("collectives", [](c10::intrusive_ptr<c10d::Backend> gloo, std::string name) {
    return c10::intrusive_ptr<c10d::Backend>(
        c10::make_intrusive<Library>(std::move(gloo), std::move(name)));
  });
}
