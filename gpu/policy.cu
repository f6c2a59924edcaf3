#include <algorithm>
#include <cstdio>
#include <cstring>
#include <iterator>
#include <optional>

#include "gpu/policy.hpp"
#include "gpu/shape.hpp"

namespace popnorm::cuda {
namespace {

constexpr int kLargestCluster = 8;  // that every device with clusters has

std::int64_t ceil_div(std::int64_t a, std::int64_t b) { return (a + b - 1) / b; }

// What a team takes at a time.
struct Items {
  std::int64_t count;
  std::int64_t chunks;  // of each tensor, in the largest
  std::int64_t tiles;
  std::int64_t chunks_of_tile;
};

Items items_of(const Problem& p) {
  const Tiles tiles = tiles_of(p, groups_of(p, p.norm_group, nullptr));
  const std::int64_t groups = std::max<std::int64_t>(p.norm_group.count, 1);
  const std::int64_t of_group = tiles.per_group.by();
  const std::int64_t positions = std::min(of_group * tiles.length.by(), p.n * p.s);
  return {groups * channel_blocks(p), ceil_div(positions, chunk_positions(p)), of_group,
          ceil_div(tiles.length.by(), chunk_positions(p))};
}

// How many of `bytes` that have been read are in the L2 cache when they are read again, the last ones first: half of it is
// taken by what is written meanwhile.
double in_l2(const Device& device, double bytes) { return std::min(bytes, static_cast<double>(device.l2) / 2); }

struct Tensors {
  double bytes;
  int read;          // again, unless they are kept
  double read_once;  // besides: bytes
  double written;
};

// A mask has a bit for every element. It is read with the sums and with dx.
Tensors tensors_of(const Problem& p, Direction direction) {
  const auto elements = static_cast<double>(p.elements());
  const double bytes = elements * static_cast<double>(size_of(p.storage));
  const double residual = p.adds_residual ? bytes : 0, mask = p.masked() ? elements / 8 : 0;
  return direction == Direction::forward ? Tensors{bytes, 1, residual, bytes + mask}
                                         : Tensors{bytes, 2, 2 * mask, bytes + residual};
}

// Whether no two groups have elements in one byte of a mask (kernels/cuda/activation.cuh), which different blocks write.
bool masks_apart(const Problem& p) {
  return p.form == Form::columns || p.norm_group.kind == POPNORM_WHOLE || p.s % 8 == 0;
}

// What kernels of one read need in the rows form, but for double.
bool counts_in_32_bits(const Problem& p) {
  if (p.form == Form::columns || p.storage == POPNORM_F64) return true;
  const auto any = [&](const Strides& strides) { return operand(p, &p, strides); };
  return reach_of(p, {any(p.x), any(p.y), any(p.dy), any(p.dx), any(p.residual), any(p.dresidual)}) != Reach::any;
}

// Of a tile, as far as that leaves room for as many blocks as have registers: three, or two with two tensors.
int copied_ahead(const Problem& p, Direction direction, const Device& device) {
  // Elements of 16 bits cannot be copied one by one.
  if (!device.copies || (has_single_elements(p) && size_of(p.storage) == 2)) return 0;
  constexpr std::size_t kOfBlock = 1024;
  const std::size_t blocks = direction == Direction::forward ? 3 : 2;
  const std::size_t room = device.shared_of_multiprocessor / blocks - kOfBlock;
  constexpr int kMost = 3;
  const auto most = static_cast<int>(std::min<std::int64_t>(items_of(p).chunks_of_tile, kMost));
  int ahead = 0;
  while (ahead < most && shared_bytes(p, direction, ahead + 1) <= room) ++ahead;
  return ahead;
}

Policy plain(const Problem& p, Direction direction, const Device& device, const Tensors& tensors) {
  Policy policy;
  policy.ahead = copied_ahead(p, direction, device);
  policy.launches = direction == Direction::forward || fold_delivers(p) ? 3 : 4;
  const double all = tensors.bytes * tensors.read;
  // Again from the end.
  policy.read = all + (all - in_l2(device, all)) + tensors.read_once;
  policy.written = tensors.written;
  return policy;
}

Policy resident(const Problem& p, Direction direction, const Device& device, const Tensors& tensors, Path path) {
  const Items items = items_of(p);
  const auto chunk = static_cast<std::size_t>(chunk_positions(p) * block_of(p).channels * size_of(p.storage)) *
                     static_cast<std::size_t>(tensors.read);
  Policy policy;
  policy.path = path;
  policy.ahead = copied_ahead(p, direction, device);  // of what has no kernel of one read
  policy.launches = direction == Direction::forward || fold_delivers(p) ? 1 : 2;
  constexpr std::size_t kOfBlock = 1024;
  const std::size_t half = std::min(device.shared_of_block, device.shared_of_multiprocessor / 2 - kOfBlock);
  const std::size_t fixed = shared_bytes(p, direction, 0);
  const std::int64_t element = size_of(p.storage);
  const int registers = resident_blocks(direction == Direction::forward, p.form == Form::rows, !has_single_elements(p),
                                        p.fused(), static_cast<std::size_t>(element));
  policy.blocks = half >= fixed + chunk ? registers : 1;
  const std::size_t room = policy.blocks == 2 ? half : device.shared_of_block;
  policy.held = room > fixed ? static_cast<int>((room - fixed) / chunk) : 0;
  const int blocks = device.multiprocessors * policy.blocks;
  // Whole tiles, and all of them held.
  const std::int64_t wanted = ceil_div(items.tiles, std::max<std::int64_t>(policy.held / items.chunks_of_tile, 1));
  // Few items: more blocks to each, so that none is idle.
  const std::int64_t idle = std::max<std::int64_t>(blocks / items.count, 1);
  const std::int64_t most = path == Path::block     ? 1
                            : path == Path::cluster ? std::min<std::int64_t>(kLargestCluster, blocks)
                                                    : blocks;
  const std::int64_t team = std::min({std::max(wanted, idle), most, std::max<std::int64_t>(items.tiles, 1)});
  policy.team = static_cast<int>(team);
  policy.teams = static_cast<int>(std::min<std::int64_t>(std::max<std::int64_t>(blocks / team, 1), items.count));
  const std::int64_t share = ceil_div(items.tiles, team) * items.chunks_of_tile;
  policy.held = static_cast<int>(std::min<std::int64_t>(policy.held, share));
  const double all = tensors.bytes * tensors.read;
  const double kept = std::min(1.0, static_cast<double>(policy.held) * static_cast<double>(team) /
                                        static_cast<double>(std::max<std::int64_t>(items.chunks, 1)));
  const double again = all * (1 - kept);
  // At a time, of what teams are at work on.
  const double turn = again / static_cast<double>(items.count) * policy.teams;
  policy.read = all + (turn > 0 ? again * (1 - in_l2(device, turn) / turn) : 0) + tensors.read_once;
  policy.written = tensors.written;
  return policy;
}

// In bytes that could be moved meanwhile: launches and waits cost about 2.5 and 1 microseconds, and idle blocks bandwidth.
double cost(const Problem& p, const Device& device, const Policy& policy) {
  constexpr double kBytesPerMicrosecond = 3e6;
  const double launches = 2.5 * kBytesPerMicrosecond * policy.launches;
  if (policy.path == Path::plain) return policy.read + policy.written + launches;
  const Items items = items_of(p);
  const double turns = static_cast<double>(ceil_div(items.count, policy.teams));
  const double busy = static_cast<double>(items.count) * policy.team /
                      (turns * std::max(device.multiprocessors * policy.blocks, policy.teams * policy.team));
  const double wait = policy.path == Path::block ? 0 : turns * kBytesPerMicrosecond;
  return (policy.read + policy.written) / busy + launches + wait;
}

constexpr const char* kNames[] = {"plain", "block", "cluster", "grid"};

// What has been faster than the plain path on devices with clusters, of one group without fusions (docs/performance.md). In rows of few
// chunks and units of more than an element: a channel to a block; forward, while the blocks have two turns at most, one if a turn is
// short; or to a cluster, if channels are few. In columns backward: blocks that have one turn and keep all they read.
Path measured(const Problem& p, Direction direction, const Device& device, const Tensors& tensors) {
  if (!device.clusters || p.norm_group.count != 1 || p.affine_slot.count != 1 || p.fused()) return Path::plain;
  const bool forward = direction == Direction::forward, halves = size_of(p.storage) == 2;
  if (p.storage != POPNORM_F32 && !halves) return Path::plain;
  const Items items = items_of(p);
  const auto turns = [&](const Policy& policy) { return ceil_div(items.count, policy.teams); };
  if (p.form == Form::rows) {
    if (has_single_elements(p) || items.chunks > 12) return Path::plain;
    if (items.count <= device.multiprocessors) return forward || halves ? Path::cluster : Path::plain;
    const std::int64_t most = !forward ? 4 : halves || items.chunks > 3 ? 2 : 1;
    return turns(resident(p, direction, device, tensors, Path::block)) <= most ? Path::block : Path::plain;
  }
  if (forward || !device.cooperative || p.c % (16 / size_of(p.storage)) != 0) return Path::plain;
  const Policy grid = resident(p, direction, device, tensors, Path::grid);
  return turns(grid) == 1 && std::int64_t{grid.held} * grid.team >= items.chunks ? Path::grid : Path::plain;
}

}  // namespace

bool is_policy(const char* name) {
  return name == nullptr || std::strcmp(name, "auto") == 0 || std::strcmp(name, "measured") == 0 ||
         std::ranges::any_of(kNames, [&](const char* known) { return std::strcmp(name, known) == 0; });
}

std::size_t shared_bytes(const Problem& p, Direction direction, int slots) {
  const std::int64_t chunk = chunk_positions(p) * block_of(p).channels * size_of(p.storage);
  return kChunksAt +
         static_cast<std::size_t>(chunk) * static_cast<std::size_t>(slots) * (direction == Direction::forward ? 1 : 2);
}

Policy choose(const Problem& p, Direction direction, const Device& device, const char* wanted, const char** why) {
  const Tensors tensors = tensors_of(p, direction);
  const Policy fallback = plain(p, direction, device, tensors);
  const bool by_measure = wanted == nullptr || std::strcmp(wanted, "measured") == 0;
  const auto refuse = [&](const char* reason) {
    if (why != nullptr && !by_measure) *why = reason;
    return fallback;
  };
  // None: what costs least.
  std::optional<Path> asked;
  if (by_measure) asked = measured(p, direction, device, tensors);
  for (int i = 0; !by_measure && i < static_cast<int>(std::size(kNames)); ++i)
    if (std::strcmp(wanted, kNames[i]) == 0) asked = static_cast<Path>(i);
  if (asked == Path::plain) return fallback;
  if (p.elements() == 0) return refuse("there are no elements");
  if (is_weighted(p)) return refuse("elements have weights, or labels may make them absent");
  if (!counts_in_32_bits(p)) return refuse("positions or offsets do not fit into 32 bits");
  if (p.form == Form::rows && p.storage != POPNORM_F64 && !has_packs(p))
    return refuse("images of several groups or slots are not made of packs");
  if (direction == Direction::backward && p.affine_slot.count > 1) return refuse("there are several affine slots");
  if (direction == Direction::forward && p.masked() && !masks_apart(p))
    return refuse("groups end within bytes of the mask");
  if (asked == Path::cluster && !device.clusters) return refuse("the device has no clusters");
  if (asked == Path::grid && !device.cooperative) return refuse("the device has no cooperative launch");
  if (asked) {
    Policy policy = resident(p, direction, device, tensors, *asked);
    policy.measured = by_measure;
    return policy;
  }
  Policy best = fallback;
  for (const Path path : {Path::block, Path::cluster, Path::grid}) {
    if ((path == Path::cluster && !device.clusters) || (path == Path::grid && !device.cooperative)) continue;
    const Policy candidate = resident(p, direction, device, tensors, path);
    if (cost(p, device, candidate) < cost(p, device, best)) best = candidate;
  }
  return best;
}

void describe(const Problem& p, const Policy& policy, char* text, std::size_t size) {
  const double tensor = std::max(static_cast<double>(p.elements() * size_of(p.storage)), 1.0);
  char team[80] = "";
  if (policy.path != Path::plain)
    std::snprintf(team, sizeof(team), ": %d %s x %d teams hold %d chunks each", policy.team,
                  policy.team == 1 ? "block" : "blocks", policy.teams, policy.held);
  std::snprintf(text, size, "%s%s, %d %s, reads %.2f T, writes %.2f T", kNames[static_cast<int>(policy.path)], team,
                policy.launches, policy.launches == 1 ? "launch" : "launches", policy.read / tensor,
                policy.written / tensor);
}

}  // namespace popnorm::cuda
