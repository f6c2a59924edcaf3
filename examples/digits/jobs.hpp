// Independent jobs on a few threads.
#ifndef DIGITS_JOBS_HPP
#define DIGITS_JOBS_HPP

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

namespace digits {

struct Job {
  std::string name;
  std::int64_t work;  // in any unit
  std::function<void()> run;
};

// Runs every job once, at most `threads` at a time. Those of most work start first, so that all threads end at about the
// same time; done(job) is called after each, never twice at once. After a job has thrown no further one starts, and when
// all threads are done std::runtime_error tells what the first that threw has said.
void run_jobs(std::vector<Job> jobs, int threads, const std::function<void(const Job&)>& done);

}  // namespace digits

#endif
