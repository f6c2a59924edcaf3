#include "jobs.hpp"

#include <algorithm>
#include <atomic>
#include <exception>
#include <thread>
#include <vector>

namespace digits {

void run_jobs(int count, int threads, const std::function<void(int)>& job) {
  std::atomic<int> next = 0;
  std::atomic<bool> failed = false;
  std::vector<std::exception_ptr> failures(static_cast<std::size_t>(count));
  const auto work = [&] {
    for (int i = next++; i < count && !failed; i = next++) {
      try {
        job(i);
      } catch (...) {
        failures[static_cast<std::size_t>(i)] = std::current_exception();
        failed = true;
      }
    }
  };
  {
    std::vector<std::jthread> pool;
    for (int t = 0; t < std::min(threads, count); ++t) pool.emplace_back(work);
  }
  for (const std::exception_ptr& failure : failures) {
    if (failure) std::rethrow_exception(failure);
  }
}

}  // namespace digits
