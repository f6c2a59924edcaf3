// Sweeps over memory that do nothing but move bytes. ceiling_loops.cpp is compiled once per instruction set.
#ifndef POPNORM_BENCH_CEILING_LOOPS_HPP
#define POPNORM_BENCH_CEILING_LOOPS_HPP

#include <cstddef>

namespace popnorm_bench {

enum class Stores { none, ordinary, streaming };

struct Sweep {
  const char* a = nullptr;
  const char* b = nullptr;  // null: one input
  char* out = nullptr;
  std::size_t bytes = 0;  // whole lines of 64 bytes
  Stores stores = Stores::none;
  bool four_streams = false;  // the range in four parts that advance together, instead of one
  bool backwards = false;
  std::size_t prefetch = 0;  // bytes ahead of the inputs; 0 = none
};

// Pointers are 64-byte aligned.
using SweepFunction = void (*)(const Sweep&);

void sweep_avx2(const Sweep&);
void sweep_avx512(const Sweep&);

}  // namespace popnorm_bench

#endif
