// A pretended accelerator for tests: the device "toy", whose memory is the CPU's by another name.
//
// Whatever torch can do on a CPU works on it, by copies, so results can be compared with the CPU's;
// an operation that is given tensors of both devices fails, as it would on a GPU.

#include <ATen/ATen.h>
#include <ATen/EmptyTensor.h>
#include <ATen/detail/PrivateUse1HooksInterface.h>
#include <ATen/native/CPUFallback.h>
#include <ATen/native/Resize.h>
#include <ATen/ops/_reshape_alias_native.h>
#include <ATen/ops/as_strided_native.h>
#include <ATen/ops/resize_native.h>
#include <ATen/ops/set_native.h>
#include <ATen/ops/unfold_native.h>
#include <ATen/ops/view_native.h>
#include <c10/core/impl/DeviceGuardImplInterface.h>
#include <torch/library.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <string>

namespace {

using at::Tensor;
using c10::IntArrayRef;
using c10::SymIntArrayRef;

const c10::Device kToy(c10::DeviceType::PrivateUse1, 0);
const c10::DispatchKeySet kKeys(c10::DispatchKey::PrivateUse1);
const c10::Stream kStream(c10::Stream::DEFAULT, kToy);

// --- what torch asks of every device -------------------------------------------------------------

struct Guard final : c10::impl::DeviceGuardImplInterface {
  static constexpr c10::DeviceType static_type = c10::DeviceType::PrivateUse1;
  Guard() = default;
  explicit Guard(c10::DeviceType) {}
  c10::DeviceType type() const override { return static_type; }
  c10::Device exchangeDevice(c10::Device) const override { return kToy; }
  c10::Device getDevice() const override { return kToy; }
  void setDevice(c10::Device) const override {}
  void uncheckedSetDevice(c10::Device) const noexcept override {}
  c10::Stream getStream(c10::Device) const noexcept override { return kStream; }
  c10::Stream exchangeStream(c10::Stream) const noexcept override { return kStream; }
  c10::DeviceIndex deviceCount() const noexcept override { return 1; }
  void record(void**, const c10::Stream&, c10::DeviceIndex, c10::EventFlag) const override {}
  void block(void*, const c10::Stream&) const override {}
  bool queryEvent(void*) const override { return true; }
  void destroyEvent(void*, c10::DeviceIndex) const noexcept override {}
};
C10_REGISTER_GUARD_IMPL(PrivateUse1, Guard);

struct Memory final : at::Allocator {
  at::DataPtr allocate(size_t bytes) override {
    void* data = bytes ? std::malloc(bytes) : nullptr;
    TORCH_CHECK(data || !bytes, "no memory for ", bytes, " bytes");
    return {data, data, &std::free, kToy};
  }
  at::DeleterFnPtr raw_deleter() const override { return &std::free; }
  void copy_data(void* to, const void* from, size_t bytes) const override {
    std::memcpy(to, from, bytes);
  }
} memory;
REGISTER_ALLOCATOR(c10::DeviceType::PrivateUse1, &memory);

struct Hooks final : at::PrivateUse1HooksInterface {
  bool hasPrimaryContext(c10::DeviceIndex) const override { return true; }
  bool isAvailable() const override { return true; }
  bool isBuilt() const override { return true; }
  at::Device getDeviceFromPtr(void*) const override { return kToy; }
  void init() const override {}
  void resizePrivateUse1Bytes(const c10::Storage& storage, size_t bytes) const override {
    auto data = memory.allocate(bytes);
    if (bytes && storage.data())
      std::memcpy(data.get(), storage.data(), std::min(bytes, storage.nbytes()));
    auto& grown = const_cast<c10::Storage&>(storage);
    grown.set_data_ptr(std::move(data));
    grown.set_nbytes(bytes);
  }
};
const bool hooked = (at::RegisterPrivateUse1HooksInterface(new Hooks()), true);

// --- memory and views ----------------------------------------------------------------------------

// The same memory as a tensor of the CPU.
Tensor host(const Tensor& t) {
  if (!t.defined() || t.device().is_cpu()) return t;
  TORCH_CHECK(!t.is_conj() && !t.is_neg(), "the toy has no lazy conjugates");
  auto options = at::TensorOptions().dtype(t.dtype()).device(at::kCPU);
  auto* data = static_cast<char*>(t.storage().mutable_data());
  if (!data) return at::empty_strided(t.sizes(), t.strides(), options);  // of no elements
  return at::from_blob(data + t.storage_offset() * t.element_size(), t.sizes(), t.strides(),
                       options);
}

Tensor empty(IntArrayRef size, std::optional<at::ScalarType> dtype, std::optional<at::Layout>,
             std::optional<at::Device>, std::optional<bool>,
             std::optional<at::MemoryFormat> format) {
  return at::detail::empty_generic(size, &memory, kKeys, c10::dtype_or_default(dtype), format);
}

Tensor empty_strided(IntArrayRef size, IntArrayRef stride, std::optional<at::ScalarType> dtype,
                     std::optional<at::Layout>, std::optional<at::Device>, std::optional<bool>) {
  return at::detail::empty_strided_generic(size, stride, &memory, kKeys,
                                           c10::dtype_or_default(dtype));
}

Tensor copy_from(const Tensor& from, const Tensor& to, bool) {
  host(to).copy_(host(from));
  return to;
}

Tensor copy_from_and_resize(const Tensor& from, const Tensor& to) {
  if (to.sizes() != from.sizes()) to.resize_(from.sizes());
  return copy_from(from, to, false);
}

at::Scalar local_scalar(const Tensor& t) { return host(t).item(); }

Tensor as_strided(const Tensor& t, IntArrayRef size, IntArrayRef stride,
                  std::optional<int64_t> offset) {
  return at::native::as_strided_tensorimpl(t, size, stride, offset);
}

Tensor view(const Tensor& t, SymIntArrayRef size) {
  return at::native::view(t, C10_AS_INTARRAYREF_SLOW(size));
}

Tensor& set_storage(Tensor& t, at::Storage storage) {
  int64_t n = storage.nbytes() / t.dtype().itemsize();
  return at::native::set_storage_cpu_(t, std::move(storage), 0, {n}, {});
}

Tensor& set_storage_part(Tensor& t, at::Storage storage, int64_t offset, IntArrayRef size,
                         IntArrayRef stride) {
  return at::native::set_storage_cpu_(t, std::move(storage), offset, size, stride);
}

// --- operations ----------------------------------------------------------------------------------

void check(int here, int cpu, const std::string& name) {
  TORCH_CHECK(!(here && cpu), "mixed devices in ", name, ": ", here, " tensors on toy, ", cpu,
              " on the CPU");
}

void check(at::ArrayRef<Tensor> tensors, const std::string& name) {
  auto cpu = std::count_if(tensors.begin(), tensors.end(),
                           [](const Tensor& t) { return t.defined() && t.device().is_cpu(); });
  check(static_cast<int>(tensors.size() - cpu), static_cast<int>(cpu), name);
}

// As on a GPU, indices may lie on the CPU, and so may numbers (tensors of no dimension); these pass
// here for every operation, also for the few that would refuse them there.
void fallback(const c10::OperatorHandle& op, torch::jit::Stack* stack) {
  auto name = c10::toString(op.operator_name());
  bool indices = name.find("index.Tensor") != std::string::npos ||
                 name.find("index_put") != std::string::npos;
  int here = 0, cpu = 0;
  auto count = [&](const Tensor& t) {
    if (t.defined() && !t.device().is_cpu()) ++here;
    else if (t.defined() && t.dim() > 0) ++cpu;
  };
  auto size = op.schema().arguments().size();
  for (size_t i = 0; i < size; ++i) {
    auto& value = (*stack)[stack->size() - size + i];
    if (value.isTensor()) count(value.toTensor());
    if (value.isTensorList()) for (const auto& t : value.toTensorVector()) count(t);
    if (value.isOptionalTensorList() && !indices)
      for (const auto& t : value.toOptionalTensorVector()) if (t) count(*t);
  }
  check(here, cpu, name);
  at::native::cpu_fallback(op, stack);
}

Tensor back(const Tensor& t) { return t.defined() ? t.to(kToy) : t; }

Tensor convolution(const Tensor& x, const Tensor& weight, const std::optional<Tensor>& bias,
                   SymIntArrayRef stride, SymIntArrayRef padding, SymIntArrayRef dilation,
                   bool transposed, SymIntArrayRef output_padding, c10::SymInt groups) {
  check({x, weight, bias.value_or(Tensor())}, "convolution");
  return back(at::convolution_symint(host(x), host(weight), host(bias.value_or(Tensor())), stride,
                                     padding, dilation, transposed, output_padding, groups));
}

std::tuple<Tensor, Tensor, Tensor> convolution_backward(
    const Tensor& gradient, const Tensor& x, const Tensor& weight, SymIntArrayRef stride,
    SymIntArrayRef padding, SymIntArrayRef dilation, bool transposed,
    SymIntArrayRef output_padding, c10::SymInt groups, std::array<bool, 3> mask) {
  check({gradient, x, weight}, "convolution_backward");
  std::vector<c10::SymInt> bias = {transposed ? weight.sym_size(1) * groups : weight.sym_size(0)};
  auto [a, b, c] = at::convolution_backward_symint(
      host(gradient), host(x), host(weight), SymIntArrayRef(bias), stride, padding, dilation,
      transposed, output_padding, groups, mask);
  return {back(a), back(b), back(c)};
}

std::tuple<Tensor, Tensor, Tensor> group_norm(const Tensor& x, const std::optional<Tensor>& weight,
                                              const std::optional<Tensor>& bias, int64_t n,
                                              int64_t c, int64_t hw, int64_t groups, double eps) {
  check({x, weight.value_or(Tensor()), bias.value_or(Tensor())}, "group_norm");
  auto [a, b, d] = at::native_group_norm(host(x).contiguous(), host(weight.value_or(Tensor())),
                                         host(bias.value_or(Tensor())), n, c, hw, groups, eps);
  return {back(a), back(b), back(d)};
}

std::tuple<Tensor, Tensor, Tensor> group_norm_backward(
    const Tensor& gradient, const Tensor& x, const Tensor& mean, const Tensor& rstd,
    const std::optional<Tensor>& weight, int64_t n, int64_t c, int64_t hw, int64_t groups,
    std::array<bool, 3> mask) {
  check({gradient, x, weight.value_or(Tensor())}, "group_norm_backward");
  auto [a, b, d] = at::native_group_norm_backward(
      host(gradient).contiguous(), host(x).contiguous(), host(mean), host(rstd),
      host(weight.value_or(Tensor())), n, c, hw, groups, mask);
  return {back(a), back(b), back(d)};
}

TORCH_LIBRARY_IMPL(aten, PrivateUse1, m) {
  m.impl("empty.memory_format", empty);
  m.impl("empty_strided", empty_strided);
  m.impl("_copy_from", copy_from);
  m.impl("_copy_from_and_resize", copy_from_and_resize);
  m.impl("_local_scalar_dense", local_scalar);
  m.impl("as_strided", as_strided);
  m.impl("view", view);
  m.impl("unfold", at::native::unfold);
  m.impl("_reshape_alias", at::native::_reshape_alias);
  m.impl("set_.source_Storage", set_storage);
  m.impl("set_.source_Storage_storage_offset", set_storage_part);
  m.impl("resize_", at::native::resize_);
  m.impl("convolution_overrideable", convolution);
  m.impl("convolution_backward_overrideable", convolution_backward);
  m.impl("native_group_norm", group_norm);
  m.impl("native_group_norm_backward", group_norm_backward);
}

TORCH_LIBRARY_IMPL(_, PrivateUse1, m) {
  m.fallback(torch::CppFunction::makeFromBoxedFunction<&fallback>());
}

TORCH_LIBRARY_IMPL(_, AutocastPrivateUse1, m) {  // which casts nothing here
  m.fallback(torch::CppFunction::makeFallthrough());
}

}  // namespace
