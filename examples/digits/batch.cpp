#include "batch.hpp"

#include <algorithm>

namespace digits {

Map neighbours(Index size) { return {popnorm::contiguous(size)}; }

Map shuffled(Index samples, Index size, Random& random) {
  Map map{popnorm::labels((samples + size - 1) / size)};
  for (Index n = 0; n < samples; ++n) map.ids.push_back(static_cast<std::int32_t>(n / size));
  std::shuffle(map.ids.begin(), map.ids.end(), random);
  return map;
}

}  // namespace digits
