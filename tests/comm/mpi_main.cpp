/// Runs the conformance body over MPI and over threads: both must pass, with the same bits. Started
/// by mpirun. With an argument, one rank misbehaves instead: what its peers do is checked from
/// outside.

#include <chrono>
#include <cstdio>
#include <string_view>
#include <thread>
#include <vector>

#include <pecan/core/error.hpp>

#include <pecan/device/context.hpp>

#include <pecan/comm/group.hpp>

#include "comm/conformance.hpp"

namespace pecan::comm::test {
namespace {

int print_failures(const Conformance& over_mpi, const Conformance& over_threads, int rank) {
  for (const std::string& failure : over_mpi.failures) std::printf("MPI: %s\n", failure.c_str());
  for (const std::string& failure : over_threads.failures) {
    std::printf("Thread: %s\n", failure.c_str());
  }
  if (over_mpi.digest != over_threads.digest) {
    std::printf("rank %d: MPI and Thread results differ\n", rank);
  }
  const bool passed = over_mpi.failures.empty() && over_threads.failures.empty() &&
                      over_mpi.digest == over_threads.digest;
  return passed ? 0 : 1;
}

int check(Group& world) {
  const Conformance over_mpi = check_conformance(world);
  std::vector<Conformance> over_threads(std::size_t(world.size()));
  run_thread_group(world.size(), [&](Group& group) {
    over_threads[std::size_t(group.rank().value)] = check_conformance(group);
  });
  const auto rank = world.rank().value;
  int failed = print_failures(over_mpi, over_threads[std::size_t(rank)], rank);
  device::Stream stream(device::cpu());
  device::Arena no_workspace;
  Context ctx{device::cpu(), stream, no_workspace};
  world.all_reduce(ctx, view_of(std::span(&failed, 1)), ReduceOp::kMax, {Purpose::kTest, kNoLayer})
      .wait();
  return failed;
}

/// The last rank stays away from an all_reduce, until the others, having named it, end it.
void stay_away(Group& world) {
  using namespace std::chrono_literals;
  device::Stream stream(device::cpu());
  device::Arena no_workspace;
  Context ctx{device::cpu(), stream, no_workspace};
  world.set_step(Step{120});
  std::vector<float> values(10'000, 1.0F);
  if (world.rank().value < world.size() - 1) {
    world
        .all_reduce(
            ctx, view_of(std::span(values)), ReduceOp::kSum, {Purpose::kGradients, LayerId{7}})
        .wait();
  } else {
    std::this_thread::sleep_for(20s);
  }
}

}  // namespace
}  // namespace pecan::comm::test

int main(int argc, char** argv) {
  using namespace pecan;
  using namespace std::chrono_literals;
  comm::MpiEnvironment mpi(&argc, &argv);
  try {
    if (argc > 1 && std::string_view(argv[1]) == "--stay-away") {
      const auto world = mpi.world({.timeout = 500ms});
      comm::test::stay_away(*world);
      return 0;
    }
    const auto world = mpi.world({.timeout = 40s});
    return comm::test::check(*world);
  } catch (const Error& error) {
    std::printf("%s\n", error.what());
    std::fflush(stdout);
    mpi.abort(int(error.exit_code()));
  }
}
