#pragma once
/// Texts and agreement between ranks, for recovery.

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include <pecan/comm/group.hpp>

namespace pecan::checkpoint {

/// Lists of texts as one text, and back.
[[nodiscard]] std::string pack(const std::vector<std::string>& fields);
[[nodiscard]] std::vector<std::string> unpack(const std::string& text);

/// Collective helpers over one group; every member calls each in the same order.
class Exchange {
 public:
  Exchange(Context& ctx, comm::Group& group) : ctx_(ctx), group_(group) {}
  [[nodiscard]] Rank rank() const { return group_.rank(); }
  [[nodiscard]] bool is_root() const { return group_.rank().value == 0; }
  [[nodiscard]] int size() const { return group_.size(); }
  [[nodiscard]] Context& context() const { return ctx_; }
  [[nodiscard]] comm::Group& group() const { return group_; }
  /// Runs `body` on rank 0 and gives its result to all. What it throws of pecan::Error, all throw
  /// as CheckpointError.
  [[nodiscard]] std::vector<std::string> from_root(
      const std::function<std::vector<std::string>()>& body);
  /// The texts of all ranks, in rank order.
  [[nodiscard]] std::vector<std::string> gather(const std::string& text);
  /// Sends texts[r] to each rank r; returns what each has sent, in rank order.
  [[nodiscard]] std::vector<std::string> all_to_all(const std::vector<std::string>& texts);
  /// Elementwise over ranks, in place.
  void reduce(std::vector<std::int64_t>& values, comm::ReduceOp op);

 private:
  Context& ctx_;
  comm::Group& group_;
};

}  // namespace pecan::checkpoint
