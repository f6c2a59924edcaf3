// The tiers compiled in, which of them this machine runs, and the choice among them.
#ifndef POPNORM_CPU_DISPATCH_HPP
#define POPNORM_CPU_DISPATCH_HPP

#include <popnorm/popnorm.h>

#include "cpu/kernel_table.hpp"

namespace popnorm::cpu {

struct Tier {
  const KernelTable* table;
  const char* needs;    // in words, for messages
  bool (*available)();  // instruction set and operating system support
};

int tier_count();
const Tier& tier(int index);  // best first

// The table named, or the best available where name is null. INVALID: no such tier. UNSUPPORTED: it does not run here.
popnorm_status choose_tier(const char* name, const KernelTable*& table);

}  // namespace popnorm::cpu

#endif
