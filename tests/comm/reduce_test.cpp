#include "comm/reduce.hpp"

#include <cmath>
#include <cstdint>
#include <limits>
#include <span>
#include <vector>

#include <pecan/core/error.hpp>

#include "support/catch.hpp"
#include "support/support.hpp"

namespace pecan::comm {
namespace {

template <typename T>
std::vector<T> reduce(ReduceOp op, const std::vector<std::vector<T>>& inputs) {
  std::vector<const std::byte*> pieces;
  for (const auto& input : inputs) pieces.push_back(std::as_bytes(std::span(input)).data());
  std::vector<T> output(inputs.front().size());
  reduce_in_order(kDTypeOf<T>,
                  op,
                  pieces,
                  std::as_writable_bytes(std::span(output)).data(),
                  std::int64_t(output.size()));
  return output;
}

TEST_CASE("sums are formed from left to right in the element type", "[comm]") {
  // From left to right 1 is lost beside 2^24; from right to left it is not.
  CHECK(reduce<float>(ReduceOp::kSum, {{0x1p24F}, {1}, {-0x1p24F}, {3}}) == std::vector<float>{3});
  CHECK(reduce<float>(ReduceOp::kSum, {{0x1p24F}, {-0x1p24F}, {1}, {3}}) == std::vector<float>{4});
  CHECK(reduce<double>(ReduceOp::kSum, {{0x1p24}, {1}, {-0x1p24}, {3}}) == std::vector<double>{4});
  CHECK(reduce<float>(ReduceOp::kSum, {{-0.0F}})[0] == 0.0F);
}

TEST_CASE("bf16 is summed in float and rounded once", "[comm]") {
  // bf16 has 8 bits: each 1 would be lost beside 256, four of them are not.
  const auto one = BFloat16(1.0F);
  const auto sum =
      reduce<BFloat16>(ReduceOp::kSum, {{BFloat16(256.0F)}, {one}, {one}, {one}, {one}});
  CHECK(float(sum[0]) == 260.0F);
  CHECK(float(reduce<BFloat16>(ReduceOp::kMax, {{one}, {BFloat16(3.0F)}})[0]) == 3.0F);
}

TEST_CASE("integers wrap round", "[comm]") {
  constexpr auto kMax = std::numeric_limits<std::int32_t>::max();
  CHECK(reduce<std::int32_t>(ReduceOp::kSum, {{kMax}, {1}, {-1}}) ==
        std::vector<std::int32_t>{kMax});
  CHECK(reduce<std::int64_t>(ReduceOp::kSum, {{kMax}, {1}}) ==
        std::vector<std::int64_t>{std::int64_t{kMax} + 1});
}

TEST_CASE("maxima and minima of every reducible type, where a NaN wins", "[comm]") {
  CHECK(reduce<std::uint8_t>(ReduceOp::kMax, {{3, 200}, {7, 100}}) ==
        std::vector<std::uint8_t>{7, 200});
  CHECK(reduce<std::int32_t>(ReduceOp::kMin, {{3, -2}, {-7, 1}}) ==
        std::vector<std::int32_t>{-7, -2});
  const double nan = std::numeric_limits<double>::quiet_NaN();
  for (const ReduceOp op : {ReduceOp::kMax, ReduceOp::kMin, ReduceOp::kSum}) {
    CHECK(std::isnan(reduce<double>(op, {{nan}, {1}})[0]));
    CHECK(std::isnan(reduce<double>(op, {{1}, {nan}})[0]));
    CHECK(std::isnan(reduce<double>(op, {{1}, {nan}, {2}})[0]));
  }
}

TEST_CASE("the output of a reduction may be any of its pieces", "[comm]") {
  constexpr std::size_t kCount = 5001;  // more than one chunk
  for (std::size_t place = 0; place < 3; ++place) {
    std::vector<std::vector<float>> inputs(3, std::vector<float>(kCount));
    std::vector<float> expected(kCount);
    for (std::size_t i = 0; i < kCount; ++i) {
      for (std::size_t r = 0; r < 3; ++r) inputs[r][i] = float(i * (r + 1)) * 0.1F;
      expected[i] = (inputs[0][i] + inputs[1][i]) + inputs[2][i];
    }
    std::vector<const std::byte*> pieces;
    for (const auto& input : inputs) pieces.push_back(std::as_bytes(std::span(input)).data());
    reduce_in_order(DType::kF32,
                    ReduceOp::kSum,
                    pieces,
                    std::as_writable_bytes(std::span(inputs[place])).data(),
                    kCount);
    CHECK(inputs[place] == expected);
  }
}

TEST_CASE("what cannot be reduced is refused", "[comm]") {
  CHECK_THROWS_AS(validate_reducible(DType::kU8, ReduceOp::kSum), ShapeError);
  CHECK_NOTHROW(validate_reducible(DType::kU8, ReduceOp::kMax));
}

}  // namespace
}  // namespace pecan::comm
