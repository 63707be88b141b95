#include "launch/hosts.hpp"

#include <string>
#include <vector>

#include <pecan/core/error.hpp>

#include "support/catch.hpp"

namespace pecan::launch {
namespace {

std::string refusal(const std::string& text) {
  try {
    (void)parse_hosts(text, "hosts.txt");
  } catch (const ConfigError& error) {
    return error.what();
  }
  return "";
}

config::Config config_of(const std::string& elastic) {
  return config::parse_config(
      "model: {num_layers: 2, hidden_size: 64, num_attention_heads: 4, vocab_size: 100}\n"
      "moe: {num_experts: 8, moe_ffn_hidden_size: 32}\n"
      "parallel: {expert_model_parallel_size: 4}\n"
      "training: {global_batch_size: 8}\n"
      "data: {data_path: x}\n" +
      elastic);
}

TEST_CASE("a hosts file is read in its order", "[launch]") {
  const auto hosts = parse_hosts(
      "# the cluster\n\nnode2 slots=4   # fast\n\t node1\nNode-3.site_a slots=1\r\n", "h");
  CHECK(hosts == std::vector<Host>{{"node2", 4}, {"node1", 1}, {"Node-3.site_a", 1}});
  CHECK(parse_hosts("a slots=2", "h") == std::vector<Host>{{"a", 2}});
}

TEST_CASE("bad lines of a hosts file are refused with line and remedy", "[launch]") {
  struct Case {
    std::string text;
    std::vector<std::string> said;
  };
  const std::vector<Case> cases = {
      {"", {"hosts.txt", "no host", "one a line"}},
      {"# nothing\n\n", {"no host"}},
      {"a\nb\na slots=2\n", {"hosts.txt:3", "host a", "line 1", "once"}},
      {"a slots=0\n", {"hosts.txt:1", "slots=0", "from 1 on"}},
      {"a slots=-1\n", {"slots=-1"}},
      {"a slots=two\n", {"slots=two"}},
      {"a slots=2.5\n", {"slots=2.5"}},
      {"a slots=\n", {"slots="}},
      {"a slots=99999999999\n", {"slots=99999999999"}},
      {"a slots=1 slots=2\n", {"twice"}},
      {"a max_slots=2\n", {"'max_slots=2'", "slots=2"}},
      {"a 2\n", {"'2'"}},
      {"a:2\n", {"'a:2'", "no name of a host"}},
      {"a,b\n", {"'a,b'"}},
      {"root@a\n", {"'root@a'"}},
      {"-n slots=2\n", {"'-n'"}},
  };
  for (const Case& c : cases) {
    CAPTURE(c.text);
    const std::string message = refusal(c.text);
    for (const std::string& part : c.said) CHECK_THAT(message, Catch::Contains(part));
  }
}

TEST_CASE("this machine is known by its names", "[launch]") {
  for (const char* name : {"localhost", "127.0.0.1", "vm.site", "vm"})
    CHECK(is_this_machine(name, "vm.site"));
  for (const char* name : {"vm2", "vm.other", "site", ""})
    CHECK_FALSE(is_this_machine(name, "vm.site"));
  CHECK(is_this_machine("vm", "vm"));
}

TEST_CASE("the largest layout that the hosts hold is taken, on the first hosts", "[launch]") {
  const auto config = config_of(
      "elastic: {layouts: [{world_size: 4}, {world_size: 8, expert_model_parallel_size: 8}, "
      "{world_size: 1, expert_model_parallel_size: 1}, {world_size: 4, expert_model_parallel_size: "
      "2}]}");
  const auto take = [&](const std::vector<Host>& hosts) { return assign(config, hosts); };

  const auto eight = take({{"a", 2}, {"b", 2}, {"c", 2}, {"d", 3}});
  REQUIRE(eight);
  CHECK(eight->world == 8);
  CHECK(eight->layout.expert_model_parallel_size == 8);
  CHECK(eight->hosts == std::vector<Host>{{"a", 2}, {"b", 2}, {"c", 2}, {"d", 2}});

  const auto four = take({{"a", 2}, {"b", 2}, {"c", 2}});
  REQUIRE(four);
  CHECK(four->world == 4);
  CHECK(four->layout.expert_model_parallel_size == 4);  // the first of two with 4
  CHECK(four->layout.tensor_model_parallel_size == 1);
  CHECK(four->layout.expert_tensor_parallel_size == 1);
  CHECK(four->hosts == std::vector<Host>{{"a", 2}, {"b", 2}});  // c is a spare

  const auto one = take({{"a", 3}});
  REQUIRE(one);
  CHECK(one->world == 1);
  CHECK(one->layout.expert_model_parallel_size == 1);
  CHECK(one->hosts == std::vector<Host>{{"a", 1}});
  CHECK_FALSE(take({}));
  CHECK(describe_wanted_slots(config) == "8 or 4 or 1 slots");
}

TEST_CASE("the names of snapshots tell whose they are", "[launch]") {
  CHECK(ranks_of_snapshots("").empty());
  CHECK(ranks_of_snapshots("/dev/shm/pecan.0123456789abcdef.node7.r00003.b1\n"
                           "/dev/shm/pecan.0123456789abcdef.node7.r00003.b2\n"
                           "/x.r00009.b/pecan.0a.n.r00001.b4.r00012.b0.c1\n"
                           "/dev/shm/pecan.0123456789abcdef.node7.r123456.b0.c2") ==
        std::set<int>{3, 12, 123456});
  CHECK(ranks_of_snapshots("pecan.a.n.r.b0\npecan.a.n.r1\npecan.a.n.r-1.b0\nnone\n").empty());
}

TEST_CASE("hosts that hold snapshots get a rank first, others are spares", "[launch]") {
  const auto config = config_of(
      "elastic: {layouts: [{world_size: 8}, {world_size: 4}, {world_size: 2, "
      "expert_model_parallel_size: 2}]}");
  const std::vector<Host> four{{"a", 2}, {"b", 2}, {"c", 2}, {"d", 2}};
  const std::vector<Host> three{{"a", 2}, {"b", 2}, {"c", 2}};
  CHECK(assign(config, four, {"a", "b", "c", "d"})->hosts == four);
  CHECK(assign(config, three, {"a", "b", "c"})->hosts ==
        std::vector<Host>{{"a", 2}, {"b", 1}, {"c", 1}});
  CHECK(assign(config, three, {"b", "c"})->hosts == std::vector<Host>{{"b", 2}, {"c", 2}});
  CHECK(assign(config, three, {"c"})->hosts == std::vector<Host>{{"a", 2}, {"c", 2}});
  CHECK(assign(config, three, {"x"})->hosts == std::vector<Host>{{"a", 2}, {"b", 2}});
  // More holders than ranks: as many as there are ranks.
  CHECK(assign(config, std::vector<Host>{{"a", 1}, {"b", 1}, {"c", 1}}, {"a", "b", "c"})->hosts ==
        std::vector<Host>{{"a", 1}, {"b", 1}});
}

TEST_CASE("without a list all slots are used, or nothing", "[launch]") {
  const auto config = config_of("");
  const auto all = assign(config, std::vector<Host>{{"a", 2}, {"b", 2}});
  REQUIRE(all);
  CHECK(all->world == 4);
  CHECK(all->layout.expert_model_parallel_size == 4);
  CHECK_FALSE(assign(config, std::vector<Host>{{"a", 3}}));
  CHECK_FALSE(assign(config, std::vector<Host>{{"a", 2}}));  // 4 expert-parallel ranks
}

TEST_CASE("ranks fill host after host", "[launch]") {
  const Assignment assignment{{{"a", 2}, {"b", 1}, {"c", 3}}, 6, {}};
  std::string hosts;
  for (int rank = 0; rank < 6; ++rank) hosts += assignment.host_of(rank);
  CHECK(hosts == "aabccc");
  CHECK_THROWS_AS(assignment.host_of(6), InternalError);
}

}  // namespace
}  // namespace pecan::launch
