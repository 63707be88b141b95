/// The run configuration as YAML; behind the first NUL byte a `--set` setting.
///
/// Promises: the answer is a Config or a ConfigError, in time; an accepted configuration written
/// out is accepted again and is the same; what depends on the number of processes is a ConfigError
/// too.

#include <pecan/config/config.hpp>

#include "fuzz.hpp"

namespace {

void try_worlds(const pecan::config::Config& config) {
  for (const int world : {1, 2, 3, 8}) {
    try {
      pecan::config::validate_for_world(config, world);
    } catch (const pecan::ConfigError& error) {
      pecan::fuzz::expect(error.what()[0] != '\0', "a refusal says why");
    }
  }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  const std::string_view input = pecan::fuzz::text_of(data, size);
  const std::size_t end = input.find('\0');
  std::vector<std::string> settings;
  if (end != std::string_view::npos) settings.emplace_back(input.substr(end + 1));
  try {
    const pecan::config::Config config =
        pecan::config::parse_config(input.substr(0, end), settings);
    const std::string dumped = pecan::config::dump_config(config);
    const pecan::config::Config again = pecan::config::parse_config(dumped);
    pecan::fuzz::expect(again == config, "a configuration written out reads back as itself");
    try_worlds(config);
  } catch (const pecan::ConfigError& error) {
    // A message is for people: a value of a megabyte must not come back whole.
    const std::size_t length = std::string_view(error.what()).size();
    pecan::fuzz::expect(length > 0 && length < 4096, "a refusal is of readable length");
  }
  return 0;
}
