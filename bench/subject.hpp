// popnorm as a contender.
#ifndef POPNORM_BENCH_SUBJECT_HPP
#define POPNORM_BENCH_SUBJECT_HPP

#include <functional>
#include <string>

#include "arena.hpp"
#include "measure.hpp"

namespace popnorm_bench {

struct Subject {
  std::function<void(std::size_t set)> run;
  std::string isa;
};

// Runs the task on set number `set`. backward goes through the batch statistics of a forward that is made here. Task
// and arrays must outlive the result. Throws popnorm::error.
Subject make_popnorm(const Task& task, ChannelArrays& arrays);

}  // namespace popnorm_bench

#endif
