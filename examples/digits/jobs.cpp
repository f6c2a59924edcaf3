#include "jobs.hpp"

#include <algorithm>
#include <atomic>
#include <exception>
#include <mutex>
#include <stdexcept>
#include <thread>

namespace digits {

void run_jobs(std::vector<Job> jobs, int threads, const std::function<void(const Job&)>& done) {
  std::stable_sort(jobs.begin(), jobs.end(), [](const Job& a, const Job& b) { return a.work > b.work; });
  std::atomic<std::size_t> next = 0;
  std::mutex lock;  // of `done` and `failure`
  std::string failure;
  std::atomic<bool> failed = false;
  const auto work = [&] {
    for (std::size_t i = next++; i < jobs.size() && !failed; i = next++) {
      try {
        jobs[i].run();
        const std::lock_guard locked(lock);
        done(jobs[i]);
      } catch (const std::exception& error) {
        const std::lock_guard locked(lock);
        if (!failed.exchange(true)) failure = jobs[i].name + ": " + error.what();
      }
    }
  };
  {
    std::vector<std::jthread> pool;
    for (int t = 0; t < threads; ++t) pool.emplace_back(work);
  }
  if (failed) throw std::runtime_error(failure);
}

}  // namespace digits
