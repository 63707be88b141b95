/// Collectives between ranks of one node by MPI's own function, by messages and through shared
/// memory, in turns, started by mpirun: milliseconds (median), and by how much the last is ahead.

#include <algorithm>
#include <array>
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <functional>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include <mpi.h>

#include <pecan/device/context.hpp>

#include <pecan/comm/group.hpp>

namespace pecan::comm {
namespace {

using Counts = std::vector<std::int64_t>;
constexpr Tag kTag{Purpose::kTest, kNoLayer};

class Bench {
 public:
  Bench(Group& messages, Group& shared)
      : groups_{&messages, &shared}, size_(messages.size()), rank_(messages.rank().value) {}

  void run(std::int64_t bytes, int repeats) {
    const std::int64_t count = bytes / std::int64_t(sizeof(float)) / size_ * size_;
    const Counts equal(std::size_t(size_), count / size_);
    std::vector<float> a(std::size_t(count), 0.5F), b(a.size());
    const TensorView whole = view_of(std::span(a)), other = view_of(std::span(b));
    const TensorView part = other.rows(0, count / size_);
    const TensorView place = whole.rows(rank_ * (count / size_), count / size_);
    const int all = int(count), share = int(count / size_);
    compare(
        "all_reduce",
        bytes,
        repeats,
        [&] { MPI_Allreduce(MPI_IN_PLACE, a.data(), all, MPI_FLOAT, MPI_SUM, MPI_COMM_WORLD); },
        [&](Group& group) { return group.all_reduce(ctx_, whole, ReduceOp::kSum, kTag); });
    compare(
        "reduce_scatter_v",
        bytes,
        repeats,
        [&] {
          MPI_Reduce_scatter_block(a.data(), b.data(), share, MPI_FLOAT, MPI_SUM, MPI_COMM_WORLD);
        },
        [&](Group& group) {
          return group.reduce_scatter_v(ctx_, whole, equal, part, ReduceOp::kSum, kTag);
        });
    compare(
        "all_gather_v",
        bytes,
        repeats,
        [&] {
          MPI_Allgather(MPI_IN_PLACE, share, MPI_FLOAT, a.data(), share, MPI_FLOAT, MPI_COMM_WORLD);
        },
        [&](Group& group) { return group.all_gather_v(ctx_, place, equal, whole, kTag); });
    compare(
        "all_to_all_v",
        bytes,
        repeats,
        [&] {
          MPI_Alltoall(a.data(), share, MPI_FLOAT, b.data(), share, MPI_FLOAT, MPI_COMM_WORLD);
        },
        [&](Group& group) { return group.all_to_all_v(ctx_, whole, equal, other, equal, kTag); });
  }

 private:
  void compare(std::string_view name,
               std::int64_t bytes,
               int repeats,
               const std::function<void()>& library,
               const std::function<Pending(Group&)>& collective) {
    std::array<std::vector<double>, 3> ms;
    for (int repeat = -1; repeat < repeats; ++repeat) {
      for (std::size_t way = 0; way < ms.size(); ++way) {
        std::int32_t together = 0;
        groups_[0]->all_reduce(ctx_, view_of(std::span(&together, 1)), ReduceOp::kMax, kTag).wait();
        const auto start = std::chrono::steady_clock::now();
        if (way == 0) {
          library();
        } else {
          collective(*groups_[way - 1]).wait();
        }
        const std::chrono::duration<double, std::milli> time =
            std::chrono::steady_clock::now() - start;
        if (repeat >= 0) ms[way].push_back(time.count());  // the first is to warm up
      }
    }
    if (rank_ != 0) return;
    std::array<double, 3> median{};
    for (std::size_t way = 0; way < ms.size(); ++way) {
      std::ranges::sort(ms[way]);
      median[way] = ms[way][ms[way].size() / 2];
    }
    std::printf(
        "%-17s %8.3f MB  MPI %8.3f ms  messages %8.3f ms  shared %8.3f ms  %5.2fx  %5.2fx\n",
        name.data(),
        double(bytes) / 1048576,
        median[0],
        median[1],
        median[2],
        median[0] / median[2],
        median[1] / median[2]);
    std::fflush(stdout);
  }

  Group* groups_[2];
  const int size_, rank_;
  device::Stream stream_{device::cpu()};
  device::Arena workspace_;
  Context ctx_{device::cpu(), stream_, workspace_};
};

}  // namespace
}  // namespace pecan::comm

int main(int argc, char** argv) {
  using namespace pecan::comm;
  MpiEnvironment mpi(&argc, &argv);
  const auto messages = mpi.world();
  const std::size_t piece = argc > 1 ? std::stoul(argv[1]) : kPieceBytes;
  const auto shared = mpi.world({.shared_memory = true, .piece_bytes = piece});
  Bench bench(*messages, *shared);
  for (const auto& [bytes, repeats] : {std::pair{std::int64_t{1} << 10, 201},
                                       {std::int64_t{1} << 16, 101},
                                       {std::int64_t{1} << 20, 51},
                                       {std::int64_t{1} << 24, 15},
                                       {std::int64_t{1} << 26, 7}}) {
    bench.run(bytes, repeats);
  }
}
