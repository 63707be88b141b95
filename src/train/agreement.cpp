#include "train/agreement.hpp"

namespace pecan::train {
namespace {

constexpr comm::Tag kTag{comm::Purpose::kRecovery};
// First byte of what travels.
constexpr char kText = 't';
constexpr char kConfigError = 'u';
constexpr char kOtherError = 'e';

}  // namespace

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
  auto size = std::int64_t(message.size());
  world.broadcast(ctx, view_of(std::span(&size, 1)), Rank{0}, kTag).wait();
  message.resize(std::size_t(size));
  const std::span<std::uint8_t> bytes(reinterpret_cast<std::uint8_t*>(message.data()),
                                      message.size());
  world.broadcast(ctx, view_of(bytes), Rank{0}, kTag).wait();
  const char kind = message.front();
  message.erase(0, 1);
  if (kind == kConfigError) throw ConfigError(message);
  if (kind == kOtherError) throw CheckpointError(message);
  return message;
}

}  // namespace pecan::train
