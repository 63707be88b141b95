#include <pecan/core/error.hpp>

#include <pecan/data/documents.hpp>

namespace pecan::data {

void mark_documents(std::span<const std::int32_t> tokens,
                    std::int32_t end_of_document,
                    std::span<std::int32_t> positions,
                    std::span<std::int32_t> starts,
                    std::span<float> mask) {
  for (const std::size_t size : {positions.size(), starts.size(), mask.size()})
    PECAN_EXPECTS(size == 0 || size == tokens.size());
  std::size_t start = 0;
  for (std::size_t i = 0; i < tokens.size(); ++i) {
    if (!positions.empty()) positions[i] = static_cast<std::int32_t>(i - start);
    if (!starts.empty()) starts[i] = static_cast<std::int32_t>(start);
    const bool ends = tokens[i] == end_of_document;
    if (!mask.empty()) mask[i] = ends ? 0.0F : 1.0F;
    if (ends) start = i + 1;
  }
}

}  // namespace pecan::data
