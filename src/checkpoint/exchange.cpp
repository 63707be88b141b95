#include "checkpoint/exchange.hpp"

#include <numeric>

namespace pecan::checkpoint {
namespace {

constexpr comm::Tag kTag{comm::Purpose::kRecovery, kNoLayer};

template <typename Char>
std::span<std::uint8_t> bytes_of(std::basic_string<Char>& text) {
  return {reinterpret_cast<std::uint8_t*>(text.data()), text.size()};
}

/// Consecutive parts of a text.
std::vector<std::string> cut(const std::string& text, const std::vector<std::int64_t>& sizes) {
  std::vector<std::string> parts;
  std::size_t at = 0;
  for (const std::int64_t size : sizes) {
    parts.push_back(text.substr(at, std::size_t(size)));
    at += std::size_t(size);
  }
  return parts;
}

}  // namespace

std::string pack(const std::vector<std::string>& fields) {
  std::string text;
  for (const std::string& field : fields) text += fmt::format("{}:{}", field.size(), field);
  return text;
}

std::vector<std::string> unpack(const std::string& text) {
  std::vector<std::string> fields;
  for (std::size_t at = 0; at < text.size();) {
    const std::size_t colon = text.find(':', at);
    PECAN_ASSERT(colon != std::string::npos);
    const std::size_t size = std::stoull(text.substr(at, colon - at));
    fields.push_back(text.substr(colon + 1, size));
    at = colon + 1 + size;
  }
  return fields;
}

std::vector<std::string> Exchange::from_root(
    const std::function<std::vector<std::string>()>& body) {
  std::string message;
  if (is_root()) {
    try {
      message = pack({"ok", pack(body())});
    } catch (const Error& error) {
      message = pack({"failed", error.what()});
    }
  }
  std::vector<std::int64_t> size{std::int64_t(message.size())};
  group_.broadcast(ctx_, view_of(std::span(size)), Rank{0}, kTag).wait();
  message.resize(std::size_t(size[0]));
  group_.broadcast(ctx_, view_of(bytes_of(message)), Rank{0}, kTag).wait();
  const std::vector<std::string> fields = unpack(message);
  if (fields[0] != "ok") throw CheckpointError(fields[1]);
  return unpack(fields[1]);
}

std::vector<std::string> Exchange::gather(const std::string& text) {
  std::string mine = text;
  std::vector<std::int64_t> counts(std::size_t(group_.size()), 0);
  const std::vector<std::int64_t> ones(counts.size(), 1);
  std::vector<std::int64_t> count{std::int64_t(mine.size())};
  group_.all_gather_v(ctx_, view_of(std::span(count)), ones, view_of(std::span(counts)), kTag)
      .wait();
  std::string all(std::size_t(std::accumulate(counts.begin(), counts.end(), std::int64_t(0))),
                  '\0');
  group_.all_gather_v(ctx_, view_of(bytes_of(mine)), counts, view_of(bytes_of(all)), kTag).wait();
  return cut(all, counts);
}

std::vector<std::string> Exchange::all_to_all(const std::vector<std::string>& texts) {
  const std::vector<std::int64_t> ones(texts.size(), 1);
  std::vector<std::int64_t> out;
  std::string sent;
  for (const std::string& text : texts) {
    out.push_back(std::int64_t(text.size()));
    sent += text;
  }
  std::vector<std::int64_t> in(texts.size(), 0);
  group_.all_to_all_v(ctx_, view_of(std::span(out)), ones, view_of(std::span(in)), ones, kTag)
      .wait();
  std::string received(std::size_t(std::accumulate(in.begin(), in.end(), std::int64_t(0))), '\0');
  group_.all_to_all_v(ctx_, view_of(bytes_of(sent)), out, view_of(bytes_of(received)), in, kTag)
      .wait();
  return cut(received, in);
}

void Exchange::reduce(std::vector<std::int64_t>& values, comm::ReduceOp op) {
  group_.all_reduce(ctx_, view_of(std::span(values)), op, kTag).wait();
}

}  // namespace pecan::checkpoint
