#pragma once
/// Copies between a device and the host by what they hold.

#include <cstddef>
#include <span>
#include <vector>

#include <pecan/core/tensor.hpp>

#include <pecan/device/context.hpp>
#include <pecan/device/param_storage.hpp>

namespace pecan::device {

/// Copies a tensor to one of the same type and shape, both of the stream's device, in the stream's
/// order. They do not overlap.
void copy(Stream& stream, ConstTensorView from, TensorView to);

/// ParamStorage::copy_out of a parameter on the stream's device: the host may read `destination`
/// after the stream was synchronised. NotConfigured where a device holds the parameter in panels.
void download(Stream& stream,
              const ParamStorage& storage,
              const Block& block,
              std::span<std::byte> destination);
/// The other way round. `source` may change when upload returns, unless it is registered.
void upload(Stream& stream,
            std::span<const std::byte> source,
            const ParamStorage& storage,
            const Block& block);

/// The elements of a tensor for the host to read. On the CPU they are the tensor's own; from
/// another device they are copied, and the constructor waits for all that the stream was asked for.
template <typename T>
class HostCopy {
 public:
  HostCopy(Context& ctx, ConstTensorView tensor) {
    if (ctx.device.kind == DeviceKind::kCpu) {
      values_ = tensor.as<T>();
      return;
    }
    copy_.resize(std::size_t(tensor.num_elements()));
    values_ = copy_;
    if (copy_.empty()) return;
    download(ctx.stream, tensor, view_of(std::span(copy_)).reshaped(tensor.shape));
    ctx.stream.synchronize();
  }
  HostCopy(const HostCopy&) = delete;
  HostCopy& operator=(const HostCopy&) = delete;
  [[nodiscard]] std::span<const T> values() const { return values_; }

 private:
  std::vector<T> copy_;
  std::span<const T> values_;
};

}  // namespace pecan::device
