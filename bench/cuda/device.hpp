// Memory, time and the ceiling of the device that is measured.
#ifndef POPNORM_BENCH_CUDA_DEVICE_HPP
#define POPNORM_BENCH_CUDA_DEVICE_HPP

#include <cstddef>
#include <functional>
#include <memory>
#include <string>
#include <vector>

namespace popnorm_bench {

struct DeviceInfo {
  std::string name;
  int driver = 0;  // as CUDA numbers it: 12040 is 12.4
  int runtime = 0;
  int multiprocessors = 0;
  std::size_t l2_bytes = 0;
  std::size_t memory_bytes = 0;
};
// Throws std::runtime_error where there is no device.
DeviceInfo ask_device();

// Zeros at first: what contenders leave unwritten compares equal.
class DeviceBuffer {
 public:
  explicit DeviceBuffer(std::size_t bytes);
  [[nodiscard]] void* data() const { return memory_.get(); }
  template <class T>
  [[nodiscard]] T* as() const {
    return static_cast<T*>(memory_.get());
  }
  [[nodiscard]] std::size_t size() const { return bytes_; }

  void put(const void* host, std::size_t bytes) const;
  void get(void* host, std::size_t bytes) const;

 private:
  std::unique_ptr<void, void (*)(void*)> memory_;
  std::size_t bytes_;
};

// Milliseconds on the device. `flush` is written before every run, so that nothing of it is in the L2 cache; without it the runs
// follow one another and share the time.
std::vector<double> time_runs(const std::function<void()>& run, int runs, const DeviceBuffer* flush);
void synchronize();

// Ways to copy `bytes`, all of which move them from memory and to memory: the ceiling is the fastest.
struct Copy {
  std::string name;
  std::function<void()> run;
};
std::vector<Copy> copies(const DeviceBuffer& to, const DeviceBuffer& from, std::size_t bytes);

}  // namespace popnorm_bench

#endif
