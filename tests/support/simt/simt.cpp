#include "support/simt/simt.hpp"

#include <algorithm>
#include <boost/context/fiber.hpp>
#include <cstdio>
#include <cstdlib>
#include <deque>
#include <memory>
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

// What sanitizers want to know of a fiber: when its stack is left for another, and that nothing but barriers, and the block as a
// whole, orders what a thread does with what others do (blocks run one after the other and share their shared memory).
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
  // By the thread: when it begins, before and after it waits at the barrier, and when it ends.
  void begin() {
#ifdef __SANITIZE_ADDRESS__
    __sanitizer_finish_switch_fiber(nullptr, &bottom_, &size_);
#endif
    acquire(launch_);
    barriers_ = 0;
  }
  void arrive() { leave(gate_[barriers_ % 2], false); }
  void pass() {
#ifdef __SANITIZE_ADDRESS__
    __sanitizer_finish_switch_fiber(own_, &bottom_, &size_);
#endif
    acquire(gate_[barriers_++ % 2]);
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

  // Around a block.
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
  unsigned barriers_ = 0;
  static inline thread_local char launch_ = 0, end_ = 0, gate_[2] = {};
};

struct Thread {
  Coordinates at;
  context::stack_context stack;
  Watched watched;
  context::fiber fiber;  // empty: it has ended
  bool waits = false;    // at the block's barrier
};

struct Block {
  std::deque<Thread> threads;  // of all blocks in turn
  std::vector<std::max_align_t> shared;
};

// The emulator runs on whichever OS thread launches, one launch at a time each.
thread_local Block* block = nullptr;
thread_local Thread* running = nullptr;
thread_local context::fiber scheduler;
thread_local std::minstd_rand order = [] {
  const char* seed = std::getenv("POPNORM_SIMT_SEED");
  return std::minstd_rand(seed != nullptr ? static_cast<unsigned>(std::strtoul(seed, nullptr, 10)) : 1);
}();

// Stacks outlive their fibers: the next block's threads take them over.
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

void yield() { scheduler = std::move(scheduler).resume(); }

void run_block(Block& b, const std::function<void()>& body, StackPool& pool) {
  block = &b;
  for (Thread& t : b.threads) {
    t.waits = false;
    t.fiber = context::fiber(std::allocator_arg, PooledStack{&pool, &t.stack}, [&body, &t](context::fiber&& from) {
      scheduler = std::move(from);
      t.watched.begin();
      body();
      t.watched.end();
      return std::move(scheduler);
    });
  }
  std::vector<Thread*> ready;
  for (Thread& t : b.threads) ready.push_back(&t);
  while (!ready.empty()) {
    std::shuffle(ready.begin(), ready.end(), order);
    for (Thread* t : ready) {
      running = t;
      t->watched.begin_turn(t->stack);
      t->fiber = std::move(t->fiber).resume();
      t->watched.end_turn();
    }
    // All that have not ended wait at the barrier: it opens.
    ready.clear();
    for (Thread& t : b.threads)
      if (t.fiber) ready.push_back(&t);
    for (Thread* t : ready) {
      if (!t->waits) {
        std::fprintf(stderr, "simt: thread (%u, %u) neither ended nor waits\n", t->at.thread.x, t->at.thread.y);
        std::abort();
      }
      t->waits = false;
    }
  }
  running = nullptr;
  block = nullptr;
}

}  // namespace

const Coordinates& here() { return running->at; }

void* shared_memory() { return block->shared.data(); }

void block_barrier() {
  Thread& t = *running;
  t.waits = true;
  t.watched.arrive();
  yield();
  t.watched.pass();
}

void run(const Launch& launch, const std::function<void()>& thread) {
  StackPool pool;
  Block b;
  for (unsigned z = 0; z < launch.threads.z; ++z)
    for (unsigned y = 0; y < launch.threads.y; ++y)
      for (unsigned x = 0; x < launch.threads.x; ++x) {
        b.threads.emplace_back().at = {{x, y, z}, {}, launch.threads, launch.blocks};
      }
  const std::size_t units = (launch.shared_bytes + sizeof(std::max_align_t) - 1) / sizeof(std::max_align_t);
  std::vector<std::uint64_t> blocks;
  for (std::uint64_t i = 0; i < std::uint64_t{launch.blocks.x} * launch.blocks.y * launch.blocks.z; ++i)
    blocks.push_back(i);
  std::shuffle(blocks.begin(), blocks.end(), order);
  for (const std::uint64_t i : blocks) {
    b.shared.assign(units, std::max_align_t{});
    std::fill_n(reinterpret_cast<unsigned char*>(b.shared.data()), units * sizeof(std::max_align_t), 0xFF);
    const Extent at{static_cast<unsigned>(i % launch.blocks.x),
                    static_cast<unsigned>(i / launch.blocks.x % launch.blocks.y),
                    static_cast<unsigned>(i / launch.blocks.x / launch.blocks.y)};
    for (Thread& t : b.threads) t.at.block = at;
    Watched::launched();
    run_block(b, thread, pool);
    Watched::finished();
  }
}

}  // namespace simt
