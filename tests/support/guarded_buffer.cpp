#include "support/guarded_buffer.hpp"

#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <new>
#include <stdexcept>

namespace popnorm_test {
namespace {

constexpr std::byte kUntouched{0xFF};

std::size_t page() {
  static const auto bytes = static_cast<std::size_t>(sysconf(_SC_PAGESIZE));
  return bytes;
}

bool all_untouched(const std::byte* first, const std::byte* last) {
  return std::all_of(first, last, [](std::byte b) { return b == kUntouched; });
}

}  // namespace

GuardedBuffer::GuardedBuffer(std::size_t bytes, std::size_t alignment, Placement where, std::size_t offset)
    : bytes_(bytes) {
  const std::size_t before = where == Placement::begins_at_guard ? offset : alignment - 1;
  const std::size_t inside = (before + bytes + page() - 1) / page() * page();
  mapped_ = inside + 2 * page();
  void* mapping = mmap(nullptr, mapped_, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (mapping == MAP_FAILED) throw std::bad_alloc();
  mapping_ = static_cast<std::byte*>(mapping);
  make_writable();
  if (where == Placement::begins_at_guard) {
    data_ = usable() + offset;
  } else {
    const std::size_t start = (inside - bytes) / alignment * alignment;
    data_ = usable() + start;
  }
  if (inside > 0) std::memset(usable(), std::to_integer<int>(kUntouched), inside);
}

GuardedBuffer::~GuardedBuffer() {
  if (mapping_ != nullptr) munmap(mapping_, mapped_);
}

std::byte* GuardedBuffer::usable() const { return mapping_ + page(); }

std::size_t GuardedBuffer::usable_bytes() const { return mapped_ - 2 * page(); }

void GuardedBuffer::make_read_only() {
  if (usable_bytes() > 0 && mprotect(usable(), usable_bytes(), PROT_READ) != 0) throw std::runtime_error("mprotect");
}

void GuardedBuffer::make_writable() {
  if (usable_bytes() > 0 && mprotect(usable(), usable_bytes(), PROT_READ | PROT_WRITE) != 0) {
    throw std::runtime_error("mprotect");
  }
}

void GuardedBuffer::poison() {
  if (bytes_ > 0) std::memset(data_, std::to_integer<int>(kUntouched), bytes_);
}

bool GuardedBuffer::margins_intact() const {
  if (mapping_ == nullptr) return true;
  return all_untouched(usable(), data_) && all_untouched(data_ + bytes_, usable() + usable_bytes());
}

}  // namespace popnorm_test
