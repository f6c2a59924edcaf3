#include "cpu/backend.hpp"

#include <algorithm>
#include <new>

#include "core/log.hpp"
#include "cpu/call.hpp"
#include "cpu/dispatch.hpp"
#include "cpu/operations.hpp"

namespace popnorm::cpu {
namespace {

// Rows of contiguous groups that are worked on at once: bounded, so that scratch does not grow with their number, and so few
// that a wave of the columns form stays in a last-level cache between its statistics and its output. Not in this machine's: where
// a wave ends decides which samples of an affine slot share a tile, and so bits.
std::int64_t rows_in_flight(const Problem& p, const Map& map) {
  constexpr std::int64_t kScratch = std::int64_t{2} << 20, kCache = std::int64_t{8} << 20;
  const std::int64_t samples = std::max<std::int64_t>(samples_per_id(map, p.n), 1);
  const std::int64_t bytes = p.c * p.s * samples * size_of(p.storage);
  const std::int64_t scratch = p.c * 64 * (1 + samples * p.s / tile_length(p.form, p.n, p.c, p.s));
  const std::int64_t by_cache = p.form == Form::columns ? kCache / std::max<std::int64_t>(bytes, 1) : map.count;
  return std::max<std::int64_t>(std::min(kScratch / scratch, by_cache), 1);
}

template <class T>
std::size_t workspace_bytes(const Problem& p, const Rows& by_group, const Rows& by_slot) {
  const auto forward = [&](const Rows& rows, bool reduces) {
    Arena arena(nullptr);
    const ForwardSpace<T> space(arena, p, rows, reduces);
    return arena.used();
  };
  const auto backward = [&](const Rows& rows) {
    Arena arena(nullptr);
    const BackwardSpace<T> space(arena, p, rows);
    return arena.used();
  };
  return std::max({forward(by_group, true), forward(by_slot, false), backward(by_group), backward(by_slot)});
}

Storage storage_of(popnorm_type type) {
  return type == POPNORM_F64    ? Storage::f64
         : type == POPNORM_BF16 ? Storage::bf16
         : type == POPNORM_F16  ? Storage::f16
                                : Storage::f32;
}

// More than machines have: cutting tasks for so many takes as many steps.
constexpr std::int32_t kMostConcurrency = 4096;

popnorm_status prepare(Plan& plan, const char* isa, const popnorm_executor* executor) {
  const KernelTable* table = nullptr;
  if (const popnorm_status status = choose_tier(isa, table); status != POPNORM_SUCCESS) return status;
  const Problem& p = plan.problem;
  const bool wide = p.storage == POPNORM_F64;
  State state{&table->kernels[static_cast<int>(storage_of(p.storage))][static_cast<int>(p.form)],
              Executor{nullptr, 0, nullptr},
              {p, p.norm_group, rows_in_flight(p, p.norm_group)},
              {p, p.population_slot, rows_in_flight(p, p.population_slot)}};
  if (executor != nullptr)
    state.executor = {executor->context, std::min(executor->concurrency, kMostConcurrency), executor->parallel_for};
  new (plan.state) State(state);
  plan.isa = table->isa;
  plan.workspace_bytes = wide ? workspace_bytes<double>(p, state.by_group, state.by_slot)
                              : workspace_bytes<float>(p, state.by_group, state.by_slot);
  plan.double_backward_bytes = double_backward_bytes(p, state.by_group, state.by_slot);
  plan.slots = state.by_group.by_row.most_slots();
  if (log_dispatch())
    log_choice("cpu %s chosen: %s form, %lld tiles, %lld waves", table->isa, p.form == Form::rows ? "rows" : "columns",
               static_cast<long long>(plan.slots), static_cast<long long>(state.by_group.waves()));
  return POPNORM_SUCCESS;
}

}  // namespace

constinit const Backend backend{POPNORM_CPU,     "cpu",          nullptr,        prepare,  forward,
                                backward,        moments,        combine_parts,  finalize, normalize,
                                backward_reduce, backward_apply, double_backward};

}  // namespace popnorm::cpu
