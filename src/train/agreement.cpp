#include "train/agreement.hpp"

#include <utility>

namespace pecan::train {
namespace {

constexpr comm::Tag kTag{comm::Purpose::kRecovery};
// First byte of what travels.
constexpr char kText = 't';
constexpr char kConfigError = 'u';
constexpr char kOtherError = 'e';

}  // namespace

std::string from_rank(Context& ctx, comm::Group& world, Rank source, std::string text) {
  auto size = std::int64_t(text.size());
  world.broadcast(ctx, view_of(std::span(&size, 1)), source, kTag).wait();
  text.resize(std::size_t(size));
  const std::span<std::uint8_t> bytes(reinterpret_cast<std::uint8_t*>(text.data()), text.size());
  world.broadcast(ctx, view_of(bytes), source, kTag).wait();
  return text;
}

std::string from_root(Context& ctx, comm::Group& world, const std::function<std::string()>& body) {
  std::string message;
  if (world.rank().value == 0) {
    try {
      message = kText + body();
    } catch (const ConfigError& error) {
      message = kConfigError + std::string(error.what());
    } catch (const Error& error) {
      message = kOtherError + std::string(error.what());
    }
  }
  message = from_rank(ctx, world, Rank{0}, std::move(message));
  const char kind = message.front();
  message.erase(0, 1);
  if (kind == kConfigError) throw ConfigError(message);
  if (kind == kOtherError) throw CheckpointError(message);
  return message;
}

}  // namespace pecan::train
