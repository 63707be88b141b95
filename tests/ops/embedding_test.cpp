#include <pecan/ops/embedding.hpp>

#include "ops/op_test.hpp"

namespace pecan::test {

using device::StorageOrder;
using ops::VocabShard;

TEST_CASE("embedding: rows are copied exactly and gradients added in token order", "[any device]") {
  constexpr std::int64_t kTotal = 7;
  // Whole, a middle part with a row of padding, and nothing but padding.
  const VocabShard shards[] = {VocabShard::whole(kTotal), {2, 3, kTotal}, {8, 0, kTotal}};
  for_each_storage_kind([&](DType dtype, int threads) {
    OpContext ctx(threads);
    for (const std::int64_t width : {1, 5, 64, 300}) {
      for (const std::int64_t tokens : {0, 1, 13, 257}) {
        for (const auto& [shard, panel] : {std::pair{shards[0], 0},
                                           {shards[0], 3},
                                           {shards[1], 0},
                                           {shards[1], 3},
                                           {shards[2], 0}}) {
          if (panel > 0 && test_device() != device::cpu()) continue;  // row-major alone
          INFO("H " << width << ", T " << tokens << ", panel " << panel << ", entries from "
                    << shard.first << ": " << shard.count);
          const std::int64_t rows = shard.count == kTotal ? kTotal : shard.count + 1;
          Values ids = random_values(tokens, 9);
          for (double& id : ids) id = std::floor((id + 1) / 2 * double(kTotal));
          const Values w = test::stored(dtype, random_values(rows * width, 1));
          const Values dy = test::stored(dtype, random_values(tokens * width, 2));
          const Shape shape{rows, width};
          const StorageOrder order =
              panel == 0 ? StorageOrder::kRowMajor : StorageOrder::kRowPanels;
          Guarded logical(dtype, shape, w);
          Guarded stored(dtype, shape);
          const TensorView in_order = logical.on_host();
          ops::ParamStorage(stored.on_host().data, dtype, shape, order, panel)
              .copy_in(Block::whole(shape), {in_order.data, in_order.num_bytes()});
          const ops::ParamStorage table(stored.view().data, dtype, shape, order, panel);
          Guarded tokens_tensor(DType::kI32, {tokens}, ids);
          Guarded y(dtype, {tokens, width});
          ops::embedding_forward(ctx, tokens_tensor, table, shard, y);

          Values expected(dy.size());
          Values gradient = w;
          for (std::size_t t = 0; t < ids.size(); ++t) {
            for (std::size_t h = 0; h < std::size_t(width); ++h) {
              if (!shard.holds(std::int64_t(ids[t]))) continue;
              const std::size_t at =
                  std::size_t(std::int64_t(ids[t]) - shard.first) * std::size_t(width) + h;
              expected[t * std::size_t(width) + h] = w[at];
              const double sum = gradient[at] + dy[t * std::size_t(width) + h];
              gradient[at] = dtype == DType::kF64 ? sum : double(float(sum));
            }
          }
          CHECK(y.values() == expected);
          Guarded wide(master_of(dtype), shape, w);
          Guarded sums(master_of(dtype), shape);
          const auto on_host = [&] {
            return ops::ParamStorage(sums.on_host().data, master_of(dtype), shape, order, panel);
          };
          const TensorView plain = wide.on_host();
          on_host().copy_in(Block::whole(shape), {plain.data, plain.num_bytes()});
          const ops::ParamStorage dtable(sums.view().data, master_of(dtype), shape, order, panel);
          ops::embedding_backward(
              ctx, Guarded(dtype, {tokens, width}, dy), tokens_tensor, shard, dtable);
          on_host().copy_out(Block::whole(shape), {plain.data, plain.num_bytes()});
          CHECK(wide.values() == gradient);
        }
      }
    }
  });
}

TEST_CASE("embedding: a token outside the vocabulary is refused by number") {
  OpContext ctx;
  Guarded table(DType::kF32, {4, 2}, Values(8));
  Guarded y(DType::kF32, {2, 2});
  const VocabShard shards[] = {VocabShard::whole(4), {0, 3, 4}, {3, 1, 4}};
  for (const VocabShard& shard : shards) {
    for (const double bad : {-1.0, 4.0}) {
      Guarded tokens(DType::kI32, {2}, {0, bad});
      CHECK_THROWS_AS(ops::embedding_forward(ctx, tokens, table.storage(), shard, y), ShapeError);
      CHECK_THROWS_AS(ops::embedding_backward(ctx, y, tokens, shard, table.storage()), ShapeError);
    }
  }
}

TEST_CASE("embedding: a shard outside its vocabulary or its table is refused") {
  OpContext ctx;
  Guarded table(DType::kF32, {4, 2}, Values(8));
  Guarded tokens(DType::kI32, {2}, {0, 1}), y(DType::kF32, {2, 2});
  const VocabShard shards[] = {VocabShard::whole(5), {-1, 2, 4}, {0, -1, 4}, {2, 3, 4}};
  for (const VocabShard& shard : shards) {
    CHECK_THROWS_AS(ops::embedding_forward(ctx, tokens, table.storage(), shard, y), ShapeError);
  }
}

}  // namespace pecan::test
