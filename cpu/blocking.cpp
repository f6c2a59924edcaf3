#include "cpu/blocking.hpp"

#include <cpuid.h>
#include <unistd.h>

#include <algorithm>

namespace popnorm::cpu {
namespace {

// Below this many bytes of data a fork-join costs more than a second thread brings.
constexpr std::int64_t kInlineBytes = std::int64_t{128} << 10;

// Tasks per thread: enough to level out unequal speeds, few enough that each is long against its start.
constexpr std::int64_t kTasksPerThread = 4;

// Boxes of output are cut so small that tasks of several can be about equal, but not smaller than this.
constexpr std::int64_t kBoxesPerTask = 4;
constexpr std::int64_t kLeastBoxBytes = std::int64_t{32} << 10;

// Rows below this are short: a slab of less than whole lines would share too many of them with its neighbours (measured: up to 6 KB
// whole lines win, be the slab many times the second-level cache; from 12 KB on they do only in it).
constexpr std::int64_t kShortRowBytes = std::int64_t{8} << 10;

// In the columns form rows of memory are not cut to less than this only to go round.
constexpr std::int64_t kLeastRowBytes = std::int64_t{1} << 10;

// A last-level cache of this size or more belongs to a whole socket: far away, and shared with others. Threads count on twice
// their second-level caches instead (measured: non-temporal stores win from there on, docs/performance.md).
constexpr std::int64_t kSocketCache = std::int64_t{128} << 20;

// No thread counts on more than this of a nearer one.
constexpr std::int64_t kLargestLlcShare = std::int64_t{16} << 20;

// Bytes of the data or unified cache of a level, 0 where the processor does not say. By CPUID's deterministic cache
// parameters, because sysconf adds up the third-level caches of a whole AMD socket, of which a core reaches one.
std::int64_t cache_bytes(unsigned level) {
  constexpr unsigned kIntelLeaf = 4, kAmdLeaf = 0x8000001D;
  for (const unsigned leaf : {kIntelLeaf, kAmdLeaf}) {
    for (unsigned index = 0;; ++index) {
      unsigned a = 0, b = 0, c = 0, d = 0;
      const bool known = __get_cpuid_count(leaf, index, &a, &b, &c, &d) != 0;
      const unsigned type = a & 0x1F;
      if (!known || type == 0) break;
      constexpr unsigned kInstructions = 2;
      if (type == kInstructions || (a >> 5 & 7) != level) continue;
      const std::int64_t ways = (b >> 22) + 1, partitions = (b >> 12 & 0x3FF) + 1, line = (b & 0xFFF) + 1;
      return ways * partitions * line * (std::int64_t{c} + 1);
    }
  }
  return 0;
}

bool is_intel() {
  unsigned a = 0, b = 0, c = 0, d = 0;
  return __get_cpuid(0, &a, &b, &c, &d) != 0 && b == signature_INTEL_ebx;
}

// A cut of `count` equal pieces of work, in tasks of `grain` neighbours by `cuts` of the channels.
struct Cuts {
  std::int64_t grain;
  std::int64_t cuts = 1;
};

// The share of the threads' time that is work, if every task starts as soon as a thread is free.
double balance(std::int64_t count, std::int64_t threads, const Cuts& c) {
  const std::int64_t rounds = divide_up(divide_up(count, c.grain) * c.cuts, threads);
  return static_cast<double>(count * c.cuts) / static_cast<double>(threads * rounds * c.grain);
}

// From here on tasks go round well enough.
constexpr double kBalanced = 0.9;

// Channels of a slab: whole units, between half of `most` and `most`, so that slabs go round.
std::int64_t slab_width(std::int64_t channels, std::int64_t most, std::int64_t unit, std::int64_t threads) {
  std::int64_t best = most;
  for (std::int64_t c = most; 2 * c >= most && c > 0 && balance(channels, threads, {best}) < kBalanced; c -= unit)
    if (balance(channels, threads, {c}) > balance(channels, threads, {best})) best = c;
  return best;
}

// About `tasks` tasks that go round. Channels are cut too where there are not enough pieces; in the columns form not lightly,
// since it makes every row of memory shorter: `most_cuts` says how far only to go round.
Cuts choose_cuts(const Problem& p, std::int64_t count, std::int64_t threads, std::int64_t tasks,
                 std::int64_t most_cuts) {
  Cuts best{divide_up(count, tasks)};
  const std::int64_t least = divide_up(best.grain, 2);
  for (Cuts c = best; c.grain >= least && balance(count, threads, best) < kBalanced; --c.grain)
    if (balance(count, threads, c) > balance(count, threads, best)) best = c;
  const std::int64_t parts = divide_up(count, best.grain);
  if (parts < (p.form == Form::rows ? tasks : 2 * threads)) {
    best.cuts = divide_up(tasks, parts);
    while (parts * best.cuts % threads != 0) ++best.cuts;
    return best;
  }
  for (Cuts c = best; c.cuts <= most_cuts && balance(count, threads, best) < kBalanced; ++c.cuts)
    if (balance(count, threads, c) > balance(count, threads, best)) best = c;
  return best;
}

}  // namespace

const Machine& this_machine() {
  static const Machine machine = [] {
    Machine found;
    if (const std::int64_t l2 = cache_bytes(2); l2 > 0) found.l2 = l2;
    const std::int64_t llc = cache_bytes(3);
    const long cores = ::sysconf(_SC_NPROCESSORS_ONLN);
    const std::int64_t threads = std::max<long>(cores, 1);
    if (llc > 0) {
      found.far_llc = llc >= kSocketCache;
      found.llc_share = found.far_llc ? 2 * found.l2 : kLargestLlcShare;
      found.llc = std::min(llc, found.llc_share * threads);
    }
    found.four_streams = is_intel();
    return found;
  }();
  return machine;
}

std::int64_t box_length(const Problem& p, std::int64_t n, int concurrency) {
  const std::int64_t threads = std::max(concurrency, 1);
  const std::int64_t share = divide_up(n * p.s, threads * kTasksPerThread * kBoxesPerTask);
  const std::int64_t least = divide_up(kLeastBoxBytes, p.c * size_of(p.storage));
  return std::min(tile_length(p.form, n, p.c, p.s), std::max({share, least, std::int64_t{1}}));
}

Blocking choose_blocking(const Problem& p, const Extent& extent, const Work& work, const Machine& machine,
                         int concurrency, popnorm_schedule schedule, popnorm_stores stores) {
  const std::int64_t bytes = extent.n * p.c * p.s * size_of(p.storage);
  const std::int64_t positions = std::max<std::int64_t>(extent.n * p.s, 1);
  const std::int64_t line = 64 / size_of(p.storage);
  Blocking b{};
  b.parallel = concurrency > 1 && bytes * work.tensors > kInlineBytes;
  const std::int64_t threads = b.parallel ? concurrency : 1;  // one is not given tasks that go round among many
  const std::int64_t llc = std::min(machine.llc, machine.llc_share * threads);
  const bool both = work.reduces && work.applies;
  const bool rows = p.form == Form::rows;
  // The channels whose rows together are whole lines.
  const std::int64_t lines = std::min(p.c, line / std::min(line, std::max<std::int64_t>(p.s & -p.s, 1)));
  const bool short_rows = rows && p.s * size_of(p.storage) < kShortRowBytes;
  const std::int64_t share = b.parallel ? divide_up(p.c, threads * 2) : p.c;
  if (schedule == POPNORM_SCHEDULE_AUTO) {
    // Columns: a slab would read short pieces of every position; it pays only when one thread does everything in cache.
    b.slabs = both && (rows ? p.c >= 2 * threads && (!short_rows || lines <= share) : !b.parallel);
  } else {
    b.slabs = schedule == POPNORM_SLAB;
  }
  // Independent rows that fit beside their output into the second-level cache, and enough of them to go round.
  const std::int64_t row_bytes = bytes / std::max<std::int64_t>(extent.rows, 1) * work.tensors;
  if (both && schedule != POPNORM_PHASES && extent.rows >= threads * kTasksPerThread && row_bytes <= machine.l2 / 2)
    b.rows = divide_up(extent.rows, b.parallel ? threads * kTasksPerThread : 1);

  // Measured (docs/performance.md): ordinary stores win while input and output stay in the last-level cache. What a slab
  // writes, though, drives out of the second-level cache what it is about to read again.
  const std::int64_t touched = extent.all * p.c * p.s * size_of(p.storage) * (work.tensors + 1);
  const std::int64_t kept = b.rows > 0 || (b.slabs && rows) ? llc / 4 * 3 : machine.far_llc ? llc / 4 * 5 : llc;
  const bool streaming = stores == POPNORM_STORES_STREAMING || (stores == POPNORM_STORES_AUTO && touched >= kept);
  b.stores = !streaming ? Stores::ordinary : machine.four_streams ? Stores::four_streams : Stores::streaming;

  if (b.rows > 0) return b;
  if (b.slabs) {
    const std::int64_t channel = positions * size_of(p.storage) * work.tensors;
    std::int64_t channels = std::max<std::int64_t>(machine.l2 / 3 / std::max<std::int64_t>(channel, 1), 1);
    channels = std::min(channels, share);
    // Whole lines per sample (rows), unless rows are long and such a slab exceeds the second-level cache; whole vectors and bytes
    // of a mask (columns).
    const std::int64_t unit = rows ? lines : line;
    if (channels >= unit || (rows && unit <= share && (short_rows || unit * channel <= machine.l2))) {
      const std::int64_t most = std::max(channels / unit, std::int64_t{1}) * unit;
      channels = b.parallel ? slab_width(p.c, most, unit, threads) : most;
    } else if (!rows) {
      channels = divide_up(channels, 8) * 8;
    }
    b.channels = std::clamp<std::int64_t>(channels, 1, p.c);
    if (!rows && !b.parallel) b.channels = p.c;
    b.prefetch = 2 * b.channels * channel <= llc / threads;
    const std::int64_t slabs = divide_up(p.c, b.channels);
    b.slabs_per_task = b.parallel ? std::max<std::int64_t>(slabs / (threads * kTasksPerThread), 1) : slabs;
    return b;
  }

  const std::int64_t tasks = b.parallel ? threads * kTasksPerThread : 1;
  const std::int64_t unit = rows ? 1 : line;
  const auto channels = [&](const Cuts& c) { return std::min(p.c, divide_up(divide_up(p.c, c.cuts), unit) * unit); };
  const std::int64_t most_cuts = rows ? 1 : p.c * size_of(p.storage) / kLeastRowBytes;
  const Cuts reduce = choose_cuts(p, std::max<std::int64_t>(extent.units, 1), threads, tasks, most_cuts);
  const Cuts apply = choose_cuts(p, std::max<std::int64_t>(extent.boxes, 1), threads, tasks, 1);
  b.units = reduce.grain;
  b.channels = channels(reduce);
  b.boxes = apply.grain;
  b.box_channels = channels(apply);
  return b;
}

}  // namespace popnorm::cpu
