#include <algorithm>
#include <utility>
#include <vector>

#include <pecan/core/nearest.hpp>

namespace pecan {

std::size_t edit_distance(std::string_view a, std::string_view b) {
  std::vector<std::size_t> row(b.size() + 1);
  for (std::size_t j = 0; j <= b.size(); ++j) row[j] = j;
  for (std::size_t i = 1; i <= a.size(); ++i) {
    std::size_t diagonal = std::exchange(row[0], i);
    for (std::size_t j = 1; j <= b.size(); ++j) {
      const std::size_t substituted = diagonal + (a[i - 1] == b[j - 1] ? 0 : 1);
      diagonal = std::exchange(row[j], std::min({row[j] + 1, row[j - 1] + 1, substituted}));
    }
  }
  return row.back();
}

std::string nearest_name(std::string_view name, std::span<const std::string> known) {
  const auto distance = [&](const std::string& other) { return edit_distance(name, other); };
  const auto nearest = std::ranges::min_element(known, {}, distance);
  return nearest == known.end() ? std::string() : *nearest;
}

}  // namespace pecan
