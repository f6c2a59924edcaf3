// Which way a forward or backward goes, and what it will cost: a pure function of the problem and the device, so that it can be
// read, printed and tested anywhere. No choice changes a bit of a result.
#ifndef POPNORM_GPU_POLICY_HPP
#define POPNORM_GPU_POLICY_HPP

#include <cstddef>
#include <cstdint>

#include "core/problem.hpp"

namespace popnorm::cuda {

// What there is of a device.
struct Device {
  int multiprocessors = 1;
  std::size_t shared_of_block = 0;           // the most that a block may ask for
  std::size_t shared_of_multiprocessor = 0;  // of which every block takes 1 KB besides
  std::size_t l2 = 0;
  bool clusters = false;     // of up to 8 blocks
  bool cooperative = false;  // grids whose blocks may wait for one another
  bool copies = false;       // to shared memory, while threads go on
};

enum class Path {
  plain,    // a kernel per step: what is reduced is read again to be written
  block,    // one kernel; a block holds a block of channels of a group
  cluster,  // up to 8 blocks hold it together
  grid      // as many blocks as that takes, in a cooperative launch
};
enum class Direction { forward, backward };

struct Policy {
  Path path = Path::plain;
  int team = 1;    // blocks that hold an item, a block of channels of a group, together
  int teams = 1;   // at work at once
  int blocks = 1;  // per multiprocessor
  int held = 0;    // chunks of each tensor that a block keeps
  int ahead = 0;   // chunks of each tensor that a block of the plain path copies ahead of its sums
  int launches = 0;
  bool measured = false;  // of calls whose tensors are made of whole packs, which others take the plain path
  // Bytes from and to memory, once over the tensors beyond what is in the chip's shared memory and L2 cache when it is read again.
  double read = 0;
  double written = 0;
};

// "plain", "block", "cluster", "grid"; "auto", by the bytes that each would move; "measured", or null: one read where that has been
// faster on a device (docs/performance.md), and plain.
bool is_policy(const char* name);
// Where a path cannot be had (`why` says so, if it is not null), plain.
Policy choose(const Problem& p, Direction direction, const Device& device, const char* wanted, const char** why);

// "cluster: 4 blocks x 33 teams hold 6 chunks each, 1 launch, reads 1.02 T, writes 1.00 T".
void describe(const Problem& p, const Policy& policy, char* text, std::size_t size);

// What a kernel asks for that has slots for so many chunks of each tensor.
std::size_t shared_bytes(const Problem& p, Direction direction, int slots);

}  // namespace popnorm::cuda

#endif
