#include <bit>
#include <cmath>
#include <vector>

#include <pecan/core/tensor.hpp>

#include "support/catch.hpp"

using namespace pecan;

TEST_CASE("dtype names round-trip and sizes are those of the C++ types", "[core]") {
  for (const DType dtype :
       {DType::kF32, DType::kF64, DType::kBF16, DType::kI64, DType::kI32, DType::kU8}) {
    CHECK(dtype_from_name(name_of(dtype)) == dtype);
  }
  CHECK(size_of(DType::kF32) == sizeof(float));
  CHECK(size_of(DType::kF64) == sizeof(double));
  CHECK(size_of(DType::kBF16) == 2);
  CHECK(size_of(DType::kI64) == 8);
  CHECK_THROWS_AS(dtype_from_name("f16"), CorruptionError);
}

TEST_CASE("bf16 rounds to the nearest of its values, ties to even", "[core]") {
  // Every finite value is its own rounding, and between neighbours the nearer one wins.
  for (std::uint32_t bits = 0; bits < 0x7F7FU; ++bits) {
    BFloat16 low, high;
    low.bits = std::uint16_t(bits);
    high.bits = std::uint16_t(bits + 1);
    const double below(low), above(high), middle = (below + above) / 2;
    REQUIRE(above > below);
    REQUIRE(BFloat16(float(low)) == low);
    REQUIRE(BFloat16(std::nextafter(float(middle), 0.0F)) == low);
    REQUIRE(BFloat16(std::nextafter(float(middle), INFINITY)) == high);
    REQUIRE(BFloat16(float(middle)) == (bits % 2 == 0 ? low : high));
    REQUIRE(BFloat16(-float(middle)).bits == (BFloat16(float(middle)).bits | 0x8000U));
  }
  CHECK(float(BFloat16(INFINITY)) == INFINITY);
  CHECK(float(BFloat16(3.4e38F)) == INFINITY);
  CHECK(std::isnan(float(BFloat16(NAN))));
  CHECK(std::isnan(float(BFloat16(std::bit_cast<float>(0x7F800001U)))));
  CHECK(float(BFloat16(1.0F)) == 1.0F);
}

TEST_CASE("a shape counts its elements and refuses what cannot be counted", "[core]") {
  CHECK(Shape{}.num_elements() == 1);
  CHECK(Shape{3, 0, 5}.num_elements() == 0);
  CHECK(Shape{3, 4, 5}.num_elements() == 60);
  CHECK(Shape{3, 4}.to_string() == "[3, 4]");
  CHECK_THROWS_AS((Shape{1, 2, 3, 4, 5}), ShapeError);
  CHECK_THROWS_AS((Shape{-1}), ShapeError);
  CHECK_THROWS_AS((Shape{std::int64_t{1} << 32, std::int64_t{1} << 32}.num_elements()), ShapeError);
}

TEST_CASE("a block fits only inside its shape", "[core]") {
  const Shape shape{4, 6};
  CHECK(Block::whole(shape).fits(shape));
  CHECK(Block{Shape{4, 0}, Shape{0, 6}}.fits(shape));
  CHECK_FALSE(Block{Shape{1, 0}, Shape{4, 6}}.fits(shape));
  CHECK_FALSE(Block{Shape{0}, Shape{4}}.fits(shape));
}

TEST_CASE("views read their own type only, and rows lie where row-major order puts them",
          "[core]") {
  std::vector<float> values{0, 1, 2, 3, 4, 5};
  const TensorView view = view_of(std::span<float>(values)).reshaped(Shape{3, 2});
  CHECK(view.rows(1, 2).as<float>()[0] == 2.0F);
  CHECK(ConstTensorView(view).rows(2, 1).as<float>()[1] == 5.0F);
  CHECK_THROWS_AS(view.as<double>(), ShapeError);
  CHECK_THROWS_AS(view.rows(2, 2), ShapeError);
  CHECK_THROWS_AS(view.reshaped(Shape{4}), ShapeError);
}
