// Ceilings: what the machine moves at best with the bytes that an operation cannot avoid.
#ifndef POPNORM_BENCH_CEILING_HPP
#define POPNORM_BENCH_CEILING_HPP

#include <cstddef>
#include <string>
#include <vector>

#include "measure.hpp"

namespace popnorm_bench {

// T = the bytes of one tensor. A slab is one channel of x; it is read once if it stays in cache between the statistics
// and their use, else twice.
//
//                        NCHW, slab in cache      else
//   forward_inference    2T  read x, write y
//   forward_training     2T  read x, write y      3T  read x; read x, write y
//   backward             3T  read x, dy, write dx 5T  read x, dy; read x, dy, write dx
struct Pattern {
  bool two_inputs = false;
  bool two_sweeps = false;

  // Tensors moved.
  [[nodiscard]] int tensors() const { return (two_inputs ? 2 : 1) * (two_sweeps ? 2 : 1) + 1; }
  // "2T"
  [[nodiscard]] std::string name() const { return std::to_string(tensors()) + "T"; }
};

Pattern pattern_of(const Task& task);

// Hand loops and memcpy that move the pattern's bytes over the task's buffers, on `threads` threads of the calling
// arena. The fastest is the ceiling. The task must outlive them.
std::vector<Contender> ceiling_loops(const Task& task, int threads);

}  // namespace popnorm_bench

#endif
