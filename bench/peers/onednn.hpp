// oneDNN as a contender. onednn.cpp serves versions 2 and 3, absent.cpp a build without it.
#ifndef POPNORM_BENCH_PEERS_ONEDNN_HPP
#define POPNORM_BENCH_PEERS_ONEDNN_HPP

#include <functional>
#include <optional>
#include <string>

#include "../arena.hpp"
#include "../measure.hpp"

namespace popnorm_bench {

struct PeerFacts {
  std::string version;
  std::string threading;
  bool spins = false;
};

// Nothing if the build has no oneDNN or its engine does not start here; `why` then says which.
std::optional<PeerFacts> onednn_facts(std::string& why);

struct Peer {
  std::function<void(std::size_t set)> run;
  std::string implementation;  // oneDNN's name for the kernel it chose
};

// The task on `threads` threads over plain NCHW or NHWC memory, on the same buffers as everybody else. Where
// forward_training made the mean and the variance, they are in `arrays`; backward is given those of a forward that is
// made here. Task and arrays must outlive the result. Throws std::exception where oneDNN refuses.
Peer make_onednn(const Task& task, ChannelArrays& arrays, int threads);

}  // namespace popnorm_bench

#endif
