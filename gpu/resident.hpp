// Launches of kernels of one read, of which resident.cu has the instances.
#ifndef POPNORM_GPU_RESIDENT_HPP
#define POPNORM_GPU_RESIDENT_HPP

#include "gpu/policy.hpp"
#include "gpu/shape.hpp"
#include "kernels/cuda/resident.cuh"

namespace popnorm::cuda {

// Whether kernels of one read reach these tensors: pack by pack; in columns and of double by elements too, if somebody asks for that.
// Others go the plain way.
inline bool is_kept(const Policy& policy, const Problem& p, std::initializer_list<Operand> operands) {
  return (!policy.measured && (p.form == Form::columns || p.storage == POPNORM_F64)) ||
         reach_of(p, operands) == Reach::even;
}

template <class A>
popnorm_status launch_resident(const Problem& p, const ResidentForwardArgs<A>& args, const Policy& policy,
                               void* stream);
template <class A>
popnorm_status launch_resident(const Problem& p, const ResidentBackwardArgs<A>& args, const Policy& policy,
                               void* stream);

}  // namespace popnorm::cuda

#endif
