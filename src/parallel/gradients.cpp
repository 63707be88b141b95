#include <pecan/ops/elementwise.hpp>

#include <pecan/parallel/gradients.hpp>

namespace pecan::parallel {
namespace {

using comm::Purpose;

comm::Group& data_group(MeshGroups& groups, const Bucket& bucket) {
  return bucket.expert ? *groups.edp : *groups.dp;
}

comm::Group* replica_group(MeshGroups& groups, const Bucket& bucket) {
  if (bucket.replica_gradient == ReplicaGradient::kWhole) return nullptr;
  switch (bucket.replicas) {
    case Replicas::kNone:
      return nullptr;
    case Replicas::kTp:
      return groups.tp.get();
    case Replicas::kKv:
      return groups.kv.get();
    case Replicas::kEtp:
      return groups.etp.get();
  }
  throw InternalError("an unknown kind of replicas");
}

bool of_one_stage(const Bucket& bucket) {
  return bucket.first_stage == bucket.last_stage;
}

}  // namespace

double gradient_scale(const MeshShape& mesh, int num_micro_batches) {
  return 1.0 / (double(mesh.dp) * double(num_micro_batches));
}

struct GradientExchange::UnderWay {
  const Bucket* bucket;
  enum class Over : std::uint8_t { kReplicas, kData } over;
  comm::Pending pending;
};

GradientExchange::GradientExchange(ParamSet& params, MeshGroups& groups, Overlap overlap)
    : params_(params), groups_(groups), overlap_(overlap) {}
GradientExchange::~GradientExchange() = default;

void GradientExchange::begin_step(Context& ctx) {
  PECAN_EXPECTS(under_way_.empty());
  params_.zero_grads(ctx);
}

void GradientExchange::before_backward(Context& ctx, int stage) {
  if (params_.sharding() != Sharding::kGradients) return;
  // The stage's place was that of the layer two above, or of another micro-batch.
  begin_data_sums(ctx);
  std::erase_if(under_way_, [&](UnderWay& sum) {
    if (!of_one_stage(*sum.bucket) || (sum.bucket->first_stage - stage) % 2 != 0) return false;
    complete(ctx, sum);
    return true;
  });
  for (const Bucket& bucket : params_.buckets()) {
    if (of_one_stage(bucket) && bucket.first_stage == stage) params_.zero_grads(ctx, bucket);
  }
}

void GradientExchange::after_backward(Context& ctx, int stage) {
  // Members of a group start their collectives in one order: at the same points of the program,
  // not when a message happens to be complete.
  begin_data_sums(ctx);
  for (const Bucket& bucket : params_.buckets()) {
    if (bucket.first_stage != stage) continue;
    const bool in_turn = params_.sharding() == Sharding::kGradients && of_one_stage(bucket);
    if (which_ == MicroBatch::kLast || in_turn) start_replica_sum(ctx, bucket);
  }
  if (overlap_ == Overlap::kOff) finish(ctx);
}

void GradientExchange::finish(Context& ctx) {
  begin_data_sums(ctx);
  for (UnderWay& sum : under_way_) complete(ctx, sum);
  under_way_.clear();
}

void GradientExchange::advance() {
  if (!under_way_.empty()) (void)under_way_.front().pending.test();
}

void GradientExchange::start_replica_sum(Context& ctx, const Bucket& bucket) {
  UnderWay& sum = under_way_.emplace_back(&bucket, UnderWay::Over::kReplicas);
  if (comm::Group* replicas = replica_group(groups_, bucket)) {
    sum.pending = replicas->all_reduce(
        ctx, params_.grads(bucket), comm::ReduceOp::kSum, {Purpose::kGradients});
  } else {
    start_data_sum(ctx, sum);
  }
}

void GradientExchange::start_data_sum(Context& ctx, UnderWay& sum) {
  sum.pending.wait();
  sum.over = UnderWay::Over::kData;
  comm::Group& group = data_group(groups_, *sum.bucket);
  const TensorView grads = params_.grads(*sum.bucket);
  const comm::Tag tag{Purpose::kGradients};
  sum.pending = params_.sharding() == Sharding::kNone
                    ? group.all_reduce(ctx, grads, comm::ReduceOp::kSum, tag)
                    : group.reduce_scatter_v(ctx,
                                             grads,
                                             sum.bucket->share_counts,
                                             params_.grad_share(*sum.bucket),
                                             comm::ReduceOp::kSum,
                                             tag);
}

void GradientExchange::begin_data_sums(Context& ctx) {
  for (UnderWay& sum : under_way_) {
    if (sum.over == UnderWay::Over::kReplicas) start_data_sum(ctx, sum);
  }
}

void GradientExchange::complete(Context& ctx, UnderWay& sum) {
  sum.pending.wait();
  if (params_.sharding() == Sharding::kGradients) {
    ops::axpy(ctx, 1, params_.grad_share(*sum.bucket), params_.summed_share(*sum.bucket));
  }
}

struct WeightGather::UnderWay {
  const Bucket* bucket;
  comm::Pending pending;
};

WeightGather::WeightGather(ParamSet& params, MeshGroups& groups, Overlap overlap)
    : params_(params), groups_(groups), overlap_(overlap) {}
WeightGather::~WeightGather() = default;

void WeightGather::start(Context& ctx) {
  if (params_.sharding() == Sharding::kNone) return;
  finish();
  for (const Bucket& bucket : params_.buckets()) {
    under_way_.emplace_back(&bucket,
                            data_group(groups_, bucket)
                                .all_gather_v(ctx,
                                              params_.weight_share(bucket),
                                              bucket.share_counts,
                                              params_.weights(bucket),
                                              {Purpose::kParameters}));
  }
  if (overlap_ == Overlap::kOff) finish();
}

void WeightGather::before_forward(Context& /*ctx*/, int stage) {
  std::erase_if(under_way_, [&](UnderWay& gather) {
    if (gather.bucket->first_stage > stage) return false;
    gather.pending.wait();
    return true;
  });
}

void WeightGather::finish() {
  for (UnderWay& gather : under_way_) gather.pending.wait();
  under_way_.clear();
}

void WeightGather::advance() {
  if (!under_way_.empty()) (void)under_way_.front().pending.test();
}

comm::SentBytes plan_gradient_traffic(const ParamLayout& layout,
                                      Sharding sharding,
                                      const MeshShape& mesh,
                                      const MeshPosition& position,
                                      int kv_replicas,
                                      DType dtype,
                                      int num_micro_batches) {
  comm::SentBytes sent;
  for (const Bucket& bucket : layout.buckets) {
    const DType master = master_of(dtype);
    const auto elements = std::int64_t(bucket.range.count);
    std::int64_t sum = 0;
    if (bucket.replica_gradient == ReplicaGradient::kPartial) {
      if (bucket.replicas == Replicas::kTp) {
        sum += comm::plan_all_reduce_sent(elements, master, mesh.tp, position.tp);
      } else if (bucket.replicas == Replicas::kKv) {
        sum += comm::plan_all_reduce_sent(elements, master, kv_replicas, position.tp % kv_replicas);
      } else if (bucket.replicas == Replicas::kEtp) {
        sum += comm::plan_all_reduce_sent(elements, master, mesh.etp, position.etp);
      }
    }
    const int size = bucket.expert ? mesh.edp : mesh.dp;
    const int place = bucket.expert ? position.edp : position.dp;
    sum += sharding == Sharding::kNone
               ? comm::plan_all_reduce_sent(elements, master, size, place)
               : comm::plan_reduce_scatter_sent(bucket.share_counts, master, place);
    const bool each_micro_batch = sharding == Sharding::kGradients && of_one_stage(bucket);
    sent[Purpose::kGradients] += sum * (each_micro_batch ? num_micro_batches : 1);
    if (sharding != Sharding::kNone) {
      const DType weight = bucket.computed_in == ComputedIn::kModelType ? dtype : master;
      sent[Purpose::kParameters] += comm::plan_all_gather_sent(bucket.share_counts, weight, place);
    }
  }
  return sent;
}

}  // namespace pecan::parallel
