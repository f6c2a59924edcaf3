// What the batch is, in popnorm's terms: three maps from a sample to a small id.
#ifndef DIGITS_BATCH_HPP
#define DIGITS_BATCH_HPP

#include <popnorm/popnorm.hpp>
#include <vector>

#include "random.hpp"
#include "tensor.hpp"

namespace digits {

struct Map {
  popnorm_map form = {POPNORM_WHOLE, 0};
  std::vector<std::int32_t> ids = {};  // of POPNORM_LABELS: one per sample
};

struct Batch {
  Map norm_group = {};       // which samples are normalized together
  Map population_slot = {};  // which population they feed, or are normalized by
  Map affine_slot = {};      // which scale and shift apply
};

// Groups of `size` neighbours, as popnorm::contiguous(size) makes them, and groups as large of samples that have nothing
// to do with one another: the same ids, dealt at random. No sample moves.
Map neighbours(Index size);
Map shuffled(Index samples, Index size, Random& random);

}  // namespace digits

#endif
