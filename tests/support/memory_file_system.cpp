#include "support/memory_file_system.hpp"

#include <algorithm>
#include <functional>
#include <map>
#include <mutex>
#include <optional>
#include <random>
#include <set>
#include <string_view>
#include <utility>

namespace pecan::test {
namespace {

struct Node;
using NodePtr = std::shared_ptr<Node>;  // shared by live names, durable names and open files
using Bytes = std::vector<std::byte>;
using Names = std::map<std::string, NodePtr>;

/// A write, or a change of size if `size` is set.
struct Write {
  std::uint64_t offset = 0;
  Bytes bytes;
  std::optional<std::uint64_t> size;
};

/// Names that change together; no node: the name is removed.
using NameChange = std::vector<std::pair<std::string, NodePtr>>;

struct Node {
  bool is_directory = false;
  Bytes content;
  Bytes durable_content;
  std::vector<Write> unsynced_writes;
  Names names;
  Names durable_names;
  std::vector<NameChange> unsynced_names;
};

void apply_change(Bytes& content, const Write& write, std::size_t num_bytes) {
  if (write.size) {
    content.resize(*write.size);
    return;
  }
  content.resize(std::max<std::size_t>(content.size(), write.offset + num_bytes));
  std::copy_n(write.bytes.begin(), num_bytes, content.begin() + std::ptrdiff_t(write.offset));
}

void apply_change(Names& names, const NameChange& change) {
  for (const auto& [name, node] : change) {
    if (node) {
      names[name] = node;
    } else {
      names.erase(name);
    }
  }
}

void change_names(Node& directory, NameChange change) {
  apply_change(directory.names, change);
  directory.unsynced_names.push_back(std::move(change));
}

void change_content(Node& file, Write write, std::size_t num_bytes) {
  write.bytes.resize(num_bytes);
  apply_change(file.content, write, num_bytes);
  file.unsynced_writes.push_back(std::move(write));
}

/// What of `count` unsynced bytes or names was persisted.
using Persisted = std::function<std::size_t(std::size_t count)>;

void lose_unsynced(const NodePtr& node, const Persisted& persisted, std::set<Node*>& done) {
  if (!done.insert(node.get()).second) return;
  node->content = node->durable_content;
  for (const Write& write : node->unsynced_writes) {
    const std::size_t units = write.size ? 1 : write.bytes.size();
    const std::size_t kept = persisted(units);
    if (kept > 0) apply_change(node->content, write, write.size ? 0 : kept);
  }
  node->durable_content = node->content;
  node->unsynced_writes.clear();
  node->names = node->durable_names;
  for (const NameChange& change : node->unsynced_names) {
    if (persisted(1) > 0) apply_change(node->names, change);
  }
  node->durable_names = node->names;
  node->unsynced_names.clear();
  for (const auto& [name, child] : node->names) lose_unsynced(child, persisted, done);
}

std::vector<std::string> parts_of(const std::string& path) {
  std::vector<std::string> parts;
  for (std::size_t begin = 0; begin <= path.size();) {
    const std::size_t end = std::min(path.find('/', begin), path.size());
    std::string part = path.substr(begin, end - begin);
    if (!part.empty() && part != ".") parts.push_back(std::move(part));
    begin = end + 1;
  }
  return parts;
}

Status failure(StatusCode code, const std::string& path, std::string_view reason) {
  return Status::failure(code, fmt::format("memory file system: {}: {}", path, reason));
}

}  // namespace

struct MemoryFileSystem::State {
  mutable std::mutex mutex;
  NodePtr root = std::make_shared<Node>(Node{.is_directory = true});
  std::size_t mutations = 0;
  std::size_t stop = 0;  ///< number of the mutation that stops, 0: none
  std::uint64_t epoch = 0;

  [[nodiscard]] bool stopped() const { return stop != 0 && mutations >= stop; }
  Status mutate(const std::string& path) {
    ++mutations;
    return stopped() ? failure(StatusCode::kIo, path, "the process has stopped") : Status{};
  }
  [[nodiscard]] NodePtr find(const std::vector<std::string>& parts) const {
    NodePtr node = root;
    for (const std::string& part : parts) {
      const auto it = node->names.find(part);
      if (it == node->names.end()) return nullptr;
      node = it->second;
    }
    return node;
  }
  /// The directory that holds the last part; null if there is none.
  [[nodiscard]] NodePtr find_parent(std::vector<std::string> parts) const {
    if (parts.empty()) return nullptr;
    parts.pop_back();
    NodePtr node = find(parts);
    return node && node->is_directory ? node : nullptr;
  }
  Status remove(const NodePtr& parent, const std::string& name, const std::string& path) {
    const NodePtr node = parent->names.at(name);
    const Names children = node->names;
    for (const auto& [child, unused] : children) {
      if (Status status = remove(node, child, path + "/" + child); !status.ok()) return status;
    }
    if (Status status = mutate(path); !status.ok()) return status;
    change_names(*parent, {{name, nullptr}});
    return {};
  }
  void restart() {
    stop = 0;
    ++epoch;
  }
  void crash(const Persisted& persisted) {
    const std::lock_guard lock(mutex);
    std::set<Node*> done;
    lose_unsynced(root, persisted, done);
    restart();
  }
};

class MemoryFileSystem::OpenFile final : public File {
 public:
  OpenFile(State& state, NodePtr node, std::string path, OpenMode mode)
      : state_(state),
        node_(std::move(node)),
        path_(std::move(path)),
        mode_(mode),
        epoch_(state.epoch) {}

  Result<std::size_t> read_at(std::uint64_t offset, std::span<std::byte> bytes) override {
    const std::lock_guard lock(state_.mutex);
    if (epoch_ != state_.epoch) return dead();
    const Bytes& content = node_->content;
    if (offset >= content.size()) return std::size_t(0);
    const std::size_t count = std::min<std::size_t>(bytes.size(), content.size() - offset);
    std::copy_n(content.begin() + std::ptrdiff_t(offset), count, bytes.begin());
    return count;
  }

  Status write_at(std::uint64_t offset, std::span<const std::byte> bytes) override {
    const std::lock_guard lock(state_.mutex);
    Status status = begin_change();
    const bool torn = !status.ok() && state_.mutations == state_.stop && epoch_ == state_.epoch;
    if (status.ok() || torn) {
      change_content(*node_,
                     {offset, Bytes(bytes.begin(), bytes.end()), {}},
                     torn ? bytes.size() / 2 : bytes.size());
    }
    return status;
  }

  Status truncate(std::uint64_t size) override {
    const std::lock_guard lock(state_.mutex);
    Status status = begin_change();
    if (status.ok()) change_content(*node_, {0, {}, size}, 0);
    return status;
  }

  Result<std::uint64_t> size() override {
    const std::lock_guard lock(state_.mutex);
    if (epoch_ != state_.epoch) return dead();
    return std::uint64_t(node_->content.size());
  }

  Status sync() override {
    const std::lock_guard lock(state_.mutex);
    if (epoch_ != state_.epoch) return dead();
    Status status = state_.mutate(path_);
    if (status.ok()) {
      node_->durable_content = node_->content;
      node_->unsynced_writes.clear();
    }
    return status;
  }

 private:
  [[nodiscard]] Status dead() const {
    return failure(StatusCode::kIo, path_, "this file was opened before the crash");
  }
  Status begin_change() {
    if (epoch_ != state_.epoch) return dead();
    if (mode_ == OpenMode::kRead) return failure(StatusCode::kIo, path_, "opened for reading only");
    return state_.mutate(path_);
  }

  State& state_;
  NodePtr node_;
  std::string path_;
  OpenMode mode_;
  std::uint64_t epoch_;
};

MemoryFileSystem::MemoryFileSystem() : state_(std::make_unique<State>()) {}
MemoryFileSystem::~MemoryFileSystem() = default;

Result<std::unique_ptr<File>> MemoryFileSystem::open(const std::string& path, OpenMode mode) {
  const std::lock_guard lock(state_->mutex);
  const std::vector<std::string> parts = parts_of(path);
  const NodePtr parent = state_->find_parent(parts);
  NodePtr node = state_->find(parts);
  const bool creates = mode == OpenMode::kCreate || mode == OpenMode::kCreateNew;
  if (!parent || (!node && !creates)) {
    return failure(StatusCode::kNotFound, path, "there is no such file or directory");
  }
  if (node && mode == OpenMode::kCreateNew) return failure(StatusCode::kExists, path, "exists");
  if (node && node->is_directory) return failure(StatusCode::kIo, path, "is a directory");
  if (creates) {
    if (Status status = state_->mutate(path); !status.ok()) return status;
    if (node) {
      change_content(*node, {0, {}, 0}, 0);
    } else {
      node = std::make_shared<Node>();
      change_names(*parent, {{parts.back(), node}});
    }
  }
  return std::unique_ptr<File>(std::make_unique<OpenFile>(*state_, node, path, mode));
}

Status MemoryFileSystem::create_directories(const std::string& path) {
  const std::lock_guard lock(state_->mutex);
  NodePtr node = state_->root;
  for (const std::string& part : parts_of(path)) {
    const auto it = node->names.find(part);
    NodePtr child = it == node->names.end() ? nullptr : it->second;
    if (!child) {
      if (Status status = state_->mutate(path); !status.ok()) return status;
      child = std::make_shared<Node>(Node{.is_directory = true});
      change_names(*node, {{part, child}});
    }
    if (!child->is_directory) return failure(StatusCode::kIo, path, "a file stands in the way");
    node = child;
  }
  return {};
}

Result<std::vector<DirEntry>> MemoryFileSystem::list(const std::string& path) {
  const std::lock_guard lock(state_->mutex);
  const NodePtr node = state_->find(parts_of(path));
  if (!node) return failure(StatusCode::kNotFound, path, "there is no such directory");
  if (!node->is_directory) return failure(StatusCode::kIo, path, "is no directory");
  std::vector<DirEntry> entries;
  for (const auto& [name, child] : node->names) entries.push_back({name, child->is_directory});
  return entries;
}

bool MemoryFileSystem::exists(const std::string& path) {
  const std::lock_guard lock(state_->mutex);
  return state_->find(parts_of(path)) != nullptr;
}

Status MemoryFileSystem::rename(const std::string& from, const std::string& to) {
  const std::lock_guard lock(state_->mutex);
  const std::vector<std::string> from_parts = parts_of(from);
  const std::vector<std::string> to_parts = parts_of(to);
  const NodePtr from_parent = state_->find_parent(from_parts);
  const NodePtr to_parent = state_->find_parent(to_parts);
  const NodePtr node = state_->find(from_parts);
  const NodePtr target = state_->find(to_parts);
  if (!node || !from_parent || !to_parent) {
    return failure(StatusCode::kNotFound, from + " -> " + to, "there is no such file or directory");
  }
  if (from_parts.size() < to_parts.size() &&
      std::ranges::equal(from_parts, std::span(to_parts).first(from_parts.size()))) {
    return failure(StatusCode::kIo, from + " -> " + to, "a directory cannot move into itself");
  }
  if (target && node->is_directory != target->is_directory) {
    return failure(StatusCode::kIo, to, "a file and a directory cannot replace each other");
  }
  if (target && !target->names.empty())
    return failure(StatusCode::kExists, to, "the directory is not empty");
  if (Status status = state_->mutate(from + " -> " + to); !status.ok() || node == target)
    return status;
  if (from_parent == to_parent) {
    change_names(*from_parent, {{from_parts.back(), nullptr}, {to_parts.back(), node}});
  } else {
    change_names(*from_parent, {{from_parts.back(), nullptr}});
    change_names(*to_parent, {{to_parts.back(), node}});
  }
  return {};
}

Status MemoryFileSystem::remove_file(const std::string& path) {
  const std::lock_guard lock(state_->mutex);
  const std::vector<std::string> parts = parts_of(path);
  const NodePtr node = state_->find(parts);
  if (!node) return failure(StatusCode::kNotFound, path, "there is no such file");
  if (node->is_directory) return failure(StatusCode::kIo, path, "is a directory");
  return state_->remove(state_->find_parent(parts), parts.back(), path);
}

Status MemoryFileSystem::remove_all(const std::string& path) {
  const std::lock_guard lock(state_->mutex);
  const std::vector<std::string> parts = parts_of(path);
  if (!state_->find(parts) || parts.empty()) return {};
  return state_->remove(state_->find_parent(parts), parts.back(), path);
}

Status MemoryFileSystem::sync_directory(const std::string& path) {
  const std::lock_guard lock(state_->mutex);
  const NodePtr node = state_->find(parts_of(path));
  if (!node || !node->is_directory)
    return failure(StatusCode::kNotFound, path, "there is no such directory");
  if (Status status = state_->mutate(path); !status.ok()) return status;
  node->durable_names = node->names;
  node->unsynced_names.clear();
  return {};
}

std::size_t MemoryFileSystem::num_mutations() const {
  const std::lock_guard lock(state_->mutex);
  return state_->mutations;
}

void MemoryFileSystem::stop_at(std::size_t n) {
  const std::lock_guard lock(state_->mutex);
  state_->stop = state_->mutations + n;
}

void MemoryFileSystem::restart() {
  const std::lock_guard lock(state_->mutex);
  state_->restart();
}

void MemoryFileSystem::crash() {
  state_->crash([](std::size_t) { return std::size_t(0); });
}

void MemoryFileSystem::crash(std::uint64_t seed) {
  std::mt19937_64 random(seed);
  state_->crash([&](std::size_t count) {
    const std::uint64_t draw = random() % 8;
    if (draw < 4) return std::size_t(0);
    return draw == 4 ? count / 2 : count;  // some writes are torn
  });
}

}  // namespace pecan::test
