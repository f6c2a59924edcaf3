// Independent jobs on a few threads.
#ifndef DIGITS_JOBS_HPP
#define DIGITS_JOBS_HPP

#include <functional>

namespace digits {

// Calls job(i) once for every i in [0, count), at most `threads` at a time, in ascending order of their start. After a
// job has thrown no further one starts; the exception of the lowest i is thrown again when all threads are done.
void run_jobs(int count, int threads, const std::function<void(int)>& job);

}  // namespace digits

#endif
