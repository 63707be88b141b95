#include <algorithm>
#include <vector>

#include "ops/backends.hpp"
#include "ops/cpu.hpp"

namespace pecan::ops::cpu {

std::int64_t drop_over_capacity(Context& /*ctx*/,
                                DropPolicy policy,
                                std::int64_t capacity,
                                ConstTensorView topk_ids_TK,
                                ConstTensorView weights_TK,
                                TensorView counts_E,
                                TensorView kept_ids_TK) {
  const auto ids = topk_ids_TK.as<std::int32_t>();
  const auto counts = counts_E.as<std::int64_t>();
  const auto kept = kept_ids_TK.as<std::int32_t>();
  std::ranges::fill(counts, 0);
  for (const std::int32_t id : ids) ++counts[std::size_t(id)];
  std::ranges::copy(ids, kept.begin());
  std::int64_t dropped = 0;
  with_float_type(weights_TK.dtype, [&]<typename T>(T) {
    const T* weights = weights_TK.as<T>().data();
    // NaN compares with nothing: as a negative number the order stays strict.
    const auto weight_of = [&](std::int32_t slot) {
      return weights[slot] >= 0 ? weights[slot] : T(-1);
    };
    const auto goes_first = [&](std::int32_t a, std::int32_t b) {
      const T left = weight_of(a), right = weight_of(b);
      return left > right || (left == right && a < b);
    };
    std::vector<std::int32_t> slots;
    for (std::size_t e = 0; e < counts.size(); ++e) {
      if (counts[e] <= capacity) continue;
      slots.clear();
      for (std::size_t slot = 0; slot < ids.size(); ++slot) {
        if (ids[slot] == std::int32_t(e)) slots.push_back(std::int32_t(slot));
      }
      const auto end_of_kept = slots.begin() + capacity;
      if (policy == DropPolicy::kProbs) {
        std::nth_element(slots.begin(), end_of_kept, slots.end(), goes_first);
      }
      std::for_each(end_of_kept, slots.end(), [&](std::int32_t slot) {
        kept[std::size_t(slot)] = -1;
        ++dropped;
      });
    }
  });
  return dropped;
}

}  // namespace pecan::ops::cpu
