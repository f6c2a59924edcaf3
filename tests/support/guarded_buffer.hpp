// Memory whose neighbours are forbidden: every buffer of every test lives in one of these.
#ifndef POPNORM_TESTS_SUPPORT_GUARDED_BUFFER_HPP
#define POPNORM_TESTS_SUPPORT_GUARDED_BUFFER_HPP

#include <cstddef>
#include <string>
#include <utility>
#include <vector>

namespace popnorm_test {

// Which side of the buffer touches a page that cannot be accessed. A vector loop that reads or writes one element too
// many faults on the far side with one placement, on the near side with the other.
enum class Placement { ends_at_guard, begins_at_guard };

// Bytes between two inaccessible pages, all 0xFF at first: NaN in every floating-point format, so that whatever is read
// without having been written shows. What lies between the buffer and the other guard is watched as well.
class GuardedBuffer {
 public:
  GuardedBuffer() noexcept = default;

  // `alignment` is a power of two, at most a page. `offset` bytes are left before the buffer when it begins at the
  // guard, so that all base alignments occur; at the end of a page they occur by themselves.
  GuardedBuffer(std::size_t bytes, std::size_t alignment, Placement where, std::size_t offset = 0);
  ~GuardedBuffer();
  GuardedBuffer(GuardedBuffer&& other) noexcept { swap(other); }
  GuardedBuffer& operator=(GuardedBuffer&& other) noexcept {
    swap(other);
    return *this;
  }

  [[nodiscard]] std::byte* data() noexcept { return data_; }
  [[nodiscard]] const std::byte* data() const noexcept { return data_; }
  [[nodiscard]] std::size_t size() const noexcept { return bytes_; }

  // From here on a write is a fault.
  void make_read_only();
  void make_writable();

  void poison();

  // What the buffer holds, to be compared after a call that must not write.
  [[nodiscard]] std::vector<std::byte> snapshot() const { return {data_, data_ + bytes_}; }

  // False if something was written beside the buffer, short of the guards.
  [[nodiscard]] bool margins_intact() const;

 private:
  void swap(GuardedBuffer& other) noexcept {
    std::swap(mapping_, other.mapping_);
    std::swap(mapped_, other.mapped_);
    std::swap(data_, other.data_);
    std::swap(bytes_, other.bytes_);
  }
  [[nodiscard]] std::byte* usable() const;
  [[nodiscard]] std::size_t usable_bytes() const;

  std::byte* mapping_ = nullptr;
  std::size_t mapped_ = 0;
  std::byte* data_ = nullptr;
  std::size_t bytes_ = 0;
};

}  // namespace popnorm_test

#endif
