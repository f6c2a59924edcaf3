#include "support/pages.hpp"

#include <sys/mman.h>
#include <unistd.h>

#include <new>
#include <stdexcept>

namespace popnorm_test {

std::size_t page_bytes() {
  static const auto bytes = static_cast<std::size_t>(sysconf(_SC_PAGESIZE));
  return bytes;
}

std::byte* take_pages(std::size_t bytes) {
  void* pages = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (pages == MAP_FAILED) throw std::bad_alloc();
  return static_cast<std::byte*>(pages);
}

void release_pages(std::byte* first, std::size_t bytes) { munmap(first, bytes); }

void allow(std::byte* first, std::size_t bytes, Access access) {
  const int protection = access == Access::write  ? PROT_READ | PROT_WRITE
                         : access == Access::read ? PROT_READ
                                                  : PROT_NONE;
  if (bytes > 0 && mprotect(first, bytes, protection) != 0) throw std::runtime_error("mprotect");
}

}  // namespace popnorm_test
