// How a backend divides the workspace.
#ifndef POPNORM_CORE_ARENA_HPP
#define POPNORM_CORE_ARENA_HPP

#include <algorithm>
#include <cstddef>
#include <cstdint>

#include "core/backend.hpp"

namespace popnorm {

// Hands out consecutive pieces, each aligned for its elements; with no memory behind it, only counts.
class Arena {
 public:
  explicit Arena(void* memory) : memory_(static_cast<std::byte*>(memory)) {}
  template <class T>
  T* take(std::int64_t count) {
    used_ = (used_ + alignof(T) - 1) / alignof(T) * alignof(T);
    auto* piece = memory_ != nullptr ? reinterpret_cast<T*>(memory_ + used_) : nullptr;
    used_ += static_cast<std::size_t>(std::max<std::int64_t>(count, 0)) * sizeof(T);
    return piece;
  }
  std::size_t used() const { return round_up(used_); }

 private:
  std::byte* memory_;
  std::size_t used_ = 0;
};

}  // namespace popnorm

#endif
