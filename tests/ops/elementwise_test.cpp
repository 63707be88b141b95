#include <pecan/ops/elementwise.hpp>

#include "ops/op_test.hpp"

namespace pecan::test {

TEST_CASE("elementwise: every operation rounds once, in place or not", "[any device]") {
  for_each_storage_kind([&](DType dtype, int threads) {
    OpContext ctx(threads);
    const auto rounded = [&](double value) { return stored(dtype, {value})[0]; };
    for (const std::int64_t count : {0, 1, 7, 63, 129, 40000}) {
      INFO("elements " << count);
      const Values a = stored(dtype, random_values(count, 1));
      const Values b = stored(dtype, random_values(count, 2));
      Values sum(a.size()), scaled(a.size()), combined(a.size());
      for (std::size_t i = 0; i < a.size(); ++i) {
        sum[i] = rounded(a[i] + b[i]);
        scaled[i] = rounded(a[i] * 0.75);
        combined[i] = b[i] + 0.75 * a[i];
      }
      Guarded a_tensor(dtype, {count}, a), b_tensor(dtype, {count}, b), y(dtype, {count});
      ops::add(ctx, a_tensor, b_tensor, y);
      CHECK(y.values() == sum);
      ops::copy(ctx, a_tensor, y);
      CHECK(y.values() == a);
      ops::add(ctx, y, b_tensor, y);
      CHECK(y.values() == sum);
      ops::copy(ctx, a_tensor, y);
      ops::scale(ctx, 0.75, y);
      CHECK(y.values() == scaled);
      ops::copy(ctx, b_tensor, y);
      ops::axpy(ctx, 0.75, a_tensor, y);
      check_close(y.values(), combined, tolerance(dtype));
      Guarded master(master_of(dtype), {count}, a);
      ops::copy(ctx, b_tensor, y);
      ops::axpy(ctx, 0.75, master, y);
      check_close(y.values(), combined, tolerance(dtype));
      ops::fill(ctx, -2.5, y);
      CHECK(y.values() == Values(a.size(), -2.5));
      Guarded wide(DType::kF64, {count}), narrow(DType::kF32, {count});
      ops::cast(ctx, a_tensor, wide);
      ops::cast(ctx, wide, narrow);
      CHECK(wide.values() == a);
      CHECK(narrow.values() == a);
      Guarded halved(DType::kBF16, {count});
      ops::cast(ctx, narrow, halved);
      CHECK(halved.values() == stored(DType::kBF16, a));
      ops::cast(ctx, wide, halved);
      CHECK(halved.values() == stored(DType::kBF16, a));
    }
  });
}

TEST_CASE("elementwise: casts round to nearest, integers are filled", "[any device]") {
  OpContext ctx;
  Guarded wide(DType::kF64, {2}, {1 + 0x1p-25, 1 + 0x1.8p-24}), narrow(DType::kF32, {2});
  ops::cast(ctx, wide, narrow);
  CHECK(narrow.values() == Values{1, 1 + 0x1p-23});
  for (const DType dtype : {DType::kI32, DType::kI64}) {
    for (const double value : {7.0, 0.0}) {
      Guarded whole(dtype, {3});
      ops::fill(ctx, value, whole);
      CHECK(whole.values() == Values(3, value));
    }
  }
}

TEST_CASE("elementwise: tensors that begin anywhere", "[any device]") {
  // Whole vectors and a rest, one element behind an aligned address.
  constexpr std::int64_t kCount = 21;
  for (const DType dtype : {DType::kF32, DType::kF64, DType::kBF16}) {
    OpContext ctx;
    const Values a = stored(dtype, random_values(kCount + 1, 1));
    Guarded x(dtype, {kCount + 1}, a), y(dtype, {kCount + 1}, Values(kCount + 1, 0.5));
    const auto behind_first = [&](Guarded& tensor) {
      return TensorView{tensor.view().data + size_of(dtype), dtype, {kCount}};
    };
    ops::copy(ctx, behind_first(x), behind_first(y));
    ops::scale(ctx, -1, behind_first(y));
    Values expected(a.size(), 0.5);
    for (std::size_t i = 1; i < a.size(); ++i) expected[i] = -a[i];
    CHECK(y.values() == expected);
  }
}

}  // namespace pecan::test
