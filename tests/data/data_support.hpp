#pragma once
/// Shared by the tests of `data`: small datasets and whole files.

#include <cstdio>
#include <fstream>
#include <sstream>
#include <string>
#include <vector>

#include <pecan/core/file_system.hpp>

#include <pecan/data/indexed_dataset.hpp>

namespace pecan::data::test {

using Sequences = std::vector<std::vector<std::int32_t>>;

/// Writes one document a sequence.
inline void write_dataset(const std::string& prefix,
                          const Sequences& sequences,
                          TokenType type = TokenType::kU16,
                          std::int64_t bytes = 0) {
  const auto fs = make_posix_file_system();
  IndexedDatasetWriter writer(*fs, prefix, type);
  DatasetInfo info{bytes, 0, 0, "0123456789abcdef", 100};
  for (const auto& sequence : sequences) {
    writer.add_sequence(sequence);
    writer.end_document();
    ++info.documents;
    info.tokens += static_cast<std::int64_t>(sequence.size());
  }
  writer.finish(info);
}

/// Sequences of the given lengths whose tokens count on from 0 through all of them.
inline Sequences counting_sequences(const std::vector<int>& lengths) {
  Sequences sequences;
  std::int32_t next = 0;
  for (const int length : lengths) {
    auto& sequence = sequences.emplace_back();
    for (int i = 0; i < length; ++i) sequence.push_back(next++);
  }
  return sequences;
}

inline std::string read_file(const std::string& path) {
  std::ifstream in(path, std::ios::binary);
  std::stringstream text;
  text << in.rdbuf();
  return text.str();
}

inline void write_file(const std::string& path, const std::string& content) {
  std::remove(path.c_str());  // some file systems flush a file that is truncated and rewritten
  std::ofstream(path, std::ios::binary) << content;
}

}  // namespace pecan::data::test
