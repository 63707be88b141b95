#include <pecan/ops/bias.hpp>

#include "ops/op_test.hpp"

namespace pecan::test {

TEST_CASE("bias: added to each row, its gradient is the column sums", "[any device]") {
  for_each_storage_kind([&](DType dtype, int threads) {
    OpContext ctx(threads);
    const DType master = master_of(dtype);
    for (const Shape& shape :
         {Shape{0, 3}, Shape{1, 1}, Shape{7, 9}, Shape{63, 65}, Shape{800, 257}}) {
      INFO(shape.to_string());
      const std::int64_t width = shape[1];
      const Values y = stored(dtype, random_values(shape.num_elements(), 1));
      const Values b = stored(dtype, random_values(width, 2));
      Values sum = y, columns(std::size_t(width), 1.0);
      for (std::size_t i = 0; i < y.size(); ++i) {
        sum[i] += b[i % std::size_t(width)];
        columns[i % std::size_t(width)] += y[i];
      }
      for (const DType bias_type : {dtype, master}) {
        Guarded tensor(dtype, shape, y);
        ops::add_bias(ctx, Guarded(bias_type, {width}, b), tensor);
        check_close(tensor.values(), sum, tolerance(dtype));
      }
      Guarded db(master, {width}, Values(std::size_t(width), 1.0));
      ops::bias_backward(ctx, Guarded(dtype, shape, y), db);
      check_close(db.values(), columns, tolerance(master));
    }
  });
}

TEST_CASE("bias: column sums are the same for any number of threads, in double") {
  Values y(2 * 3000);
  // 3000 is lost beside 2^24 in f32, but not in the double sums.
  for (std::size_t i = 0; i < y.size(); ++i) y[i] = i < 2 ? 0x1p24 : i < y.size() - 2 ? 1 : -0x1p24;
  for (const int threads : {1, 2, 3}) {
    OpContext ctx(threads);
    Guarded db(DType::kF32, {2}, Values(2));
    ops::bias_backward(ctx, Guarded(DType::kF32, {3000, 2}, y), db);
    CHECK(db.values() == Values(2, 2998.0));
  }
}

TEST_CASE("bias: another width or type is refused") {
  OpContext ctx;
  Guarded y(DType::kF32, {2, 3}, Values(6));
  CHECK_THROWS_AS(ops::add_bias(ctx, Guarded(DType::kF32, {2}, Values(2)), y), ShapeError);
  CHECK_THROWS_AS(ops::add_bias(ctx, Guarded(DType::kF64, {3}, Values(3)), y), ShapeError);
  Guarded db(DType::kF32, {2}, Values(2));
  CHECK_THROWS_AS(ops::bias_backward(ctx, y, db), ShapeError);
}

}  // namespace pecan::test
