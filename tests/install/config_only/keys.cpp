// Prints one resolved default: pecan::config and what it needs are linked and work.
#include <cstdio>

#include <pecan/config/config.hpp>

int main() {
  try {
    const auto config = pecan::config::parse_config("model: {hidden_size: 96}");
    std::printf("ffn_hidden_size %d\n", config.model.ffn_hidden_size);
    return 0;
  } catch (const pecan::Error& error) {
    std::fprintf(stderr, "%s\n", error.what());
    return int(error.exit_code());
  }
}
