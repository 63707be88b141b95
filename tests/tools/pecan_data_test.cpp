#include <array>
#include <cstdio>
#include <fstream>
#include <string>

#include <fmt/format.h>
#include <sys/wait.h>

#include "support/catch.hpp"
#include "support/support.hpp"

namespace pecan {
namespace {

struct Outcome {
  int exit_code = -1;
  std::string output;  ///< standard output and error
};

Outcome pecan_data(const std::string& arguments) {
  Outcome outcome;
  FILE* pipe = popen(fmt::format("{} {} 2>&1", PECAN_DATA, arguments).c_str(), "r");
  REQUIRE(pipe != nullptr);
  std::array<char, 4096> buffer;
  while (std::fgets(buffer.data(), static_cast<int>(buffer.size()), pipe) != nullptr)
    outcome.output += buffer.data();
  const int status = pclose(pipe);
  if (WIFEXITED(status)) outcome.exit_code = WEXITSTATUS(status);
  return outcome;
}

TEST_CASE("pecan-data prepares, tokenizes and inspects", "[tools]") {
  const test::TempDir dir;
  {
    std::ofstream text(dir / "text");
    for (int i = 0; i < 80; ++i)
      text << fmt::format("Chapter {}: and the evening and the morning were day {}.\n\n", i, i);
  }
  const std::string common = fmt::format("--input {} --output ", dir / "text");
  const Outcome prepared =
      pecan_data("prepare " + common + dir / "set" + " --vocab-size 300 --held-out 25");
  INFO(prepared.output);
  CHECK(prepared.exit_code == 0);
  CHECK(prepared.output.find("vocabulary 300") != std::string::npos);
  const std::string tokenizer = " --tokenizer " + dir / "set.tokenizer.model";
  CHECK(pecan_data("tokenize " + common + dir / "all" + tokenizer).output.find("80 documents") !=
        std::string::npos);
  const Outcome inspected = pecan_data("inspect " + (dir / "set") + tokenizer);
  CHECK(inspected.exit_code == 0);
  CHECK(inspected.output.find("bits_per_byte") != std::string::npos);

  const Outcome again = pecan_data("prepare " + common + dir / "set" + " --vocab-size 300");
  CHECK(again.exit_code == 3);
  CHECK(again.output.find("exists and would be overwritten") != std::string::npos);
}

TEST_CASE("pecan-data says what is wrong and exits with the documented code", "[tools]") {
  const test::TempDir dir;
  CHECK(pecan_data("--help").exit_code == 0);
  CHECK(pecan_data("--version").exit_code == 0);
  CHECK(pecan_data("").exit_code == 2);
  CHECK(pecan_data("prepare --output x").exit_code == 2);
  CHECK(pecan_data("prepare --input x --output y --vocab-size many").exit_code == 2);
  CHECK(pecan_data("prepare --input x --output y --document-separator comma").exit_code == 2);
  CHECK(pecan_data("prepare --input x --output y --held-out 100").exit_code == 2);
  const Outcome absent = pecan_data("inspect " + dir / "absent");
  CHECK(absent.exit_code == 3);
  CHECK(absent.output.find("pecan-data: cannot open") != std::string::npos);
}

}  // namespace
}  // namespace pecan
