// Launches of kernels of one read, of which resident.cu has the instances.
#ifndef POPNORM_GPU_RESIDENT_HPP
#define POPNORM_GPU_RESIDENT_HPP

#include "gpu/policy.hpp"
#include "kernels/cuda/resident.cuh"

namespace popnorm::cuda {

template <class A>
popnorm_status launch_resident(const Problem& p, const ResidentForwardArgs<A>& args, const Policy& policy,
                               void* stream);
template <class A>
popnorm_status launch_resident(const Problem& p, const ResidentBackwardArgs<A>& args, const Policy& policy,
                               void* stream);

}  // namespace popnorm::cuda

#endif
