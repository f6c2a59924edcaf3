// How oneDNN 3 describes batch normalization.
#ifndef POPNORM_BENCH_PEERS_ONEDNN_V3_HPP
#define POPNORM_BENCH_PEERS_ONEDNN_V3_HPP

#include <oneapi/dnnl/dnnl.hpp>

namespace popnorm_bench {

inline dnnl::batch_normalization_forward::primitive_desc describe_forward(const dnnl::engine& engine,
                                                                          dnnl::prop_kind kind,
                                                                          const dnnl::memory::desc& tensor,
                                                                          float epsilon,
                                                                          dnnl::normalization_flags flags) {
  return {engine, kind, tensor, tensor, epsilon, flags};
}

inline dnnl::batch_normalization_backward::primitive_desc describe_backward(
    const dnnl::engine& engine, const dnnl::memory::desc& tensor, float epsilon, dnnl::normalization_flags flags,
    const dnnl::batch_normalization_forward::primitive_desc& forward) {
  return {engine, dnnl::prop_kind::backward, tensor, tensor, tensor, epsilon, flags, forward};
}

}  // namespace popnorm_bench

#endif
