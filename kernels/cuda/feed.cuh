// What a batch's moments update: running statistics and a population. One block, because a population takes a slot's batch whole
// or not at all. (Running statistics of one group alone are fed where it is folded.)
#ifndef POPNORM_KERNELS_CUDA_FEED_CUH
#define POPNORM_KERNELS_CUDA_FEED_CUH

#include <cstdint>

#include "kernels/cuda/fold.cuh"

namespace popnorm::cuda {

struct FeedArgs {
  std::int64_t c = 0;
  Groups groups;
  Groups slots;
  const std::int32_t* group_slot = nullptr;
  MomentArrays of_group;  // [groups][c]
  Running running;
  double momentum = 0;
  popnorm_population_header* population = nullptr;
  popnorm_feed feed = POPNORM_FEED_EMA;
};

// The groups of a slot are one batch, merged in ascending order.
__device__ __forceinline__ Moments slot_moments(const FeedArgs& args, std::int64_t slot, std::int64_t c) {
  Moments all{};
  for (std::int64_t group = 0; group < args.groups.count; ++group)
    if (slot_of(args.groups, args.slots, args.group_slot, group) == slot)
      all = combine(all, args.of_group.get(group * args.c + c));
  return all;
}

template <class Unused>
__global__ void __launch_bounds__(kThreads, 1) feed_kernel(const __grid_constant__ FeedArgs args) {
  wait_for_earlier_launches();
  void* const shared = shared_memory<std::byte>();
  const Columns one(1);
  bool taken = false;
  for (std::int64_t slot = 0; slot < args.slots.count; ++slot) {
    double bad = 0, fed = 0;
    for (std::int64_t c = Columns::thread(); c < args.c; c += kThreads) {
      const std::int64_t i = slot * args.c + c;
      const Moments m = slot_moments(args, slot, c);
      args.running.feed(i, m);
      bad += is_finite(m) ? 0 : 1;
      fed += m.weight == 0 ? 0 : 1;
    }
    if (args.population == nullptr) continue;
    const PopulationArrays<double> a(reinterpret_cast<double*>(args.population + 1), args.slots.count * args.c);
    const bool whole = block_reduce(bad, one, shared, Add()) == 0;
    for (std::int64_t c = Columns::thread(); c < args.c; c += kThreads) {
      const std::int64_t i = slot * args.c + c;
      const Moments m = slot_moments(args, slot, c);
      if (!whole)
        a.nonfinite[i] += is_finite(m) ? 0 : 1;
      else if (m.weight != 0)
        feed_entry(a, i, args.feed, args.momentum, m);
    }
    taken = (block_reduce(fed, one, shared, Add()) > 0 && whole) || taken;
  }
  if (args.population != nullptr && taken && Columns::thread() == 0) args.population->steps += 1;
}

}  // namespace popnorm::cuda

#endif
