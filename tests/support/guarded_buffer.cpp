#include "support/guarded_buffer.hpp"

#include <algorithm>
#include <cstdint>
#include <cstring>

#include "support/pages.hpp"

namespace popnorm_test {
namespace {

constexpr std::byte kUntouched{0xFF};

bool all_untouched(const std::byte* first, const std::byte* last) {
  return std::all_of(first, last, [](std::byte b) { return b == kUntouched; });
}

}  // namespace

GuardedBuffer::GuardedBuffer(std::size_t bytes, std::size_t alignment, Placement where, std::size_t offset)
    : bytes_(bytes) {
  const std::size_t before = where == Placement::begins_at_guard ? offset : alignment - 1;
  const std::size_t inside = (before + bytes + page_bytes() - 1) / page_bytes() * page_bytes();
  mapped_ = inside + 2 * page_bytes();
  mapping_ = take_pages(mapped_);
  allow(mapping_, page_bytes(), Access::none);
  allow(mapping_ + page_bytes() + inside, page_bytes(), Access::none);
  if (where == Placement::begins_at_guard) {
    data_ = usable() + offset;
  } else {
    const std::size_t start = (inside - bytes) / alignment * alignment;
    data_ = usable() + start;
  }
  if (inside > 0) std::memset(usable(), std::to_integer<int>(kUntouched), inside);
}

GuardedBuffer::~GuardedBuffer() {
  if (mapping_ != nullptr) release_pages(mapping_, mapped_);
}

std::byte* GuardedBuffer::usable() const { return mapping_ + page_bytes(); }

std::size_t GuardedBuffer::usable_bytes() const { return mapped_ - 2 * page_bytes(); }

void GuardedBuffer::make_read_only() { allow(usable(), usable_bytes(), Access::read); }

void GuardedBuffer::make_writable() { allow(usable(), usable_bytes(), Access::write); }

void GuardedBuffer::poison() {
  if (bytes_ > 0) std::memset(data_, std::to_integer<int>(kUntouched), bytes_);
}

bool GuardedBuffer::margins_intact() const {
  if (mapping_ == nullptr) return true;
  return all_untouched(usable(), data_) && all_untouched(data_ + bytes_, usable() + usable_bytes());
}

}  // namespace popnorm_test
