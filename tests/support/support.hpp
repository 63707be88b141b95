#pragma once
/// Shared by all test programs: expected log records, temporary folders.

#include <string>
#include <vector>

#include <pecan/core/log.hpp>

namespace pecan::test {

/// Expects warnings or errors in its scope. Outside of one, a warning or an error fails the test
/// that logged it.
class ExpectLog {
 public:
  ExpectLog();
  ~ExpectLog();
  ExpectLog(const ExpectLog&) = delete;
  ExpectLog& operator=(const ExpectLog&) = delete;
  /// Warnings and errors recorded so far.
  [[nodiscard]] std::vector<std::string> records() const;
  [[nodiscard]] bool contains(const std::string& text) const;
};

/// A new folder under the system's temporary folder, removed with all it holds.
class TempDir {
 public:
  TempDir();
  ~TempDir();
  TempDir(const TempDir&) = delete;
  TempDir& operator=(const TempDir&) = delete;
  [[nodiscard]] const std::string& path() const { return path_; }
  [[nodiscard]] std::string operator/(const std::string& name) const { return path_ + "/" + name; }

 private:
  std::string path_;
};

}  // namespace pecan::test
