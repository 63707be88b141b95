/// Runs the conformance body over MPI and over threads: both must pass, with the same bits. Started
/// by mpirun. With --shared-memory first, MPI's ranks share memory. With another argument, one rank
/// misbehaves instead: what its peers do is checked from outside.

#include <chrono>
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <string_view>
#include <thread>
#include <vector>

#include <mpi.h>

#include <pecan/core/error.hpp>

#include <pecan/device/backend.hpp>
#include <pecan/device/context.hpp>

#include <pecan/comm/group.hpp>

#include "comm/conformance.hpp"

namespace pecan::comm::test {
namespace {

/// The device of this process: one for each rank of a machine, if there are so many.
device::Device cuda() {
  const char* local_rank = std::getenv("OMPI_COMM_WORLD_LOCAL_RANK");
  Result<device::Device> opened =
      device::open_cuda(local_rank == nullptr ? 0 : std::atoi(local_rank));
  if (!opened.ok()) opened = device::open_cuda(0);
  if (!opened.ok()) throw DeviceError(opened.status().message);
  return opened.value();
}

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

int check(Group& world, device::Device device) {
  const Conformance over_mpi = check_conformance(world, nullptr, device);
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

/// All call collectives of one kind; the last rank stops in the fourth, until mpirun, which ends
/// the job, wakes it.
void stop_in(Group& world, device::Device device, std::string_view kind) {
  device::Stream stream(device);
  device::Arena no_workspace;
  Context ctx{device, stream, no_workspace};
  world.set_step(Step{120});
  const Tag tag{Purpose::kDispatch, LayerId{7}};
  const Rank last{world.size() - 1};
  const bool is_last = world.rank() == last;
  constexpr std::int64_t kCount = 10'000;
  const std::vector<std::int64_t> counts(std::size_t(world.size()), kCount);
  const std::int64_t in_all = kCount * world.size();
  const std::vector<float> ones(std::size_t(kCount + 2 * in_all), 1.0F);
  const device::Buffer memory(device, ones.size() * sizeof(float));
  const TensorView values{memory.data(), DType::kF32, Shape{std::int64_t(ones.size())}};
  device::upload(stream, const_view_of(std::span(ones)), values);
  const TensorView part = values.rows(0, kCount), whole = values.rows(kCount, in_all);
  const TensorView received = values.rows(kCount + in_all, in_all);
  for (int round = 0; round < 4; ++round) {
    if (round == 3 && is_last) std::raise(SIGSTOP);
    if (kind == "all_reduce") {
      world.all_reduce(ctx, part, ReduceOp::kSum, tag).wait();
    } else if (kind == "reduce_scatter_v") {
      world.reduce_scatter_v(ctx, whole, counts, part, ReduceOp::kSum, tag).wait();
    } else if (kind == "all_gather_v") {
      world.all_gather_v(ctx, part, counts, whole, tag).wait();
    } else if (kind == "all_to_all_v") {
      world.all_to_all_v(ctx, whole, counts, received, counts, tag).wait();
    } else if (kind == "broadcast") {
      world.broadcast(ctx, part, last, tag).wait();
    } else if (!is_last) {
      world.receive(ctx, part, last, tag).wait();
    } else {
      for (int r = 0; r < last.value; ++r) world.send(ctx, part, Rank{r}, tag).wait();
    }
    stream.synchronize();
  }
  // What came over the device is good if the next collective is.
  world.broadcast(ctx, part, Rank{0}, tag).wait();
}

}  // namespace
}  // namespace pecan::comm::test

/// In place of MPI's own, which it calls: says who comes to it.
extern "C" int MPI_Finalize() {
  int rank = -1;
  MPI_Comm_rank(MPI_COMM_WORLD, &rank);
  std::printf("rank %d finalizes\n", rank);
  std::fflush(stdout);
  return PMPI_Finalize();
}

int main(int argc, char** argv) {
  using namespace pecan;
  using namespace std::chrono_literals;
  comm::MpiEnvironment mpi(&argc, &argv);
  try {
    comm::GroupOptions options{.timeout = 40s};
    if (argc > 1 && std::string_view(argv[1]) == "--shared-memory") {
      options.shared_memory = true;
      --argc, ++argv;
    }
    if (argc > 1 && std::string_view(argv[1]) == "--stay-away") {
      options.timeout = 500ms;
      const auto world = mpi.world(options);
      comm::test::stay_away(*world);
      return 0;
    }
    if (argc > 2 && std::string_view(argv[1]) == "--stop-in") {
      options.timeout = 1s;
      const auto world = mpi.world(options);
      comm::test::stop_in(*world, device::cpu(), argv[2]);
      return 0;
    }
    if (argc > 1 && std::string_view(argv[1]) == "--cuda") {
      const auto host = mpi.world(options);
      const device::Device device = comm::test::cuda();
      if (argc > 3 && std::string_view(argv[2]) == "--stop-in") {
        options.timeout = 1s;
        const auto world = comm::make_device_group(*host, device, options);
        comm::test::stop_in(*world, device, argv[3]);
        return 0;
      }
      const auto world = comm::make_device_group(*host, device, options);
      return comm::test::check(*world, device);
    }
    const auto world = mpi.world(options);
    if (argc > 1 && std::string_view(argv[1]) == "--fail-at-end") {
      if (world->rank().value == 0) throw CheckpointError("rank 0 fails where the others are done");
      return 0;
    }
    return comm::test::check(*world, device::cpu());
  } catch (const Error& error) {
    std::printf("%s\n", error.what());
    std::fflush(stdout);
    // The others that wait have their say before the job ends.
    std::this_thread::sleep_for(1s);
    mpi.abort(int(error.exit_code()));
  }
}
