#include "support/simt/simt.hpp"

#include <algorithm>
#include <boost/context/fiber.hpp>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <memory>
#include <numeric>
#include <random>
#include <vector>

#ifdef __SANITIZE_ADDRESS__
#include <sanitizer/common_interface_defs.h>
#endif
#ifdef SIMT_UNDER_TSAN
#include <sanitizer/tsan_interface.h>
#endif

namespace simt {
namespace {

namespace context = boost::context;

constexpr std::size_t kStack = std::size_t{64} << 10;

// What sanitizers want to know of a fiber: when its stack is left for another, and that nothing but where threads meet, and the
// set of blocks as a whole, orders what a thread does with what others do (sets run one after the other).
// ThreadSanitizer does not see this file: the emulator itself is sequential.
class Watched {
 public:
  // By the scheduler, around a thread's turn.
  void begin_turn([[maybe_unused]] const context::stack_context& stack) {
#ifdef __SANITIZE_ADDRESS__
    __sanitizer_start_switch_fiber(&schedulers_, static_cast<char*>(stack.sp) - stack.size, stack.size);
#endif
#ifdef SIMT_UNDER_TSAN
    schedulers_tsan_ = __tsan_get_current_fiber();
    __tsan_switch_to_fiber(tsan_, __tsan_switch_to_fiber_no_sync);
#endif
  }
  void end_turn() {
#ifdef __SANITIZE_ADDRESS__
    __sanitizer_finish_switch_fiber(schedulers_, nullptr, nullptr);
#endif
  }
  // By the thread: when it begins, before and after it waits where others pass the same gate, and when it ends.
  void begin() {
#ifdef __SANITIZE_ADDRESS__
    __sanitizer_finish_switch_fiber(nullptr, &bottom_, &size_);
#endif
    acquire(launch_);
  }
  void arrive(char& gate) { leave(gate, false); }
  void pass(char& gate) {
#ifdef __SANITIZE_ADDRESS__
    __sanitizer_finish_switch_fiber(own_, &bottom_, &size_);
#endif
    acquire(gate);
  }
  void end() { leave(end_, true); }

#ifdef SIMT_UNDER_TSAN
  Watched() : tsan_(__tsan_create_fiber(0)) {}
  ~Watched() { __tsan_destroy_fiber(tsan_); }
#else
  Watched() = default;
#endif
  Watched(const Watched&) = delete;
  Watched& operator=(const Watched&) = delete;

  // Around a set of blocks.
  static void launched() { release(launch_); }
  static void finished() { acquire(end_); }

 private:
  static void acquire([[maybe_unused]] char& what) {
#ifdef SIMT_UNDER_TSAN
    __tsan_acquire(&what);
#endif
  }
  static void release([[maybe_unused]] char& what) {
#ifdef SIMT_UNDER_TSAN
    __tsan_release(&what);
#endif
  }
  void leave(char& before, [[maybe_unused]] bool for_ever) {
    release(before);
#ifdef SIMT_UNDER_TSAN
    __tsan_switch_to_fiber(schedulers_tsan_, __tsan_switch_to_fiber_no_sync);
#endif
#ifdef __SANITIZE_ADDRESS__
    __sanitizer_start_switch_fiber(for_ever ? nullptr : &own_, bottom_, size_);
#endif
  }

#ifdef __SANITIZE_ADDRESS__
  void* schedulers_ = nullptr;
  void* own_ = nullptr;
  const void* bottom_ = nullptr;
  std::size_t size_ = 0;
#endif
#ifdef SIMT_UNDER_TSAN
  void* tsan_;
  void* schedulers_tsan_ = nullptr;
#endif
  static inline thread_local char launch_ = 0, end_ = 0;
};

struct Thread;

// Where threads wait until all of those that have not ended are there. Its memory is taken before they begin: ThreadSanitizer
// would see threads take it.
struct Meeting {
  std::size_t expected = 0;
  std::vector<Thread*> arrived;
  unsigned round = 0;
  char gate[2] = {};  // of odd and even rounds: the next may begin before all have left
  bool any = false;   // of those that have arrived
};

struct Warp {
  Meeting meeting;
  std::vector<Thread*> lanes;
};

struct Block {
  Extent at;
  Meeting meeting;
  std::vector<std::max_align_t> shared;
};

constexpr std::size_t kMostCopies = 512;
struct Copy {
  void* to;
  const void* from;
  std::size_t bytes;
};

struct Thread {
  Coordinates at;
  context::stack_context stack;
  Watched watched;
  context::fiber fiber;  // empty: it has ended
  Warp* warp = nullptr;
  Block* block = nullptr;
  unsigned lane = 0;
  bool waited = false;                // for earlier launches
  bool any = false;                   // of those that it met
  double shuffled[2][kMostShuffled];  // of odd and even rounds
  std::vector<Copy> copies;           // under way
  std::vector<std::size_t> groups;    // how many of them each group has, which the last of them need not have
};

// Blocks that are there at once. Which of cluster and grid they are is the launch's business.
struct Set {
  Meeting meeting;
  std::deque<Thread> threads;
  std::deque<Warp> warps;
  std::deque<Block> blocks;
  std::vector<Thread*> ready;
  bool ended = false;  // one of the threads has
};

// The emulator runs on whichever OS thread launches, one launch at a time each.
thread_local Set* running_set = nullptr;
thread_local const Launch* running_launch = nullptr;
thread_local Thread* running = nullptr;
thread_local context::fiber scheduler;
thread_local std::minstd_rand order = [] {
  const char* seed = std::getenv("POPNORM_SIMT_SEED");
  return std::minstd_rand(seed != nullptr ? static_cast<unsigned>(std::strtoul(seed, nullptr, 10)) : 1);
}();

[[noreturn]] void die(const char* what) {
  std::fprintf(stderr, "simt: %s\n", what);
  std::abort();
}

// Stacks outlive their fibers: the next set's threads take them over.
class StackPool {
 public:
  context::stack_context allocate() {
    if (free_.empty()) return context::fixedsize_stack(kStack).allocate();
    const context::stack_context stack = free_.back();
    free_.pop_back();
    return stack;
  }
  void deallocate(context::stack_context& stack) noexcept { free_.push_back(stack); }
  ~StackPool() {
    for (context::stack_context& stack : free_) context::fixedsize_stack(kStack).deallocate(stack);
  }

 private:
  std::vector<context::stack_context> free_;
};

struct PooledStack {
  StackPool* pool;
  context::stack_context* taken;
  context::stack_context allocate() { return *taken = pool->allocate(); }
  void deallocate(context::stack_context& stack) noexcept { pool->deallocate(stack); }
};

void open_if_complete(Meeting& m) {
  if (m.arrived.empty() || m.arrived.size() < m.expected) return;
  ++m.round;
  for (Thread* t : m.arrived) {
    t->any = m.any;
    running_set->ready.push_back(t);
  }
  m.arrived.clear();
  m.any = false;
}

void meet(Meeting& m) {
  Thread& t = *running;
  char& gate = m.gate[m.round % 2];
  m.arrived.push_back(&t);
  open_if_complete(m);
  t.watched.arrive(gate);
  scheduler = std::move(scheduler).resume();
  t.watched.pass(gate);
}

void leave(Meeting& m) {
  --m.expected;
  open_if_complete(m);
}

// Unlike a block's barrier, one of a cluster or a grid waits for those that have ended, too.
[[noreturn]] void die_waiting_for_ended() { die("a thread has ended that others of its cluster or grid wait for"); }
void meet_all() {
  if (running_set->ended) die_waiting_for_ended();
  meet(running_set->meeting);
}

void run_set(Set& set, const std::function<void()>& body, StackPool& pool) {
  running_set = &set;
  for (Thread& t : set.threads) {
    t.fiber = context::fiber(std::allocator_arg, PooledStack{&pool, &t.stack}, [&body, &t](context::fiber&& from) {
      scheduler = std::move(from);
      t.watched.begin();
      t.waited = false;
      body();
      if (!t.copies.empty()) die("a thread that ends before its copies");
      if (!t.waited) die("a kernel that does not wait for earlier launches");
      t.watched.end();
      return std::move(scheduler);
    });
    set.ready.push_back(&t);
  }
  std::size_t left = set.threads.size();
  while (!set.ready.empty()) {
    std::swap(set.ready[order() % set.ready.size()], set.ready.back());
    Thread& t = *(running = set.ready.back());
    set.ready.pop_back();
    t.watched.begin_turn(t.stack);
    t.fiber = std::move(t.fiber).resume();
    t.watched.end_turn();
    if (t.fiber) continue;
    --left;
    for (Meeting* m : {&t.warp->meeting, &t.block->meeting}) leave(*m);
    set.ended = true;
    if (!set.meeting.arrived.empty()) die_waiting_for_ended();
  }
  if (left != 0) die("threads wait for others that never come");
  running = nullptr;
  running_set = nullptr;
}

constexpr unsigned kWarp = 32;

}  // namespace

const Coordinates& here() { return running->at; }

void* shared_memory() { return running->block->shared.data(); }

void expect_aligned(const void* address, std::size_t bytes) {
  if (reinterpret_cast<std::uintptr_t>(address) % bytes != 0) die("an access that is not aligned to its size");
}

void wait_for_earlier_launches() { running->waited = true; }

void enqueue(void* stream) {
  if (stream != nullptr) ++static_cast<Stream*>(stream)->launches;
}

void block_barrier() { meet(running->block->meeting); }

bool block_any(bool value) {
  Meeting& m = running->block->meeting;
  m.any |= value;
  meet(m);
  return running->any;
}

void cluster_barrier() {
  if (running_launch->cluster <= 1) die("a cluster's barrier without a cluster");
  meet_all();
}

void grid_barrier() {
  if (!running_launch->cooperative) die("a grid's barrier in a grid that was not launched cooperatively");
  meet_all();
}

void shuffle_xor(double* values, int count, int mask) {
  Thread& t = *running;
  Meeting& m = t.warp->meeting;
  if (count > kMostShuffled) die("too many numbers are shuffled at once");
  if (m.expected < t.warp->lanes.size()) die("a lane has ended that a shuffle waits for");
  const unsigned round = m.round % 2;
  for (int i = 0; i < count; ++i) t.shuffled[round][i] = values[i];
  meet(m);
  const double* theirs = t.warp->lanes[t.lane ^ static_cast<unsigned>(mask)]->shuffled[round];
  for (int i = 0; i < count; ++i) values[i] = theirs[i];
}

void copy_async(void* to, const void* from, std::size_t bytes) {
  expect_aligned(to, bytes);
  expect_aligned(from, bytes);
  if (running->copies.size() == kMostCopies) die("too many copies are under way");
  running->copies.push_back({to, from, bytes});
}

void commit_copies() {
  Thread& t = *running;
  if (t.groups.size() == kMostCopies) die("too many groups of copies are under way");
  t.groups.push_back(t.copies.size() - std::accumulate(t.groups.begin(), t.groups.end(), std::size_t{0}));
}

void wait_for_copies(std::size_t kept) {
  Thread& t = *running;
  while (t.groups.size() > kept) {
    const auto end = t.copies.begin() + static_cast<std::ptrdiff_t>(t.groups.front());
    std::for_each(t.copies.begin(), end, [](const Copy& copy) { std::memcpy(copy.to, copy.from, copy.bytes); });
    t.copies.erase(t.copies.begin(), end);
    t.groups.erase(t.groups.begin());
  }
}

void run(const Launch& launch, const std::function<void()>& thread) {
  const std::uint64_t blocks = std::uint64_t{launch.blocks.x} * launch.blocks.y * launch.blocks.z;
  const std::uint64_t at_once = launch.cooperative ? blocks : launch.cluster;
  if (launch.cooperative && launch.cluster > 1) die("a cooperative grid of clusters");
  if (launch.blocks.x % launch.cluster != 0) die("a grid that is no multiple of its clusters");
  // Of blocks at once, which every set of them takes over.
  Set set;
  for (std::uint64_t i = 0; i < at_once; ++i) {
    Block& block = set.blocks.emplace_back();
    unsigned of_block = 0;
    for (unsigned z = 0; z < launch.threads.z; ++z)
      for (unsigned y = 0; y < launch.threads.y; ++y)
        for (unsigned x = 0; x < launch.threads.x; ++x, ++of_block) {
          Thread& t = set.threads.emplace_back();
          t.at = {{x, y, z}, {}, launch.threads, launch.blocks};
          t.block = &block;
          t.lane = of_block % kWarp;
          t.copies.reserve(kMostCopies);
          t.groups.reserve(kMostCopies);
          if (t.lane == 0) set.warps.emplace_back();
          t.warp = &set.warps.back();
          t.warp->lanes.push_back(&t);
        }
  }
  for (Warp& warp : set.warps) warp.meeting.arrived.reserve(warp.lanes.size());
  for (Block& block : set.blocks) block.meeting.arrived.reserve(set.threads.size() / at_once);
  set.meeting.arrived.reserve(set.threads.size());
  set.ready.reserve(set.threads.size());
  StackPool pool;
  const std::size_t units = (launch.shared_bytes + sizeof(std::max_align_t) - 1) / sizeof(std::max_align_t);
  std::vector<std::uint64_t> sets;
  for (std::uint64_t i = 0; i < blocks / at_once; ++i) sets.push_back(i);
  std::shuffle(sets.begin(), sets.end(), order);
  running_launch = &launch;
  for (const std::uint64_t i : sets) {
    std::uint64_t number = i * at_once;
    for (Block& block : set.blocks) {
      block.at = {static_cast<unsigned>(number % launch.blocks.x),
                  static_cast<unsigned>(number / launch.blocks.x % launch.blocks.y),
                  static_cast<unsigned>(number / launch.blocks.x / launch.blocks.y)};
      ++number;
      block.shared.resize(units);
      std::fill_n(reinterpret_cast<unsigned char*>(block.shared.data()), units * sizeof(std::max_align_t), 0xFF);
      block.meeting.expected = set.threads.size() / at_once;
    }
    for (Thread& t : set.threads) t.at.block = t.block->at;
    for (Warp& warp : set.warps) warp.meeting.expected = warp.lanes.size();
    set.meeting.expected = set.threads.size();
    set.ended = false;
    Watched::launched();
    run_set(set, thread, pool);
    Watched::finished();
  }
  running_launch = nullptr;
}

}  // namespace simt
