#include <pecan/core/error.hpp>

namespace pecan::detail {

void assertion_failed(const char* kind, const char* condition, std::source_location where) {
  throw InternalError(
      fmt::format(
          "{} violated: {} in {} ({}:{}); this is a mistake in the program, please report it",
          kind,
          condition,
          where.function_name(),
          where.file_name(),
          where.line()),
      where);
}

}  // namespace pecan::detail
