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
  std::string implementation;             // oneDNN's name for the kernel it chose
  std::function<void()> deliver = [] {};  // brings what run(0) made to where the task has its `out`, if it is elsewhere
};

// Where tasks are NCHW: oneDNN's tensors lie as the task's do, or in blocks of channels (nChw16c; without AVX-512 nChw8c), in
// which oneDNN's own convolutions leave them.
enum class PeerLayout { plain, blocked };

// The task on `threads` threads, on the same buffers as everybody else, or on copies in blocks that are made here. Where
// forward_training made the mean and the variance, they are in `arrays`; backward is given those of a forward that is
// made here. Task and arrays must outlive the result. Throws std::exception where oneDNN refuses.
Peer make_onednn(const Task& task, ChannelArrays& arrays, int threads, PeerLayout layout);

}  // namespace popnorm_bench

#endif
