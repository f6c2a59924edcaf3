// Executors for tests: they run tasks in the most inconvenient legal ways.
#ifndef POPNORM_TESTS_SUPPORT_EXECUTORS_HPP
#define POPNORM_TESTS_SUPPORT_EXECUTORS_HPP

#include <popnorm/popnorm.h>

#include <algorithm>
#include <cstdint>
#include <numeric>
#include <thread>
#include <vector>

#include "support/random.hpp"

namespace popnorm_test {

// k threads, each of which gets its share of the tasks in a random order. The shares are dealt before the threads
// start, so that exactly min(k, tasks) of them take part in every call.
class ShuffledExecutor {
 public:
  // `on_thread`, if any, is called first on every thread (to spoil its floating-point state, say).
  explicit ShuffledExecutor(int threads, void (*on_thread)() = nullptr)
      : threads_(threads), on_thread_(on_thread), order_("ShuffledExecutor") {}
  ShuffledExecutor(const ShuffledExecutor&) = delete;

  [[nodiscard]] popnorm_executor interface() {
    popnorm_executor e = POPNORM_EXECUTOR_INIT;
    e.context = this;
    e.concurrency = threads_;
    e.parallel_for = &ShuffledExecutor::parallel_for;
    return e;
  }

  // Of all calls so far: how often parallel_for was called, the most tasks in a call, the most threads that took part.
  [[nodiscard]] std::int64_t calls() const { return calls_; }
  [[nodiscard]] std::int64_t most_tasks() const { return most_tasks_; }
  [[nodiscard]] std::int64_t most_threads() const { return most_threads_; }

 private:
  static void parallel_for(void* context, std::int64_t count, void (*task)(void*, std::int64_t), void* argument) {
    static_cast<ShuffledExecutor*>(context)->deal(count, task, argument);
  }

  void deal(std::int64_t count, void (*task)(void*, std::int64_t), void* argument) {
    std::vector<std::int64_t> deck(static_cast<std::size_t>(count));
    std::iota(deck.begin(), deck.end(), 0);
    order_.shuffle(deck);
    const auto hands = static_cast<std::size_t>(std::min<std::int64_t>(threads_, count));
    std::vector<std::thread> threads;
    for (std::size_t hand = 0; hand < hands; ++hand) {
      threads.emplace_back([&, hand] {
        if (on_thread_ != nullptr) on_thread_();
        for (std::size_t i = hand; i < deck.size(); i += hands) task(argument, deck[i]);
      });
    }
    for (std::thread& t : threads) t.join();
    ++calls_;
    most_tasks_ = std::max(most_tasks_, count);
    most_threads_ = std::max(most_threads_, static_cast<std::int64_t>(hands));
  }

  int threads_;
  void (*on_thread_)();
  Random order_;
  std::int64_t calls_ = 0;
  std::int64_t most_tasks_ = 0;
  std::int64_t most_threads_ = 0;
};

// One thread, last task first.
inline popnorm_executor reversed_executor() {
  popnorm_executor e = POPNORM_EXECUTOR_INIT;
  e.parallel_for = [](void*, std::int64_t count, void (*task)(void*, std::int64_t), void* argument) {
    for (std::int64_t i = count; i > 0; --i) task(argument, i - 1);
  };
  return e;
}

}  // namespace popnorm_test

#endif
