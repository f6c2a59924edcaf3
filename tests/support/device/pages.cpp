// Memory that host and device both reach (cudaMallocManaged), for all that a test allocates: the same test bodies then run on a real
// device. Their host code reads results at once: run them with CUDA_LAUNCH_BLOCKING=1. Without a device everything is the host's.
// Guards are not guarded: compute-sanitizer looks at bounds there.
#include "support/pages.hpp"

#include <cuda_runtime_api.h>
#include <unistd.h>

#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <memory_resource>
#include <new>

namespace popnorm_test {
namespace {

// While the CUDA runtime itself allocates: it would otherwise be asked for what it is asking for.
thread_local bool inside = false;

class Inside {
 public:
  Inside() { inside = true; }
  ~Inside() { inside = false; }
  Inside(const Inside&) = delete;
  Inside& operator=(const Inside&) = delete;
};

bool there_is_a_device() {
  static const bool found = [] {
    const Inside guard;
    int devices = 0;
    return cudaGetDeviceCount(&devices) == cudaSuccess && devices > 0;
  }();
  return found;
}

class Managed : public std::pmr::memory_resource {
  void* do_allocate(std::size_t bytes, std::size_t /*alignment: of whole allocations*/) override {
    void* memory = nullptr;
    if (cudaMallocManaged(&memory, bytes, cudaMemAttachGlobal) != cudaSuccess) throw std::bad_alloc();
    return memory;
  }
  void do_deallocate(void* memory, std::size_t /*bytes*/, std::size_t /*alignment*/) override { cudaFree(memory); }
  bool do_is_equal(const memory_resource& other) const noexcept override { return this == &other; }
};

// Never destroyed: objects that outlive main free what they have.
std::pmr::memory_resource& pool() {
  alignas(Managed) static std::byte managed[sizeof(Managed)];
  alignas(std::pmr::synchronized_pool_resource) static std::byte pools[sizeof(std::pmr::synchronized_pool_resource)];
  static auto* const made =
      new (pools) std::pmr::synchronized_pool_resource({0, std::size_t{1} << 20}, new (managed) Managed);
  return *made;
}

// In front of what was asked for.
struct Header {
  void* origin;
  std::size_t bytes;
  bool pooled;
};

void* take(std::size_t bytes, std::size_t alignment) {
  alignment = std::max(alignment, alignof(std::max_align_t));
  const std::size_t all = bytes + alignment + sizeof(Header);
  const bool pooled = !inside && there_is_a_device();
  void* origin = nullptr;
  if (pooled) {
    const Inside guard;
    origin = pool().allocate(all, alignof(std::max_align_t));
  } else {
    origin = std::malloc(all);
    if (origin == nullptr) throw std::bad_alloc();
  }
  const auto first = reinterpret_cast<std::uintptr_t>(origin) + sizeof(Header) + alignment - 1;
  auto* const memory = reinterpret_cast<std::byte*>(first / alignment * alignment);
  *reinterpret_cast<Header*>(memory - sizeof(Header)) = {origin, all, pooled};
  return memory;
}

void give_back(void* memory) noexcept {
  if (memory == nullptr) return;
  const Header header = *reinterpret_cast<Header*>(static_cast<std::byte*>(memory) - sizeof(Header));
  if (!header.pooled) return std::free(header.origin);
  const Inside guard;
  pool().deallocate(header.origin, header.bytes, alignof(std::max_align_t));
}

}  // namespace

std::size_t page_bytes() {
  static const auto bytes = static_cast<std::size_t>(sysconf(_SC_PAGESIZE));
  return bytes;
}
std::byte* take_pages(std::size_t bytes) { return static_cast<std::byte*>(take(bytes, page_bytes())); }
void release_pages(std::byte* first, std::size_t /*bytes*/) { give_back(first); }
void allow(std::byte* /*first*/, std::size_t /*bytes*/, Access /*access*/) {}

}  // namespace popnorm_test

void* operator new(std::size_t bytes) { return popnorm_test::take(bytes, alignof(std::max_align_t)); }
void* operator new(std::size_t bytes, std::align_val_t alignment) {
  return popnorm_test::take(bytes, static_cast<std::size_t>(alignment));
}
void operator delete(void* memory) noexcept { popnorm_test::give_back(memory); }
void operator delete(void* memory, std::size_t /*bytes*/) noexcept { popnorm_test::give_back(memory); }
void operator delete(void* memory, std::align_val_t /*alignment*/) noexcept { popnorm_test::give_back(memory); }
void operator delete(void* memory, std::size_t /*bytes*/, std::align_val_t /*alignment*/) noexcept {
  popnorm_test::give_back(memory);
}
